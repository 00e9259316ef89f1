"""What to build: the composed config, checked before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from nemo_diffgemma.architecture import Architecture
from nemo_diffgemma.checkpoint import CALIBRATION, HELD_OUT
from nemo_diffgemma.errors import FieldError, require
from nemo_diffgemma.hf_config import load_architecture
from nemo_diffgemma.hydra_config import check_choice, compose_config
from nemo_diffgemma.models import configured
from trtllm_build.fits import check_limits
from trtllm_build.limits import Limits
from trtllm_build.quantization.recipe import Recipe

CONF = Path(__file__).parent / "conf"
_MEASURE_QUALITY = ("cuda", "tensorrt_rtx")  # backends: they quantise, and answer questions on the CPU


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
        held_out: conversations (JSONL) with one right answer each, to measure quality on; None where none is.
        largest_loss: of exact match on held-out questions, against float32; a build that loses more fails.
        unified: whether a quantised checkpoint is also written in the unified Hugging Face layout.
        arch: the checkpoint's architecture.
        longest_question: tokens of the longest question that the build asks, with its answer; 0 before files are read.
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
    held_out: Path | None
    largest_loss: float
    unified: bool
    arch: Architecture
    longest_question: int = 0

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
    for key, value in given.items():
        fixed = key.startswith("gpu.") and not key.startswith("gpu.limits.")
        allowed = f"what gpu={given.get('gpu', 'cpu')} says, but for gpu.limits.*"
        require(not fixed, field=key, value=value, allowed=allowed, fix="leave it out, or name another gpu")
    named = "precision.name"
    require(named not in given, field=named, value=given.get(named), allowed="what precision says", fix="leave it out")
    gpu = _gpu_config(given.get("gpu", "cpu"))
    backend = given.get("backend", gpu.backend)
    backends = {gpu.backend: list(gpu.precisions), **gpu.get("others", {})}
    known = f"{', '.join(backends)} for gpu={gpu.name}"
    require(
        backend in backends,
        field="backend",
        value=backend,
        allowed=known,
        fix=f"pass backend={gpu.backend}, or leave it out",
    )
    precision = given.get("precision", backends[backend][0])
    of = f"gpu={gpu.name}" if backend == gpu.backend else f"gpu={gpu.name} backend={backend}"
    allowed = f"{', '.join(backends[backend])} for {of}"
    require(
        precision in backends[backend], field="precision", value=precision, allowed=allowed, fix="pass one of these"
    )
    config = compose_config(
        CONF, "build", [*(o for o in overrides if not o.startswith("precision=")), f"precision={precision}"]
    )
    paths = {key: _path(config, given, key) for key in ("checkpoint", "out", "calibration", "held_out")}
    checkpoint, name, arch = _source(config, gpu, paths["checkpoint"], given)
    usual = config.gpu.get("usual_context") or arch.max_position_embeddings
    context = config.gpu.limits.context
    if context is None:
        context = min(usual, arch.max_position_embeddings)
    limits = Limits(
        context,
        config.gpu.limits.slots,
        arch.canvas_length,
        arch.vocab_size,
        config.gpu.limits.queue,
        config.gpu.limits.cache_tokens,
    )
    for switch in ("compile", "unified"):
        require(
            isinstance(config[switch], bool),
            field=switch,
            value=config[switch],
            allowed="true or false",
            fix=f"pass {switch}=true",
        )
    loss = config.largest_loss
    require(
        isinstance(loss, int | float) and not isinstance(loss, bool) and 0 <= loss <= 1,
        field="largest_loss",
        value=loss,
        allowed="a number from 0 to 1",
        fix="pass largest_loss=0.02",
    )
    recipe = Recipe.from_config(config.precision)
    classes = set(recipe.quantize)
    require(
        gpu.backend != "cuda" or classes in (set(), {"experts", "attention", "mlp"}),
        field="precision.quantize",
        value=sorted(classes),
        allowed="[experts, attention, mlp] or none of them, for the cuda backend",
        fix=f"pass gpu={gpu.name} without precision.quantize",
    )
    memory = None if gpu.memory_gb is None else gpu.memory_gb * 10**9
    check_limits(limits, arch, getattr(torch, recipe.dtype), memory)
    built_for = gpu.name if backend == gpu.backend else f"{gpu.name}-{backend}"
    out = paths["out"] or Path("engines") / name / f"{built_for}-{precision}"
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
        calibration=_calibration(paths["calibration"], checkpoint, recipe, backend),
        held_out=_held_out(paths["held_out"], checkpoint, backend),
        largest_loss=config.largest_loss,
        unified=config.unified and recipe.format is not None and not recipe.static,
        arch=arch,
    )


def _path(config: DictConfig, given: Mapping[str, str], key: str) -> Path | None:
    """A path as the user wrote it (Hydra takes ``2024`` for a number); None where none was given.

    Raises:
        FieldError: when it is empty.
    """
    if OmegaConf.is_missing(config, key) or config[key] is None:
        return None
    value = config[key] if isinstance(config[key], str) else given.get(key, str(config[key]))
    require(
        bool(value.strip()),
        field=key,
        value=value,
        allowed="a path, or nothing at all",
        fix=f"pass {key}=PATH, or leave it out",
    )
    return Path(value)


def _source(
    config: DictConfig, gpu: DictConfig, checkpoint: Path | None, given: Mapping[str, str]
) -> tuple[Path | None, str, Architecture]:
    """The checkpoint directory or None, the model's name, its shapes."""
    weights = config.weights
    require(
        weights in (None, "random"),
        field="weights",
        value=weights,
        allowed="random, or nothing",
        fix="pass weights=random",
    )
    if weights is None:
        allowed = "nothing without weights=random: a checkpoint knows its own shapes"
        require("model" not in given, field="model", value=given.get("model"), allowed=allowed, fix="leave it out")
        if checkpoint is None:
            fix = "pass checkpoint=DIR; `make train` writes one"
            raise FieldError(field="checkpoint", value=None, allowed="a checkpoint directory", fix=fix)
        return checkpoint, checkpoint.resolve().name, load_architecture(checkpoint)
    fix = "leave one of them out"
    require(checkpoint is None, field="checkpoint", value=str(checkpoint), allowed="none with weights=random", fix=fix)
    allowed = "a GPU of the cuda backend (h100, h200): random weights are made on it"
    require(
        gpu.backend == "cuda",
        field="weights",
        value=weights,
        allowed=allowed,
        fix=f"leave weights out, or pass gpu=h100 for {gpu.name}",
    )
    return None, f"random_{config.model}", configured(config.model)


