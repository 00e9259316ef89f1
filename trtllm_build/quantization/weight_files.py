"""The bundle's weight files: written layer by layer, counted by class, compared with the checkpoint they came from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from nemo_diffgemma.architecture import Architecture
from nemo_diffgemma.checkpoint import Checkpoint, text_tensors
from nemo_diffgemma.errors import require
from nemo_diffgemma.weight_files import read_header
from trtllm_build.network.weights import SCALE, weight_files
from trtllm_build.quantization.fp8 import Fp8, Rows, rows_to_fp8
from trtllm_build.quantization.nvfp4 import BLOCK
from trtllm_build.quantization.recipe import FORMATS, Recipe, class_of
from trtllm_build.quantization.shards import write_file

_FP8 = FORMATS["fp8"]
BITS = {"float32": 32, "bfloat16": 16, _FP8: 8, FORMATS["nvfp4"]: 4}
_SLACK = 1e-5  # float32's own rounding, of the scale and of the division by it
_HEADER_DTYPES = {"F8_E4M3": _FP8, "BF16": "bfloat16", "F32": "float32"}


@dataclass(frozen=True)
class ClassCount:
    """What the bundle holds of one class of tensors, by what is stored.

    Args:
        name: of the class; ``scales`` for those of quantised tensors.
        dtype: they are stored in.
        parameters: number of them.
        bytes: they take.
    """

    name: str
    dtype: str
    parameters: int
    bytes: int


@dataclass(frozen=True)
class ClassError:
    """How far a quantised class is from the checkpoint.

    Args:
        name: of the class.
        tensors: compared.
        worst: largest error of a parameter over the format's own rounding error there; at most 1.
        relative: root-mean-square error over root-mean-square parameter.
    """

    name: str
    tensors: int
    worst: float
    relative: float


def quantize_weight(weight: Tensor, one_scale: bool = False) -> Fp8:
    """A weight ``[..., out, in]`` with a scale an output channel; of fused experts one is widened at a time.

    Args:
        weight: of one product, or ``[experts, out, in]``.
        one_scale: give all output channels of a matrix the same scale.
    """
    if weight.dim() == 2:
        return quantize_matrix(weight) if one_scale else rows_to_fp8(weight)
    values, scale = (
        torch.empty_like(weight, dtype=getattr(torch, _FP8)),
        torch.empty(weight.shape[:-1], device=weight.device),
    )
    for index, expert in enumerate(weight):
        quantized = quantize_matrix(expert) if one_scale else rows_to_fp8(expert)
        values[index], scale[index] = quantized.values, quantized.scale
    return Fp8(values, scale)


def quantize_matrix(weight: Tensor) -> Fp8:
    """A matrix ``[out, in]`` with one scale, given for every output channel."""
    flat = rows_to_fp8(weight.flatten())
    return Fp8(flat.values.view(weight.shape), flat.scale.expand(len(weight)))


def write_weights(checkpoint: Checkpoint, recipe: Recipe, folder: Path, progress: Callable[[str], None]) -> None:
    """Write the files that are not there yet; at most one layer and one tensor of the checkpoint are in memory."""
    folder.mkdir(exist_ok=True)
    files = weight_files(checkpoint.arch)
    for number, (file, names) in enumerate(files.items(), 1):
        target = folder / f"{file}.safetensors"
        if target.exists():
            continue
        tensors: dict[str, Tensor] = {}
        for ours, theirs in names.items():
            rows = stored_rows(ours, checkpoint.tensor(theirs), recipe)
            tensors |= {ours: rows.values, ours + SCALE: rows.scale} if isinstance(rows, Fp8) else {ours: rows}
        write_file(target, tensors)
        del tensors
        progress(f"{number}/{len(files)} {file}")


def stored_rows(name: str, tensor: Tensor, recipe: Recipe) -> Rows:
    """A weight as the recipe has it stored, by the network's name for it."""
    if class_of(name) not in recipe.quantize:
        return tensor.to(getattr(torch, recipe.dtype)).contiguous()
    return quantize_weight(tensor, recipe.static and class_of(name) == "experts")


