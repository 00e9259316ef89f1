"""TensorRT's dynamic quantisation to NVFP4 in ONNX's own operators, so that a CPU rounds as the GPU will."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from trtllm_build.quantization.nvfp4 import BLOCK, LARGEST

_SMALLEST_SCALE, _LARGEST_SCALE = 2.0**-9, 448.0  # of e4m3, above 0


def rounded_to_nvfp4(x: str, scale: str, out: str) -> Iterator[onnx.NodeProto]:
    """Nodes that give ``out``: float32 ``x [tokens, width]``, each block of 16 scaled by its largest and rounded.

    Args:
        x: what is rounded.
        scale: that the blocks' e4m3 scales are relative to, ``[]`` float32.
        out: the result's name.
    """
    nodes: list[onnx.NodeProto] = []

    def op(kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"{out}.{len(nodes)}"
        nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def constant(value: float | list[int]) -> str:
        dtype = np.int64 if isinstance(value, list) else np.float32
        return op("Constant", value=numpy_helper.from_array(np.array(value, dtype)))

    blocks = op("Reshape", x, constant([0, -1, BLOCK]))
    largest = op("ReduceMax", op("Abs", blocks), constant([-1]), keepdims=1)
    wanted = op("Div", largest, op("Mul", scale, constant(LARGEST)))
    wanted = op("Clip", wanted, constant(_SMALLEST_SCALE), constant(_LARGEST_SCALE))
    narrow = op("Cast", wanted, to=TensorProto.FLOAT8E4M3FN)
    step = op("Mul", op("Cast", narrow, to=TensorProto.FLOAT), scale)
    scaled = op("Div", blocks, step)
    size, half, two = op("Abs", scaled), constant(0.5), constant(2.0)
    # e2m1's numbers are evenly spaced by a half below 2, by 1 below 4, by 2 above; Round takes a tie to the even one
    fine = op("Mul", op("Round", op("Mul", size, two)), half)
    coarse = op("Min", op("Mul", op("Round", op("Mul", size, half)), two), constant(LARGEST))
    number = op("Where", op("Less", size, constant(4.0)), op("Round", size), coarse)
    number = op("Where", op("Less", size, two), fine, number)
    back = op("Mul", op("Mul", op("Sign", scaled), number), step)
    nodes.append(helper.make_node("Reshape", [back, constant([0, -1])], [out]))
    yield from nodes
