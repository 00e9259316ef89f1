"""What to build: the composed config, checked before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from nemo_diffgemma.architecture import Architecture
from nemo_diffgemma.checkpoint import CALIBRATION
from nemo_diffgemma.errors import FieldError, require
from nemo_diffgemma.hydra_config import check_choice, compose_config
from nemo_diffgemma.models import configured
from trtllm_build.quantization.recipe import Recipe
from trtllm_build.runtime.limits import Limits

CONF = Path(__file__).parent / "conf"


@dataclass(frozen=True)
class Plan:
    """One build.

    Args:
        checkpoint: Hugging Face-layout checkpoint directory; None for random weights.
        name: of the model: the checkpoint directory's, or that of the configuration the random weights fit.
        out: bundle directory.
        gpu: name of the target.
        backend: name of the compiler.
        sm: compute capability of the GPU, 90 for 9.0; None for a CPU.
        memory_gb_per_second: of the GPU's memory by its data sheet; None for a CPU.
        recipe: what is quantised, and how.
        limits: what the engine will admit.
        compile: whether to compile the network's pieces ahead of time.
        calibration: conversations (JSONL) to find scales of activations with; None where none are wanted.
        largest_loss: of exact match on held-out questions, against float32; a build that loses more fails.
        unified: whether a quantised checkpoint is also written in the unified Hugging Face layout.
        arch: the checkpoint's architecture.
    """

    checkpoint: Path | None
    name: str
    out: Path
    gpu: str
    backend: str
    sm: int | None
    memory_gb_per_second: int | None
    recipe: Recipe
    limits: Limits
    compile: bool
    calibration: Path | None
    largest_loss: float
    unified: bool
    arch: Architecture

    @property
    def unified_out(self) -> Path:
        """Where the unified Hugging Face layout is written: beside the bundle."""
        return self.out.with_name(f"{self.out.name}-hf")


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
    backend = given.get("backend", gpu.backend)
    backends = {gpu.backend: list(gpu.precisions), **gpu.get("others", {})}
    known = f"{', '.join(backends)} for gpu={gpu.name}"
    require(backend in backends, "backend", backend, known, f"pass backend={gpu.backend}, or leave it out")
    precision = given.get("precision", backends[backend][0])
    of = f"gpu={gpu.name}" if backend == gpu.backend else f"gpu={gpu.name} backend={backend}"
    allowed = f"{', '.join(backends[backend])} for {of}"
    require(precision in backends[backend], "precision", precision, allowed, "pass one of these")
    config = compose_config(
        CONF, "build", [*(o for o in overrides if not o.startswith("precision=")), f"precision={precision}"]
    )
    checkpoint, name, arch = _source(config, gpu)
    usual = config.gpu.get("usual_context") or arch.max_position_embeddings
    context = config.gpu.limits.context or min(usual, arch.max_position_embeddings)
    limits = Limits(
        context,
        config.gpu.limits.slots,
        arch.canvas_length,
        arch.vocab_size,
        config.gpu.limits.queue,
        config.gpu.limits.cache_tokens,
    )
    for limit in ("slots", "context", "queue", "cache_tokens"):
        value = getattr(limits, limit)
        good = (isinstance(value, int) and value >= 1) or (limit == "cache_tokens" and value is None)
        require(good, f"gpu.limits.{limit}", value, "an integer >= 1", f"pass gpu.limits.{limit}=8")
    for switch in ("compile", "unified"):
        require(isinstance(config[switch], bool), switch, config[switch], "true or false", f"pass {switch}=true")
    loss = config.largest_loss
    require(
        isinstance(loss, int | float) and 0 <= loss <= 1,
        "largest_loss",
        loss,
        "a number from 0 to 1",
        "pass largest_loss=0.02",
    )
    recipe = Recipe.from_config(config.precision)
    classes = set(recipe.quantize)
    require(
        gpu.backend != "cuda" or classes in (set(), {"experts", "attention", "mlp"}),
        "precision.quantize",
        sorted(classes),
        "[experts, attention, mlp] or none of them, for the cuda backend",
        f"pass gpu={gpu.name} without precision.quantize",
    )
    require(
        context <= arch.max_position_embeddings,
        "gpu.limits.context",
        context,
        f"at most {arch.max_position_embeddings}, the model's max_position_embeddings",
        f"pass gpu.limits.context={arch.max_position_embeddings}",
    )
    built_for = gpu.name if backend == gpu.backend else f"{gpu.name}-{backend}"
    out = Path(config.out) if config.out else Path("engines") / name / f"{built_for}-{precision}"
    return Plan(
        checkpoint=checkpoint,
        name=name,
        out=out,
        gpu=gpu.name,
        backend=backend,
        sm=gpu.sm,
        memory_gb_per_second=gpu.memory_gb_per_second,
        recipe=recipe,
        limits=limits,
        compile=config.compile,
        calibration=_calibration(config, recipe, backend),
        largest_loss=config.largest_loss,
        unified=config.unified and recipe.format is not None and not recipe.static,
        arch=arch,
    )


def _source(config: DictConfig, gpu: DictConfig) -> tuple[Path | None, str, Architecture]:
    """The checkpoint directory or None, the model's name, its shapes."""
    missing = OmegaConf.is_missing(config, "checkpoint")
    weights = config.weights
    require(weights in (None, "random"), "weights", weights, "random, or nothing", "pass weights=random")
    if weights is None:
        if missing:
            fix = "pass checkpoint=DIR; `make train` writes one"
            raise FieldError("checkpoint", None, "a checkpoint directory", fix)
        checkpoint = Path(config.checkpoint)
        return checkpoint, checkpoint.resolve().name, Architecture.load(checkpoint)
    require(missing, "checkpoint", config.get("checkpoint"), "none with weights=random", "leave one of them out")
    allowed = "a GPU of the cuda backend (h100, h200): random weights are made on it"
    require(gpu.backend == "cuda", "weights", weights, allowed, f"leave weights out, or pass gpu=h100 for {gpu.name}")
    return None, f"random_{config.model}", configured(config.model)


def _calibration(config: DictConfig, recipe: Recipe, backend: str) -> Path | None:
    """The file that static scales of activations are found with; only where there are any."""
    given = config.calibration
    carried = None if config.weights is not None else Path(config.checkpoint) / CALIBRATION
    static = recipe.static or (recipe.format is not None and backend != "cuda")
    if not static:
        allowed = f"nothing: precision={recipe.name} calibrates nothing"
        require(given is None, "calibration", given, allowed, "leave it out")
        return None
    if given is None and carried is not None and carried.is_file():
        return carried
    good = given is not None and Path(given).is_file() and config.weights is None
    allowed = f"a JSONL file of conversations, here or as {CALIBRATION} of the checkpoint"
    require(good, "calibration", given, allowed, "pass calibration=FILE and a checkpoint, or precision=fp8")
    return Path(given)


def _normal(override: str) -> str:
    """``gpu=dgx-spark`` is ``gpu=dgx_spark``."""
    key, separator, value = override.partition("=")
    return f"{key}{separator}{value.replace('-', '_')}" if key == "gpu" else override


def gpu_name(name: str) -> str:
    """The target that ``name`` means.

    Raises:
        FieldError: when there is none.
    """
    override = _normal(f"gpu={name}")
    check_choice(CONF, override)
    return override.removeprefix("gpu=")


def _gpu_config(name: str) -> DictConfig:
    config = OmegaConf.load(CONF / "gpu" / f"{name}.yaml")
    assert isinstance(config, DictConfig)
    return config
