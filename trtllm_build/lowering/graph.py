"""An ONNX graph under construction: nodes are named by what they give, weights go to disk as they come.

The graph is built node by node and not traced: a weight is never in a tracer's hands, so a model of any size is lowered
with one tensor in memory, and formats that torch cannot multiply (e2m1 with block scales) are as easy as others.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor

OPSET = 23  # the first with e2m1; Attention nodes, which come with it too, are not used
TENSORRT = "trt"  # domain of TensorRT's own operators
_IR = 11
_ALIGNMENT = 4096  # of weights in their file: whole pages, so that they can be mapped
_INLINE = 1024  # bytes: smaller tensors lie in the graph itself
DTYPES = {
    torch.float32: TensorProto.FLOAT,
    torch.bfloat16: TensorProto.BFLOAT16,
    torch.float8_e4m3fn: TensorProto.FLOAT8E4M3FN,
    torch.int64: TensorProto.INT64,
    torch.bool: TensorProto.BOOL,
}


class Graph:
    """Collects nodes, inputs, outputs and weights; weights are written to ``<path>.data`` at once.

    Args:
        path: of the ONNX file to be.
        dtype: that the network computes in, float32 or bfloat16.
    """

    def __init__(self, path: Path, dtype: torch.dtype):
        self.path = path
        self.dtype = dtype
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._weights: list[onnx.TensorProto] = []
        self._constants: dict[tuple[Any, ...], str] = {}
        self._data = path.with_name(path.name + ".data").open("wb")

    # -- what the graph reads and gives ----------------------------------------------------

    def input(self, name: str, dtype: torch.dtype, shape: Sequence[int | str]) -> str:
        """Declare an input; a dimension is a number, or a name when it is not known before."""
        self._inputs.append(helper.make_tensor_value_info(name, DTYPES[dtype], list(shape)))
        return name

    def output(self, name: str, value: str, dtype: torch.dtype, shape: Sequence[int | str]) -> None:
        """Give ``value`` under a name."""
        self._nodes.append(helper.make_node("Identity", [value], [name]))
        self._outputs.append(helper.make_tensor_value_info(name, DTYPES[dtype], list(shape)))

    # -- tensors -----------------------------------------------------------------------------

    def weight(self, name: str, tensor: Tensor) -> str:
        """Store a tensor once; ``name`` is how it is found again."""
        return self.packed(name, tensor, DTYPES[tensor.dtype], tensor.shape)

    def packed(self, name: str, tensor: Tensor, onnx_dtype: int, shape: Sequence[int]) -> str:
        """Store bytes that are elements of another type, such as two e2m1 in one."""
        content = tensor.detach().contiguous().flatten().view(torch.uint8).numpy()
        proto = onnx.TensorProto(name=name, data_type=onnx_dtype, dims=list(shape))
        if content.nbytes < _INLINE:
            proto.raw_data = content.tobytes()
        else:
            self._data.seek(-self._data.tell() % _ALIGNMENT, 1)
            place = {"location": Path(self._data.name).name, "offset": self._data.tell(), "length": content.nbytes}
            self._data.write(content.data)
            proto.data_location = TensorProto.EXTERNAL
            for key, value in place.items():
                proto.external_data.add(key=key, value=str(value))
        self._weights.append(proto)
        return name

    def constant(self, value: float | int | bool | Sequence[int], dtype: torch.dtype | None = None) -> str:
        """A small constant of the network's dtype or of another; equal ones are one."""
        dtype = dtype or self.dtype
        key = (tuple(value) if isinstance(value, Sequence) else value, dtype)
        if key not in self._constants:
            self._constants[key] = self.weight(f"constant_{len(self._constants)}", torch.tensor(value, dtype=dtype))
        return self._constants[key]

    def ints(self, *values: int) -> str:
        """A constant vector of int64: axes, shapes, bounds."""
        return self.constant(list(values), torch.int64)

    # -- nodes -------------------------------------------------------------------------------

    def op(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Add a node with one output and return its name."""
        return self.ops(kind, *inputs, outputs=1, domain=domain, **attributes)[0]

    def ops(self, kind: str, *inputs: str, outputs: int, domain: str = "", **attributes: Any) -> list[str]:
        """Add a node with several outputs and return their names."""
        number = len(self._nodes)
        names = [f"{kind.lower()}_{number}" + (f"_{i}" if i else "") for i in range(outputs)]
        self._nodes.append(helper.make_node(kind, inputs, names, name=names[0], domain=domain, **attributes))
        return names

    def cast(self, x: str, dtype: torch.dtype) -> str:
        """Convert to another dtype."""
        return self.op("Cast", x, to=DTYPES[dtype])

    def wide(self, x: str) -> str:
        """Of the network's dtype to float32."""
        return x if self.dtype == torch.float32 else self.cast(x, torch.float32)

    def narrow(self, x: str) -> str:
        """Of float32 to the network's dtype."""
        return x if self.dtype == torch.float32 else self.cast(x, self.dtype)

    def shape(self, x: str, axis: int) -> str:
        """One dimension, ``[1]`` int64."""
        return self.op("Shape", x, start=axis, end=axis + 1)

    def count(self, size: str) -> str:
        """``0, 1, ..`` up to a size ``[1]``, int64."""
        zero, one = self.constant(0, torch.int64), self.constant(1, torch.int64)
        return self.op("Range", zero, self.op("Squeeze", size), one)

    def reshape(self, x: str, *shape: int) -> str:
        """Reshape; 0 keeps a dimension, -1 is what is left."""
        return self.op("Reshape", x, self.ints(*shape))

    # -- the end -----------------------------------------------------------------------------

    def save(self) -> None:
        """Write the ONNX file and check it."""
        self._data.close()
        graph = helper.make_graph(
            self._nodes, "diffusion_gemma", self._inputs, self._outputs, initializer=self._weights
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(TENSORRT, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR, producer_name="diffgemma")
        onnx.save_model(model, self.path)
        onnx.checker.check_model(str(self.path))
