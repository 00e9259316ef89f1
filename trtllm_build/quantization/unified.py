"""An fp8 checkpoint in ModelOpt's unified Hugging Face layout, streamed: one tensor of the source is held at a time.

Names, shapes, scales and both quantisation configs are those that ``export_hf_checkpoint`` of ModelOpt 0.47 writes for
``FP8_PER_CHANNEL_PER_TOKEN`` with ``*self_conditioning*`` excluded, bit for bit (``tests/parity/test_modelopt.py``);
ModelOpt itself has to load the whole model to write them. Plain transformers does not read this layout: it would
initialise the experts anew, without an error.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nemo_diffgemma.architecture import Architecture
from nemo_diffgemma.checkpoint import DECODER, Checkpoint, Shape, replace_directory
from nemo_diffgemma.errors import require
from trtllm_build.kernels.fp8 import DTYPE, quantize_rows_reference
from trtllm_build.quantization.shards import DTYPES, Entry, write_json, write_shards

# class of tensors, as in conf/precision -> the module of a layer that holds it
MODULES = {"attention": "self_attn", "mlp": "mlp", "experts": "experts"}
_PATTERNS = {"attention": "self_attn*", "mlp": "mlp*", "experts": "experts"}
QUANT_ALGO = "FP8_PER_CHANNEL_PER_TOKEN"
# Readers know the layout by this name; the version is the one whose output this equals.
PRODUCER = {"name": "modelopt", "version": "0.47.0"}

_MATRIX = re.compile(re.escape(DECODER) + r"layers\.\d+\.(\w+)\.\w+_proj(\.weight)?")
_HALVES = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
# a reader that builds the encoder's modules of their own looks the exclusions up under their names
_STACKS = (f"{DECODER}layers", "model.encoder.language_model.layers")
_COPIED = ("generation_config.json", "processor_config.json", "preprocessor_config.json")


def write_unified(
    checkpoint: Checkpoint,
    directory: str | Path,
    report: Callable[[str], None],
    quantized: Collection[str] = tuple(MODULES),
    max_shard_bytes: int = 5 * 2**30,
) -> Path:
    """Write ``checkpoint`` in fp8 beside ``directory`` and put it in place with one rename.

    Every matrix of a quantised class becomes ``weight [out, in]`` in float8_e4m3fn and ``weight_scale [out]`` in
    float32, without an ``input_scale``: activations are scaled per token at run time. Fused experts become
    ``experts.N.{gate,up,down}_proj``, quantised or not. All else (routers, embedding, self-conditioning, norms,
    vision) is copied in the dtype that it is stored in.

    Args:
        checkpoint: what to quantise.
        directory: where to; replaced when it exists.
        report: called with a line for every shard written.
        quantized: classes to quantise, of ``MODULES``.
        max_shard_bytes: a shard is closed before it would exceed this many bytes.

    Returns:
        ``directory``.

    Raises:
        FieldError: when no class or an unknown one is named, ``directory`` is the checkpoint's own, a tensor is
            stored in an integer or a wider dtype, or one holds NaN or infinity.
    """
    known = bool(quantized) and set(quantized) <= set(MODULES)
    require(known, "quantized", list(quantized), f"one or more of {', '.join(MODULES)}", "name the classes to quantise")
    directory = Path(directory)
    other = directory.resolve() != checkpoint.directory.resolve()
    require(other, "directory", str(directory), "any but the checkpoint's own", "name another directory")
    partial = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    modules = {MODULES[name] for name in quantized}
    write_shards(partial, list(_entries(checkpoint, modules)), _tensors(checkpoint, modules), max_shard_bytes, report)
    exclusions = excluded_modules(checkpoint.arch, quantized)
    _write_configs(checkpoint.directory, partial, exclusions)
    for path in [*(checkpoint.directory / name for name in _COPIED), *checkpoint.tokenizer_files]:
        if path.is_file():
            shutil.copyfile(path, partial / path.name)
    replace_directory(partial, directory)
    return directory


def excluded_modules(arch: Architecture, quantized: Collection[str]) -> list[str]:
    """Patterns of the modules left as they are, as ModelOpt gives them: a module with children ends in ``*``."""
    left = ["router*", *(_PATTERNS[name] for name in MODULES if name not in quantized)]
    patterns = [f"{stack}.{i}.{module}" for stack in _STACKS for i in range(arch.num_hidden_layers) for module in left]
    patterns += ["lm_head", f"{DECODER}self_conditioning*"]
    if arch.vision_config is not None:
        patterns += ["model.encoder.vision_tower*", "model.encoder.embed_vision*"]
    return sorted(patterns)


def _write_configs(source: Path, target: Path, exclusions: list[str]) -> None:
    """``hf_quant_config.json``, and ``config.json`` with the same facts in the spelling of Hugging Face's configs."""
    quantization = {"quant_algo": QUANT_ALGO, "kv_cache_quant_algo": None, "exclude_modules": exclusions}
    write_json(target / "hf_quant_config.json", {"producer": PRODUCER, "quantization": quantization})
    config: dict[str, Any] = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "modelopt",
        "quant_algo": QUANT_ALGO,
        "ignore": exclusions,
        "producer": PRODUCER,
    }
    write_json(target / "config.json", config)


