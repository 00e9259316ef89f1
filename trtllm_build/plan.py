"""What to build: the composed config, checked before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from nemo_diffgemma.architecture import Architecture
from nemo_diffgemma.errors import FieldError, require
from nemo_diffgemma.hydra_config import check_choice, choices, compose_config
from trtllm_build.bundle import Limits

CONF = Path(__file__).parent / "conf"
BUILT_BACKENDS = ("torch_cpu",)


@dataclass(frozen=True)
class Plan:
    """One build.

    Args:
        checkpoint: Hugging Face-layout checkpoint directory.
        out: bundle directory.
        gpu: name of the target.
        backend: name of the compiler.
        precision: name of the precision.
        dtypes: dtype name by class of tensor.
        limits: what the engine will admit.
        compile: whether to compile the network's pieces ahead of time.
        arch: the checkpoint's architecture.
    """

    checkpoint: Path
    out: Path
    gpu: str
    backend: str
    precision: str
    dtypes: dict[str, str]
    limits: Limits
    compile: bool
    arch: Architecture


def make_plan(overrides: Sequence[str]) -> Plan:
    """Compose ``conf/build.yaml`` with overrides such as ``gpu=cpu checkpoint=DIR`` and check the result.

    Raises:
        FieldError: on an unknown key or choice, a target not built yet, or a checkpoint that is not there.
    """
    overrides = [_normal(o) for o in overrides]
    for override in overrides:
        check_choice(CONF, override)
    given = dict(o.partition("=")[::2] for o in overrides)
    gpu = _gpu_config(given.get("gpu", "cpu"))
    require(
        gpu.backend in BUILT_BACKENDS,
        "gpu",
        gpu.name,
        f"{', '.join(_built_gpus())}; the {gpu.backend} backend for {gpu.name} is not built yet in this version",
        "run `make engine GPU=cpu`",
    )
    precision = given.get("precision", gpu.precisions[0])
    allowed = ", ".join(gpu.precisions)
    require(precision in gpu.precisions, "precision", precision, f"{allowed} for gpu={gpu.name}", "pass one of these")
    config = compose_config(
        CONF, "build", [*(o for o in overrides if not o.startswith("precision=")), f"precision={precision}"]
    )
    if OmegaConf.is_missing(config, "checkpoint"):
        raise FieldError("checkpoint", None, "a checkpoint directory", "pass checkpoint=DIR; `make train` writes one")
    checkpoint = Path(config.checkpoint)
    arch = Architecture.load(checkpoint)
    context = config.gpu.limits.context or arch.max_position_embeddings
    limits = Limits(
        context,
        config.gpu.limits.slots,
        arch.canvas_length,
        arch.vocab_size,
        config.gpu.limits.queue,
        config.gpu.limits.cache_tokens,
    )
    for name in ("slots", "context", "queue", "cache_tokens"):
        value = getattr(limits, name)
        good = (isinstance(value, int) and value >= 1) or (name == "cache_tokens" and value is None)
        require(good, f"gpu.limits.{name}", value, "an integer >= 1", f"pass gpu.limits.{name}=8")
    require(isinstance(config.compile, bool), "compile", config.compile, "true or false", "pass compile=true")
    require(
        context <= arch.max_position_embeddings,
        "gpu.limits.context",
        context,
        f"at most {arch.max_position_embeddings}, the model's max_position_embeddings",
        f"pass gpu.limits.context={arch.max_position_embeddings}",
    )
    out = Path(config.out) if config.out else Path("engines") / checkpoint.resolve().name / f"{gpu.name}-{precision}"
    dtypes = OmegaConf.to_container(config.precision)
    assert isinstance(dtypes, dict)
    return Plan(
        checkpoint=checkpoint,
        out=out,
        gpu=gpu.name,
        backend=gpu.backend,
        precision=precision,
        dtypes={str(k): str(v) for k, v in dtypes.items() if k != "name"},
        limits=limits,
        compile=config.compile,
        arch=arch,
    )


def _normal(override: str) -> str:
    """``gpu=dgx-spark`` is ``gpu=dgx_spark``."""
    key, separator, value = override.partition("=")
    return f"{key}{separator}{value.replace('-', '_')}" if key == "gpu" else override


def _gpu_config(name: str) -> DictConfig:
    config = OmegaConf.load(CONF / "gpu" / f"{name}.yaml")
    assert isinstance(config, DictConfig)
    return config


def _built_gpus() -> list[str]:
    return [name for name in choices(CONF, "gpu") if _gpu_config(name).backend in BUILT_BACKENDS]
