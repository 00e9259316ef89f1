"""The operations that the network is made of, and who can provide each.

Our own Triton kernels provide all of them, each in several cuts; for the heavy ones torch's own kernels are an
alternative. The build measures which to use on the GPU at hand (:mod:`trtllm_build.compilers.cuda.tune`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any

from torch import Tensor

from trtllm_build.backends.cuda import torch_ops
from trtllm_build.kernels import fp8, gate, linear, norm, residual
from trtllm_build.kernels.attention import cache, heads
from trtllm_build.kernels.attention import paged as attention
from trtllm_build.kernels.attention import tile as attention_tile
from trtllm_build.kernels.attention.tile import AttentionTile
from trtllm_build.kernels.experts import feed_forward as experts
from trtllm_build.kernels.experts import router
from trtllm_build.kernels.vocabulary import logits as scores
from trtllm_build.kernels.vocabulary import read_out as vocabulary

Op = Callable[..., Any]
TENSORRT_LLM = "tensorrt_llm"


@dataclass(frozen=True)
class Ops:
    """One callable an operation; signatures are those of :mod:`trtllm_build.kernels`."""

    quantize_rows: Op
    rms_norm: Op
    linear: Op
    heads: Op
    attend: Op
    append: Op
    after_attention: Op
    route: Op
    gelu_gated: Op
    experts: Op
    after_experts: Op
    read_out: Op


def attend(
    *arguments: Any,
    tile_global: AttentionTile = attention_tile.TILES[0],
    tile_sliding: AttentionTile = attention_tile.TILES[0],
    **more: Any,
) -> Tensor:
    """:func:`trtllm_build.kernels.attention.paged.attend`, with a cut for each kind of layer, whose heads differ."""
    more["tile"] = tile_global if arguments[5] is None else tile_sliding  # the window
    return attention.attend(*arguments, **more)


_MODULES = {
    "quantize_rows": fp8,
    "rms_norm": norm,
    "linear": linear,
    "heads": heads,
    "attend": attention,
    "append": cache,
    "after_attention": residual,
    "route": router,
    "gelu_gated": gate,
    "experts": experts,
    "after_experts": residual,
    "read_out": vocabulary,
}
NAMES = tuple(f.name for f in fields(Ops))
# Operation -> argument -> cuts to choose from, the default first.
CUTS: dict[str, dict[str, tuple[Any, ...]]] = {
    "linear": {"tile": linear.TILES},
    "attend": {"tile_global": attention_tile.TILES, "tile_sliding": attention_tile.TILES},
    "route": {"tile": router.TILES},
    "experts": {"tile_gate_up": experts.TILES_GATE_UP, "tile_down": experts.TILES_DOWN},
    "read_out": {"tile": scores.TILES},
}
# Operation -> provider -> callable, beside our own kernels.
OTHERS: dict[str, dict[str, Op]] = {
    "linear": {"torch": torch_ops.linear},
    "experts": {"torch": torch_ops.experts},
}


@dataclass(frozen=True)
class Provider:
    """A provider that exists for some engines only.

    Args:
        op: the callable.
        reference: what it is judged by: it may round elsewhere than our own kernels do.
    """

    op: Op
    reference: Op


@dataclass(frozen=True)
class Choice:
    """Who provides an operation.

    Args:
        provider: ``triton``, or one of :data:`OTHERS`.
        cuts: argument -> cut, of our own kernels; what is not named is the default.
    """

    provider: str
    cuts: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"provider": self.provider, "cuts": {name: asdict(cut) for name, cut in self.cuts.items()}}


def provided(name: str, choice: Choice) -> Op:
    """The callable that a choice means."""
    if choice.provider != "triton":
        return OTHERS[name][choice.provider]
    own: Op = attend if name == "attend" else getattr(_MODULES[name], name)
    return partial(own, **choice.cuts)


def reference(name: str) -> Op:
    """An operation in plain torch, on any device: what its providers are judged by."""
    op: Op = getattr(_MODULES[name], f"{name}_reference")
    return op


def triton_ops(choices: Mapping[str, Choice] | None = None) -> Ops:
    """Our own kernels, but for what ``choices`` give to others."""
    own = Choice("triton", {})
    return Ops(**{name: provided(name, (choices or {}).get(name, own)) for name in NAMES})


def reference_ops() -> Ops:
    """Every operation in plain torch."""
    return Ops(**{name: reference(name) for name in NAMES})


def chosen_ops(runtime: Mapping[str, Any]) -> Ops:
    """What the manifest's ``runtime`` says: our own kernels in their default cuts where nothing was measured."""
    choices = {}
    for name, found in runtime.get("ops", {}).items():
        if found["provider"] == TENSORRT_LLM:
            continue  # made of the engine's own weights, see trtllm_build.backends.cuda.fused
        cuts = {argument: type(CUTS[name][argument][0])(**cut) for argument, cut in found["cuts"].items()}
        choices[name] = Choice(found["provider"], cuts)
    return triton_ops(choices)
