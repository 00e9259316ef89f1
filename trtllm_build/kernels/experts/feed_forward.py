"""The experts of one layer: two products grouped by expert, in which every weight leaves memory once."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from nemo_diffgemma.architecture import Architecture
from trtllm_build.kernels.experts import down as second
from trtllm_build.kernels.experts import gate_up as first
from trtllm_build.kernels.experts.dispatch import dispatch
from trtllm_build.kernels.fp8 import quantize_rows
from trtllm_build.kernels.machine_code import Case
from trtllm_build.kernels.tile import Tile
from trtllm_build.quantization.fp8 import Fp8, Rows, rows_to_fp8, values_of, widen

TILES_GATE_UP = first.TILES
TILES_DOWN = second.TILES


def experts_reference(x: Rows, gate_up: Rows, down: Rows, weights: Tensor, ids: Tensor, dtype: torch.dtype) -> Tensor:
    """Weighted sum of each token's experts, ``down(gelu_tanh(gate(x)) * up(x))`` each.

    Args:
        x: ``[tokens, hidden]``, quantised where ``gate_up`` is.
        gate_up: ``[experts, 2 * width, hidden]``, the gate's rows first.
        down: ``[experts, hidden, width]``; where it is quantised, so are the rows that it multiplies, each by itself.
        weights: ``[tokens, top_k]`` float32.
        ids: ``[tokens, top_k]`` int32 expert ids.
        dtype: of the result, and of each expert's intermediate rows before they are quantised; ``down``'s where that
            is not.

    Returns:
        ``[tokens, hidden]``.
    """
    inputs, wide_gate_up, wide_down = widen(x), widen(gate_up), widen(down)
    parts = weights.new_zeros(*ids.shape, wide_down.shape[1])
    for expert in range(len(wide_down)):
        token, k = (ids == expert).nonzero(as_tuple=True)
        gate, up = (inputs[token] @ wide_gate_up[expert].T).chunk(2, dim=-1)
        inner = (F.gelu(gate, approximate="tanh") * up).to(dtype)
        inner = widen(rows_to_fp8(inner)) if isinstance(down, Fp8) else inner.float()
        parts[token, k] = inner @ wide_down[expert].T * weights[token, k, None]
    return parts.sum(1).to(dtype)


def experts(
    x: Rows,
    gate_up: Rows,
    down: Rows,
    weights: Tensor,
    ids: Tensor,
    dtype: torch.dtype,
    tile_gate_up: Tile = TILES_GATE_UP[0],
    tile_down: Tile = TILES_DOWN[0],
) -> Tensor:
    """As :func:`experts_reference`, for contiguous tensors; each expert's part of the sum is rounded to ``dtype``.

    For given tiles a token's result does not depend, to the last bit, on what other tokens there are.
    """
    order, counts = dispatch(ids, len(values_of(down)))
    inner: Rows = first.experts_gate_up(x, gate_up, order, counts, dtype, tile_gate_up)
    if isinstance(down, Fp8):
        inner = quantize_rows(values_of(inner))
    return second.experts_down(inner, down, weights, order, counts, dtype, tile_down)


def cases(arch: Architecture) -> Iterator[Case]:
    """Of both products."""
    yield from first.cases(arch)
    yield from second.cases(arch)
