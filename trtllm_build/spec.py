"""What an engine is made from: the files of a bundle, finished or still being built."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from nemo_diffgemma.architecture import Architecture
from nemo_diffgemma.errors import FieldError, require
from nemo_diffgemma.json_files import read_object
from trtllm_build.limits import Limits
from trtllm_build.sampling import SamplerConfig

PIECES = "pieces"
INPUT_SCALES = "input_scales.json"
_REBUILD = "build the engine again"
_AS_BUILT = "what a build writes there"
_Made = TypeVar("_Made", Architecture, SamplerConfig)


@dataclass(frozen=True)
class EngineSpec:
    """What backends and the engine read of a bundle.

    Args:
        directory: holds ``architecture.json``, ``sampler.json``, weights, perhaps compiled pieces and a tokenizer.
        limits: what the engine admits.
        runtime: how the build found that it runs best on its hardware; empty before it has looked.
        random_precision: of weights that are random, made anew at each loading; None for those in ``directory``.
        manifest: of a finished bundle; empty while it is being built.
    """

    directory: Path
    limits: Limits
    runtime: dict[str, Any] = field(default_factory=dict)
    random_precision: str | None = None
    manifest: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def arch(self) -> Architecture:
        """The network's shapes."""
        return self._made("architecture.json", Architecture)

    @cached_property
    def sampler(self) -> SamplerConfig:
        """The checkpoint's sampler defaults."""
        return self._made("sampler.json", SamplerConfig)

    def _made(self, name: str, kind: type[_Made]) -> _Made:
        """What a build wrote of a dataclass: every field of it, and no other."""
        where = f"engine:{name}"
        values = read_object(self.directory / name, where, _REBUILD)
        names = {f.name for f in fields(kind)}
        for key in sorted(names ^ values.keys()):
            found = "not a key of it" if key in values else "missing"
            raise FieldError(field=f"{where}:{key}", value=found, allowed=_AS_BUILT, fix=_REBUILD)
        made: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        try:
            return kind(**made)
        except FieldError as error:
            field = f"{where}:{error.field.removeprefix('model.')}"
            raise FieldError(field=field, value=error.value, allowed=error.allowed, fix=_REBUILD) from None

    @property
    def threads(self) -> int:
        """CPU threads that the build found fastest; 1 for an engine that computes elsewhere."""
        return int(self.runtime.get("threads", 1))

    @property
    def pieces_directory(self) -> Path | None:
        """Where the compiled pieces lie; None when the build found eager execution faster, or had no compiler."""
        return self.directory / PIECES if self.runtime["pieces"] == "compiled" else None

    @property
    def tokenizer_directory(self) -> Path | None:
        """Where the tokenizer lies; None for a bundle without one."""
        directory = self.directory / "tokenizer"
        return directory if directory.is_dir() else None

    def weight_path(self, file: str) -> Path:
        """Path of one weight file (``head``, ``layer_000``, ...)."""
        return self.directory / "weights" / f"{file}.safetensors"


def on_cpu(limits: Limits, asked: int = 0) -> Limits:
    """Limits under which a GPU's engine is computed on the CPU: all of its cache would be filled with zeros there.

    Args:
        limits: of the engine.
        asked: tokens of the longest question, with its answer, that it will be asked there.
    """
    return replace(limits, slots=8, context=min(limits.context, max(4096, asked)), cache_tokens=None)


def input_scales(directory: Path) -> dict[str, float]:
    """Scales of activations that calibration found for a bundle; none for recipes that need none."""
    path = directory / INPUT_SCALES
    found = read_object(path, f"engine:{INPUT_SCALES}", _REBUILD) if path.is_file() else {}
    for name, scale in found.items():
        good = isinstance(scale, int | float) and not isinstance(scale, bool) and scale > 0
        require(good, field=f"engine:{INPUT_SCALES}:{name}", value=scale, allowed="a number > 0", fix=_REBUILD)
    return found
