"""A quantised checkpoint in ModelOpt's unified Hugging Face layout, streamed: one tensor of the source is held at once.

Names, shapes, scales and both quantisation configs are those that ``export_hf_checkpoint`` of ModelOpt 0.47 writes for
``FP8_PER_CHANNEL_PER_TOKEN`` with ``*self_conditioning*`` excluded, and for its ``nvfp4_experts_only`` recipe of this
model but for the cache, which stays as it is: bit for bit (``tests/parity/test_modelopt.py``). ModelOpt itself has to
load the whole model to write them. Plain transformers does not read this layout: it would
initialise the experts anew, without an error.
"""

from __future__ import annotations

import json
import re
import shutil
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nemo_diffgemma.architecture import Architecture
from nemo_diffgemma.checkpoint import DECODER, Checkpoint
from nemo_diffgemma.errors import require
from nemo_diffgemma.files import check_replaceable, file_entries, partial_directory, put_in_place, write_json
from nemo_diffgemma.weight_files import Shape
from trtllm_build.manifest import MANIFEST
from trtllm_build.network.weights import layer_file
from trtllm_build.quantization.fp8 import DTYPE, rows_to_fp8
from trtllm_build.quantization.nvfp4 import BLOCK, LARGEST, Nvfp4, quantize_nvfp4
from trtllm_build.quantization.shards import DTYPES, ShardEntry, write_shards

# class of tensors, as in conf/precision -> the module of a layer that holds it
MODULES = {"attention": "self_attn", "mlp": "mlp", "experts": "experts"}
_PATTERNS = {"attention": "self_attn*", "mlp": "mlp*", "experts": "experts"}
QUANT_ALGO = {"fp8": "FP8_PER_CHANNEL_PER_TOKEN", "nvfp4": "NVFP4"}
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
    nvfp4_scales: Mapping[str, float] | None = None,
    max_shard_bytes: int = 5 * 2**30,
) -> Path:
    """Write ``checkpoint`` quantised beside ``directory``, with a manifest of its files, and put it in place at once.

    Every matrix of a quantised class becomes in fp8 ``weight [out, in]`` in float8_e4m3fn and ``weight_scale [out]`` in
    float32, without an ``input_scale``: activations are scaled per token at run time. In nvfp4 ``weight [out, in / 2]``
    holds two numbers a byte, ``weight_scale [out, in / 16]`` is float8_e4m3fn, ``weight_scale_2 []`` one an expert's
    first or second product, and ``input_scale []`` what calibration found. Fused experts become
    ``experts.N.{gate,up,down}_proj``, quantised or not. All else (routers, embedding, self-conditioning, norms,
    vision) is copied in the dtype that it is stored in.

    Args:
        checkpoint: what to quantise.
        directory: where to; one that was written here before is replaced.
        report: called with a line for every shard written.
        quantized: classes to quantise, of ``MODULES``; of nvfp4 only experts.
        nvfp4_scales: of what products read, their largest magnitude over 448: quantise to nvfp4; None for fp8.
        max_shard_bytes: a shard is closed before it would exceed this many bytes.

    Returns:
        ``directory``.

    Raises:
        FieldError: when no class or an unknown one is named, ``directory`` holds anything else than what was written
            here, a tensor is stored in an integer or a wider dtype, or one holds NaN or infinity.
    """
    known = bool(quantized) and set(quantized) <= set(MODULES)
    require(
        known,
        field="quantized",
        value=list(quantized),
        allowed=f"one or more of {', '.join(MODULES)}",
        fix="name the classes to quantise",
    )
    directory = Path(directory)
    other = directory.resolve() != checkpoint.directory.resolve()
    require(
        other,
        field="directory",
        value=str(directory),
        allowed="any but the checkpoint's own",
        fix="name another directory",
    )
    check_replaceable(directory, MANIFEST, "directory")
    partial = partial_directory(directory, uuid.uuid4().hex)
    partial.mkdir(parents=True)
    try:
        _fill(partial, checkpoint, report, quantized, nvfp4_scales, max_shard_bytes)
        put_in_place(partial, directory, MANIFEST, "directory")
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return directory


def unified_bytes(checkpoint: Checkpoint, quantized: Collection[str], format_: str | None) -> int:
    """Bytes of the tensors that :func:`write_unified` writes."""
    return sum(e.nbytes for e in _entries(checkpoint, {MODULES[name] for name in quantized}, format_ == "nvfp4"))


def _fill(
    folder: Path,
    checkpoint: Checkpoint,
    report: Callable[[str], None],
    quantized: Collection[str],
    nvfp4_scales: Mapping[str, float] | None,
    max_shard_bytes: int,
) -> None:
    modules = {MODULES[name] for name in quantized}
    entries = list(_entries(checkpoint, modules, nvfp4_scales is not None))
    write_shards(folder, entries, _tensors(checkpoint, modules, nvfp4_scales), max_shard_bytes, report)
    exclusions = excluded_modules(checkpoint.arch, quantized)
    _write_configs(checkpoint.directory, folder, exclusions, "fp8" if nvfp4_scales is None else "nvfp4")
    for path in [*(checkpoint.directory / name for name in _COPIED), *checkpoint.tokenizer_files]:
        if path.is_file():
            shutil.copyfile(path, folder / path.name)
    made_of = {"sha256": checkpoint.sha256}
    write_json(folder / MANIFEST, {"checkpoint": made_of, "files": file_entries(folder, MANIFEST)})


