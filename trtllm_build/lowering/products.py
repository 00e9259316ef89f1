"""Products of tokens and a weight, plain or quantised: what TensorRT multiplies in the weight's own format.

Every product of this network is one of two matrices, the experts' too: all experts' gates and ups lie one below the
other, and their down projections side by side, so that the sum over experts is the product's own. At a canvas of 256
tokens per layer's experts are all used anyway, and what is between the two products is half of what stacks of matrices
would write.
"""

from __future__ import annotations

import torch
from onnx import TensorProto
from torch import Tensor

from trtllm_build.lowering.graph import DTYPES, TENSORRT, Graph
from trtllm_build.quantization.fp8 import Fp8
from trtllm_build.quantization.nvfp4 import BLOCK, LARGEST, Nvfp4

Weight = Tensor | Fp8 | Nvfp4
"""A matrix ``[out, in]`` as it is stored."""


def linear(g: Graph, x: str, name: str, weight: Weight, input_scale: float | None = None) -> str:
    """``[tokens, in] -> [tokens, out]``.

    Args:
        g: the graph.
        x: in the graph's dtype.
        name: of the weight in the graph.
        weight: matrix.
        input_scale: of a quantised product's input: its largest magnitude over 448, e4m3's largest. fp8 divides by it
            before rounding; in nvfp4 blocks scale themselves, and it is what their e4m3 scales are relative to.
    """
    if isinstance(weight, Tensor):
        return g.op("Gemm", x, g.weight(name, weight), transB=1)
    assert input_scale is not None, f"{name} is quantised, its input has no scale"
    if isinstance(weight, Fp8):
        return _fp8(g, x, name, weight, input_scale)
    return _nvfp4(g, x, name, weight, input_scale)


def _fp8(g: Graph, x: str, name: str, weight: Fp8, input_scale: float) -> str:
    rounded = {"output_dtype": DTYPES[weight.values.dtype]}
    back = {"output_dtype": DTYPES[g.dtype]}  # scales stay float32: bfloat16 would round each by up to 0.4 %
    scale = g.constant(input_scale, torch.float32)
    narrow = g.op("QuantizeLinear", x, scale, **rounded)
    rows = g.op("DequantizeLinear", narrow, scale, **back)
    values, scales = g.weight(name, weight.values), g.weight(f"{name}.scale", weight.scale.float())
    matrix = g.op("DequantizeLinear", values, scales, axis=0, **back)
    return g.op("Gemm", rows, matrix, transB=1)


def _nvfp4(g: Graph, x: str, name: str, weight: Nvfp4, input_scale: float) -> str:
    shape = [*weight.values.shape[:-1], 2 * weight.values.shape[-1]]
    values = g.packed(name, weight.values, TensorProto.FLOAT4E2M1, shape)
    blocks, scale = g.weight(f"{name}.block_scale", weight.block_scale), g.weight(f"{name}.scale", weight.scale)
    matrix = _blocks(g, values, blocks, scale)
    scale = g.constant(input_scale / LARGEST, torch.float32)
    attributes = {"axis": -1, "block_size": BLOCK, "scale_type": TensorProto.FLOAT8E4M3FN}
    codes, scales = g.ops("TRT_FP4DynamicQuantize", x, scale, outputs=2, domain=TENSORRT, **attributes)
    return g.op("Gemm", _blocks(g, codes, scales, scale), matrix, transB=1)


def _blocks(g: Graph, values: str, block_scale: str, scale: str) -> str:
    """e2m1 with scales of two levels back to the graph's dtype, as TensorRT recognises it."""
    dtype = {"output_dtype": DTYPES[g.dtype]}
    scales = g.op("DequantizeLinear", block_scale, scale, **dtype)
    return g.op("DequantizeLinear", values, scales, axis=-1, block_size=BLOCK, **dtype)
