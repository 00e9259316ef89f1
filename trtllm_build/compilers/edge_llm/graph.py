"""Look into an exported graph and compare its weights with the checkpoint's. Prints one JSON object.

Runs by itself in the exporter's environment, which has onnx; nothing of this project is imported, and nothing but one
tensor is held at a time.

    python graph.py EXPORTED CHECKPOINT
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import external_data_helper, numpy_helper
from safetensors import safe_open

_DOMAIN = "trt_edgellm"
_LAYER = re.compile(r"model\.decoder\.layers\.(\d+)\.(.+)")
_EXPERT = re.compile(r"experts\.(\d+)\.(gate|up|down)_proj\.(weight|weight_scale|weight_scale_2)")
_ROUNDING = 2.0**-11  # of float16, which everything is stored in
_SMALLEST = 2.0**-24  # float16's smallest number above zero


def main() -> None:
    """Check ``argv[1]/model.onnx`` against the safetensors of ``argv[2]``."""
    path, checkpoint = Path(sys.argv[1]) / "model.onnx", Path(sys.argv[2])
    model = onnx.load(path, load_external_data=False)
    # the exporter writes a stack trace, with paths of the machine it ran on, to every node
    for node in model.graph.node:
        del node.metadata_props[:]
    onnx.save(model, path)
    onnx.checker.check_model(str(path))  # by path: it follows the references to external data
    initial = {tensor.name for tensor in model.graph.initializer}
    report = {
        "onnx": onnx.__version__,
        "opset": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        "plugins": dict(Counter(n.op_type for n in model.graph.node if n.domain == _DOMAIN)),
        "nodes": len(model.graph.node),
        "inputs": [_port(value) for value in model.graph.input if value.name not in initial],
        "outputs": [_port(value) for value in model.graph.output],
        "weights": _compare(_Weights(model, path.parent), checkpoint),
    }
    print(json.dumps(report))


def _port(value: Any) -> tuple[str, str, list[int | str]]:
    kind = value.type.tensor_type
    dims = [d.dim_param or d.dim_value for d in kind.shape.dim]
    return value.name, onnx.TensorProto.DataType.Name(kind.elem_type), dims


def _open(path: Path) -> Any:
    return safe_open(path, "pt")


class _Weights:
    """The graph's constants and the experts beside it, read when asked for."""

    def __init__(self, model: Any, directory: Path):
        self._directory = directory
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        beside = directory / "external_nvfp4_moe_weights.safetensors"
        self._beside: Any = None
        if beside.is_file():
            self._beside = _open(beside)
        self._beside_names: list[str] = [*self._beside.keys()] if beside.is_file() else []

    def named(self, name: str) -> torch.Tensor | None:
        """A constant of the graph by its name."""
        entry = self._constants.get(name)
        return None if entry is None else self._read(entry)

    def expert(self, layer: int, kind: str, index: int) -> torch.Tensor | None:
        """One expert's part of a tensor beside the graph; None where there is none."""
        name = f"_model.model.layers.{layer}.moe_block.{kind}"
        if name not in self._beside_names:
            return None
        part: torch.Tensor = self._beside.get_slice(name)[index]
        return part

    def shaped(self, shape: tuple[int, ...]) -> Iterator[torch.Tensor]:
        """Every floating-point constant of a shape, of the graph and beside it."""
        kinds = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
        for entry in self._constants.values():
            if tuple(entry.dims) == shape and entry.data_type in kinds:
                yield self._read(entry)
        for name in self._beside_names:
            if tuple(self._beside.get_slice(name).get_shape()) == shape:
                yield self._beside.get_tensor(name)

    def _read(self, entry: Any) -> torch.Tensor:
        if not external_data_helper.uses_external_data(entry):
            return torch.from_numpy(numpy_helper.to_array(entry).copy())
        place = external_data_helper.ExternalDataInfo(entry)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(entry.data_type)
        path, count = self._directory / place.location, int(np.prod(entry.dims))
        return torch.from_numpy(np.fromfile(path, dtype, count, offset=place.offset or 0).reshape(tuple(entry.dims)))


def _compare(weights: _Weights, checkpoint: Path) -> dict[str, Any]:
    """Look for every text tensor of the checkpoint in the graph; the exporter passes over what it does not know."""
    compared, wrong = 0, []
    for path in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                for part, same in _verdicts(name, file, weights):
                    compared += 1
                    if not same:
                        wrong.append(part)
    return {"compared": compared, "wrong": wrong}