def excluded_modules(arch: Architecture, quantized: Collection[str]) -> list[str]:
    """Patterns of the modules left as they are, as ModelOpt gives them: a module with children ends in ``*``."""
    left = ["router*", *(_PATTERNS[name] for name in MODULES if name not in quantized)]
    patterns = [f"{stack}.{i}.{module}" for stack in _STACKS for i in range(arch.num_hidden_layers) for module in left]
    patterns += ["lm_head", f"{DECODER}self_conditioning*"]
    if arch.vision_config is not None:
        patterns += ["model.encoder.vision_tower*", "model.encoder.embed_vision*"]
    return sorted(patterns)


def _write_configs(source: Path, target: Path, exclusions: list[str], format_: str) -> None:
    """``hf_quant_config.json``, and ``config.json`` with the same facts in the spelling of Hugging Face's configs."""
    algorithm = QUANT_ALGO[format_]
    blocks: dict[str, Any] = {"group_size": BLOCK} if format_ == "nvfp4" else {}
    quantization = {"quant_algo": algorithm, "kv_cache_quant_algo": None, **blocks, "exclude_modules": exclusions}
    write_json(target / "hf_quant_config.json", {"producer": PRODUCER, "quantization": quantization})
    config: dict[str, Any] = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "modelopt",
        "quant_algo": algorithm,
        "ignore": exclusions,
        "producer": PRODUCER,
    }
    if format_ == "nvfp4":
        side = {"dynamic": False, "num_bits": 4, "type": "float", "group_size": BLOCK}
        groups = {"group_0": {"input_activations": side, "weights": side, "targets": ["Linear"]}}
        config["quantization_config"]["config_groups"] = groups
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


def _entries(checkpoint: Checkpoint, modules: Collection[str], nvfp4: bool) -> Iterator[ShardEntry]:
    """What will be written, in the order of :func:`_tensors`."""
    for name, shape in (checkpoint.text_shapes | checkpoint.vision_shapes).items():
        stored = checkpoint.stored_dtype(name)
        allowed = ", ".join(sorted(DTYPES.values()))
        require(
            stored in DTYPES.values(),
            field=f"checkpoint:{name}",
            value=stored,
            allowed=allowed,
            fix="convert the checkpoint",
        )
        for part in _parts(name, shape):
            if not _is_quantized(name, modules):
                yield ShardEntry(part.name, stored, part.shape)
            elif nvfp4:
                out, width = part.shape
                yield ShardEntry(part.name, DTYPES[torch.uint8], (out, width // 2))
                yield ShardEntry(f"{part.name}_scale", DTYPES[DTYPE], (out, width // BLOCK))
                yield ShardEntry(f"{part.name}_scale_2", DTYPES[torch.float32], ())
                yield ShardEntry(f"{part.name.removesuffix('weight')}input_scale", DTYPES[torch.float32], ())
            else:
                yield ShardEntry(part.name, DTYPES[DTYPE], part.shape)
                yield ShardEntry(f"{part.name}_scale", DTYPES[torch.float32], part.shape[:1])


def _tensors(
    checkpoint: Checkpoint, modules: Collection[str], nvfp4_scales: Mapping[str, float] | None
) -> Iterator[tuple[str, Tensor]]:
    for name in checkpoint.text_shapes | checkpoint.vision_shapes:
        # a call a tensor: its frame, and the tensor with it, is gone before the next is read
        tensor = checkpoint.tensor(name)
        if not _is_quantized(name, modules):
            yield from ((part.name, tensor[part.where]) for part in _parts(name, tuple(tensor.shape)))
        elif nvfp4_scales is None:
            yield from _fp8(name, tensor)
        else:
            yield from _nvfp4(name, tensor, nvfp4_scales)


def _fp8(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    for part in _parts(name, tuple(tensor.shape)):
        rows = tensor[part.where]
        quantised = rows_to_fp8(rows)
        yield part.name, quantised.values
        # a row of zeros is zeros under any scale: 1, as ModelOpt writes it, is safe to divide by
        yield f"{part.name}_scale", quantised.scale.masked_fill(~rows.any(-1), 1.0)


def _nvfp4(name: str, tensor: Tensor, scales: Mapping[str, float]) -> Iterator[tuple[str, Tensor]]:
    product = "experts_down" if name.endswith("down_proj") else "experts_gate_up"
    layer = int(name.removeprefix(f"{DECODER}layers.").partition(".")[0])
    read = torch.tensor(scales[f"{layer_file(layer)}.{product}"] / LARGEST)
    quantised: dict[int, Nvfp4] = {}
    for part in _parts(name, tuple(tensor.shape)):
        expert, rows = part.where
        assert isinstance(expert, int), "of nvfp4 only experts are written"
        if expert not in quantised:  # its halves share a scale
            quantised = {expert: quantize_nvfp4(tensor[expert])}
        found = quantised[expert]
        yield part.name, found.values[rows]
        yield f"{part.name}_scale", found.block_scale[rows]
        yield f"{part.name}_scale_2", found.scale
        yield f"{part.name.removesuffix('weight')}input_scale", read
