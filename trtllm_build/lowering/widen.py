"""A lowered graph in float32 for ONNX Runtime on the CPU: the same nodes and the same stored weights.

Weights are widened as they are stored. The rounding of quantised products' inputs can be left out, so that what remains
is exact and can be compared closely: every other mistake shows. With it, the CPU computes what the GPU will, but for
sums in another order and for bfloat16 in between.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, external_data_helper, helper, numpy_helper
from torch import Tensor

from trtllm_build.lowering.graph import TENSORRT
from trtllm_build.lowering.simulate import rounded_to_nvfp4
from trtllm_build.quantization.nvfp4 import Nvfp4, dequantize

_BF16, _FLOAT = TensorProto.BFLOAT16, TensorProto.FLOAT


def write_widened(path: Path, target: Path, embed_scale: float, rounding: bool) -> None:
    """Write the graph at ``path`` in float32 to ``target``, a file in the same directory.

    Args:
        path: of the lowered graph.
        target: of the widened one; it reads the same file of weights.
        embed_scale: as float32 has it; bfloat16's differs by more than what is to be found.
        rounding: whether quantised products' inputs are rounded to their format.
    """
    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    tensors = {t.name: t for t in graph.initializer}
    tensors["embed_scale"].CopyFrom(numpy_helper.from_array(np.float32(embed_scale), "embed_scale"))
    makers = {name: node for node in graph.node for name in node.output}
    instead: dict[str, str] = {}  # a value and the one that takes its place
    nodes: list[onnx.NodeProto] = []
    for name in [t.name for t in graph.initializer if t.data_type == _BF16]:
        tensors[name].name = f"{name}.narrow"
        nodes.append(helper.make_node("Cast", [f"{name}.narrow"], [name], to=_FLOAT))
    for node in graph.node:
        if node.op_type == "DequantizeLinear":
            maker, stored = makers.get(node.input[0]), tensors.get(node.input[0])
            kind = "" if maker is None else maker.op_type
            if maker is not None and kind == "TRT_FP4DynamicQuantize" and node.input[0] == maker.output[0] and rounding:
                nodes += rounded_to_nvfp4(maker.input[0], maker.input[1], node.output[0])
                continue
            if maker is not None and kind in ("QuantizeLinear", "TRT_FP4DynamicQuantize") and not rounding:
                instead[node.output[0]] = maker.input[0]
                continue
            if stored is not None and stored.data_type == TensorProto.FLOAT4E2M1:
                wide = dequantize(stored_nvfp4(path, tensors, stored.name))
                graph.initializer.append(numpy_helper.from_array(wide.numpy(), node.output[0]))
                continue
        if node.domain == TENSORRT:
            continue
        nodes.append(node)
    for node in nodes:
        node.input[:] = [_followed(instead, name) for name in node.input]
        for attribute in node.attribute:
            if attribute.name in ("to", "output_dtype") and attribute.i == _BF16:
                attribute.i = _FLOAT
    kept = [t for t in graph.initializer if t.data_type != TensorProto.FLOAT4E2M1]
    new = helper.make_graph(_used(nodes, graph), graph.name, graph.input, graph.output, kept)
    for value in (*new.input, *new.output):
        if value.type.tensor_type.elem_type == _BF16:
            value.type.tensor_type.elem_type = _FLOAT
    onnx.save_model(helper.make_model(new, opset_imports=model.opset_import, ir_version=model.ir_version), target)


def stored_tensor(path: Path, tensor: onnx.TensorProto) -> Tensor:
    """A weight as it is stored, ``[bytes]`` uint8."""
    if tensor.data_location == TensorProto.EXTERNAL:
        info = external_data_helper.ExternalDataInfo(tensor)
        content = np.fromfile(path.parent / info.location, np.uint8, info.length, offset=info.offset)
        return torch.from_numpy(content)
    return torch.frombuffer(bytearray(tensor.raw_data), dtype=torch.uint8)


def stored_nvfp4(path: Path, tensors: dict[str, onnx.TensorProto], name: str) -> Nvfp4:
    """A quantised weight by its name in the graph."""
    values, blocks, scale = (tensors[n] for n in (name, f"{name}.block_scale", f"{name}.scale"))
    return Nvfp4(
        stored_tensor(path, values).view(values.dims[0], values.dims[1] // 2),
        stored_tensor(path, blocks).view(torch.float8_e4m3fn).view(*blocks.dims),
        stored_tensor(path, scale).view(torch.float32)[0],
    )


def _followed(instead: dict[str, str], name: str) -> str:
    while name in instead:
        name = instead[name]
    return name


def _used(nodes: list[onnx.NodeProto], graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Nodes that something reads: what scaled a dropped value is dropped with it."""
    wanted = {value.name for value in graph.output}
    kept: list[onnx.NodeProto] = []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            kept.append(node)
    return kept[::-1]