def _verdicts(name: str, file: Any, weights: _Weights) -> Iterator[tuple[str, bool]]:
    """Parts of a tensor, and whether the graph holds them."""
    layer = _LAYER.fullmatch(name)
    if name.startswith("model.encoder.") and not name.endswith(".layer_scalar"):
        return  # vision
    if layer is None:
        yield name, _found(file.get_tensor(name), name.replace("model.decoder.", "_model.model.", 1), weights)
        if name.endswith("embed_tokens.weight"):
            yield "lm_head", _found(file.get_tensor(name), "_model.lm_head.weight", weights)
        return
    number, rest = int(layer[1]), layer[2]
    prefix = f"_model.model.layers.{number}."
    expert = _EXPERT.fullmatch(rest)
    if expert is not None:
        function = {"weight": _packed, "weight_scale": _tiled, "weight_scale_2": _alpha}[expert[3]]
        matrix = "fc2" if expert[2] == "down" else "fc1"
        kind = {"weight": "qweights", "weight_scale": "blocks_scale", "weight_scale_2": "alpha"}[expert[3]]
        there = weights.expert(number, f"{matrix}_{kind}", int(expert[1]))
        yield name, there is not None and function(file.get_tensor(name), there, expert[2])
    elif rest in ("experts.gate_up_proj", "experts.down_proj"):
        rows = file.get_slice(name)
        for index in range(rows.get_shape()[0]):
            halves = rows[index].chunk(2) if rest.endswith("gate_up_proj") else (rows[index],)
            for half, projection in zip(halves, ("gate", "up") if len(halves) == 2 else ("down",), strict=True):
                target = f"{prefix}moe_block.experts._experts.{index}.{projection}_proj.weight"
                yield f"{name}[{index}].{projection}", _found(half, target, weights)
    elif not rest.startswith("experts."):  # input_scale stays behind: the plugin scales activations itself
        target = prefix + (f"moe_block.{rest}" if rest.startswith("router.") else rest)
        yield name, _found(file.get_tensor(name), target, weights)


def _found(wanted: torch.Tensor, name: str, weights: _Weights) -> bool:
    """Whether the graph has it under its name, or, once folded, under any: one constant stands for equal ones."""
    constant = weights.named(name.replace("_model.model.self_conditioning", "_model.self_conditioning"))
    if constant is not None:
        return _same(wanted, constant)
    # the router divides its scale by the root of the width before it multiplies
    factors = (1.0, wanted.shape[0] ** -0.5) if name.endswith("router.scale") else (1.0,)
    shapes = ((1,), ()) if wanted.numel() == 1 else (tuple(wanted.shape),)
    return any(_same(wanted.reshape(s).float() * f, c) for s in shapes for c in weights.shaped(s) for f in factors)


def _same(wanted: torch.Tensor, constant: torch.Tensor) -> bool:
    """Equal but for float16's rounding; NaN equals nothing."""
    wanted, constant = wanted.float(), constant.float()
    return wanted.shape == constant.shape and bool(
        ((wanted - constant).abs() <= 2 * _ROUNDING * wanted.abs() + _SMALLEST).all()
    )


def _packed(wanted: torch.Tensor, there: torch.Tensor, projection: str) -> bool:
    """Whether an expert's packed bytes are where the SM 12x plugin reads them: up before gate, each padded."""
    rows, width = wanted.shape
    begin = there.shape[0] // 2 if projection == "gate" else 0
    return torch.equal(there.view(torch.uint8)[begin : begin + rows, :width], wanted)


def _tiled(wanted: torch.Tensor, there: torch.Tensor, projection: str) -> bool:
    """Whether all block scales are among the tiled ones, each as often."""
    del projection  # gate and up are tiled together
    counts = [torch.bincount(t.contiguous().view(torch.uint8).flatten().long(), minlength=256) for t in (wanted, there)]
    return bool((counts[0] <= counts[1]).all())


def _alpha(wanted: torch.Tensor, there: torch.Tensor, projection: str) -> bool:
    """Whether the scale of the whole matrix is the expert's; gate and up share one."""
    del projection
    return torch.equal(wanted.reshape(()), there.reshape(()))


if __name__ == "__main__":
    main()