def _calibration(given: Path | None, checkpoint: Path | None, recipe: Recipe, backend: str) -> Path | None:
    """The file that static scales of activations are found with; only where there are any."""
    static = recipe.static or (recipe.format is not None and backend != "cuda")
    if not static:
        allowed = f"nothing: precision={recipe.name} calibrates nothing"
        require(given is None, field="calibration", value=_shown(given), allowed=allowed, fix="leave it out")
        return None
    found = given or _carried(checkpoint, CALIBRATION)
    allowed = f"a JSONL file of conversations, here or as {CALIBRATION} of the checkpoint"
    good = found is not None and found.is_file() and checkpoint is not None
    require(
        good,
        field="calibration",
        value=_shown(given),
        allowed=allowed,
        fix="pass calibration=FILE and a checkpoint, or precision=fp8",
    )
    return found


def _held_out(given: Path | None, checkpoint: Path | None, backend: str) -> Path | None:
    """The file that quality is measured on; only where it is."""
    if checkpoint is None or backend not in _MEASURE_QUALITY:
        what = "random weights have" if checkpoint is None else f"a build for {backend} measures"
        require(
            given is None,
            field="held_out",
            value=_shown(given),
            allowed=f"nothing: {what} no quality",
            fix="leave it out",
        )
        return None
    allowed = f"a JSONL file of conversations, here or as {HELD_OUT} of the checkpoint"
    require(
        given is None or given.is_file(),
        field="held_out",
        value=_shown(given),
        allowed=allowed,
        fix="pass held_out=FILE, or leave it out",
    )
    return given or _carried(checkpoint, HELD_OUT)


def _carried(checkpoint: Path | None, name: str) -> Path | None:
    """A file that lies in the checkpoint's directory."""
    path = None if checkpoint is None else checkpoint / name
    return path if path is not None and path.is_file() else None


def _shown(path: Path | None) -> str | None:
    return None if path is None else str(path)


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