@dataclass(frozen=True)
class _Part:
    """A tensor of the new checkpoint, and where in the source's it lies."""

    name: str
    shape: Shape
    where: tuple[int | slice, ...] = (slice(None),)


def _parts(name: str, shape: Shape) -> Iterator[_Part]:
    """The tensor itself; of fused experts, the matrices of each in turn."""
    prefix, _, projection = name.rpartition(".")
    if projection not in _HALVES:
        yield _Part(name, shape)
        return
    experts, rows, width = shape
    halves = _HALVES[projection]
    height = rows // len(halves)
    for expert in range(experts):
        for i, half in enumerate(halves):
            where = (expert, slice(i * height, (i + 1) * height))
            yield _Part(f"{prefix}.{expert}.{half}.weight", (height, width), where)


def _is_quantized(name: str, modules: Collection[str]) -> bool:
    match = _MATRIX.fullmatch(name)
    return match is not None and match[1] in modules


def _entries(checkpoint: Checkpoint, modules: Collection[str]) -> Iterator[Entry]:
    """What will be written, in the order of :func:`_tensors`."""
    for name, shape in (checkpoint.text_shapes | checkpoint.vision_shapes).items():
        stored = checkpoint.stored_dtype(name)
        allowed = ", ".join(sorted(DTYPES.values()))
        require(stored in DTYPES.values(), f"checkpoint:{name}", stored, allowed, "convert the checkpoint")
        for part in _parts(name, shape):
            if _is_quantized(name, modules):
                yield Entry(part.name, DTYPES[DTYPE], part.shape)
                yield Entry(f"{part.name}_scale", DTYPES[torch.float32], part.shape[:1])
            else:
                yield Entry(part.name, stored, part.shape)


def _tensors(checkpoint: Checkpoint, modules: Collection[str]) -> Iterator[tuple[str, Tensor]]:
    for name in checkpoint.text_shapes | checkpoint.vision_shapes:
        # a call a tensor: its frame, and the tensor with it, is gone before the next is read
        yield from _converted(name, checkpoint.tensor(name), _is_quantized(name, modules))


def _converted(name: str, tensor: Tensor, quantize: bool) -> Iterator[tuple[str, Tensor]]:
    for part in _parts(name, tuple(tensor.shape)):
        rows = tensor[part.where]
        if not quantize:
            yield part.name, rows
            continue
        quantised = quantize_rows_reference(rows)
        yield part.name, quantised.values
        # a row of zeros is zeros under any scale: 1, as ModelOpt writes it, is safe to divide by
        yield f"{part.name}_scale", quantised.scale.masked_fill(~rows.any(-1), 1.0)