def count_parameters(folder: Path) -> list[ClassCount]:
    """What the weight files hold, read from their headers."""
    counts: dict[tuple[str, str], list[int]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        for name, stored in read_header(path).items():
            dtype = _HEADER_DTYPES[stored.dtype]
            key = "scales" if name.endswith(SCALE) else class_of(name), dtype
            total = counts.setdefault(key, [0, 0])
            parameters = torch.Size(stored.shape).numel()
            total[0] += parameters
            total[1] += parameters * BITS[dtype] // 8
    return [ClassCount(*key, *total) for key, total in sorted(counts.items())]


def count_shapes(arch: Architecture, recipe: Recipe) -> list[ClassCount]:
    """What the weight files of an architecture would hold; nothing is allocated."""
    shapes, totals = text_tensors(arch), dict[str, int]()
    channels = numbers = 0  # of quantised tensors
    for names in weight_files(arch).values():
        for ours, theirs in names.items():
            kind, size = class_of(ours), torch.Size(shapes[theirs])
            totals[kind] = totals.get(kind, 0) + size.numel()
            if kind in recipe.quantize:
                channels, numbers = channels + size[:-1].numel(), numbers + size.numel()
    found = [ClassCount(c, d, totals[c], totals[c] * BITS[d] // 8) for c, d in recipe.dtypes.items()]
    if recipe.format == "fp8":
        found.append(ClassCount("scales", "float32", channels, 4 * channels))
    elif recipe.format == "nvfp4":
        found.append(ClassCount("scales", _FP8, numbers // BLOCK, numbers // BLOCK))
    return sorted(found, key=lambda c: c.name)


def check_quantized(counts: list[ClassCount], recipe: Recipe) -> None:
    """Raise :class:`FieldError` when a class that the recipe quantises has parameters that are not."""
    for c in counts:
        require(
            c.name not in recipe.quantize or c.dtype == _FP8,
            field=f"weights:{c.name}",
            value=f"{c.parameters:,} parameters in {c.dtype}",
            allowed=f"all of them in {_FP8}, as precision.quantize says",
            fix="report it with the checkpoint's config.json; no engine was written",
        )


def compare_weights(checkpoint: Checkpoint, folder: Path, layers: list[int]) -> list[ClassError]:
    """Read quantised tensors of some layers back and compare them with the checkpoint's.

    Raises:
        FieldError: naming the tensor that is further away than rounding to the format can put it.
    """
    sums: dict[str, list[float]] = {}
    for name, theirs, path in _quantized(checkpoint.arch, folder, layers):
        worst, error, square = _distance(checkpoint.tensor(theirs), path, name)
        require(
            worst <= 1 + _SLACK,
            field=f"weights:{theirs}",
            value=f"{worst:.2f} times {_FP8}'s rounding error",
            allowed="at most 1",
            fix=f"remove {path.parent.parent} and build again",
        )
        entry = sums.setdefault(class_of(name), [0, 0.0, 0.0, 0.0])
        entry[0] += 1
        entry[1] = max(entry[1], worst)
        entry[2] += error
        entry[3] += square
    return [ClassError(c, int(n), w, (e / s) ** 0.5) for c, (n, w, e, s) in sums.items()]


def _distance(original: Tensor, path: Path, name: str) -> tuple[float, float, float]:
    """Worst error over the format's, and sums of squared errors and squared parameters."""
    with safe_open(path, "pt") as file:
        values, scales = file.get_tensor(name), file.get_tensor(name + SCALE)
    worst, error, square = 0.0, 0.0, 0.0
    matrices = original.flatten(0, -3) if original.dim() > 2 else original[None]
    for w, v, s in zip(matrices, values.view(matrices.shape), scales.view(matrices.shape[:-1]), strict=True):
        wide, found = w.float(), v.float() * s[:, None]
        difference = (wide - found).abs()
        # 3 bits of mantissa: half a step is 1/16 of a normal number and 2^-10 of the scale below 2^-6 of it
        allowed = torch.maximum(wide.abs() / 16, s[:, None] * 2**-10)
        worst = max(worst, float((difference / allowed).max()))
        error += float(difference.square().sum(dtype=torch.float64))
        square += float(wide.square().sum(dtype=torch.float64))
    return worst, error, square


def _quantized(arch: Architecture, folder: Path, layers: list[int]) -> Iterator[tuple[str, str, Path]]:
    """The network's name, the checkpoint's name and the file of every quantised tensor of some layers."""
    for file, names in weight_files(arch).items():
        if not file.startswith("layer_") or int(file.removeprefix("layer_")) in layers:
            path = folder / f"{file}.safetensors"
            header = read_header(path)
            yield from ((ours, theirs, path) for ours, theirs in names.items() if ours + SCALE in header)
