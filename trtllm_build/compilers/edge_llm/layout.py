"""A checkpoint as TensorRT Edge-LLM 0.11.0 reads it.

Its transformers (5.14) rejects ``per_layer_config``: ``config.json`` spells the global layers' shapes out. And it
passes over tensors that it does not know, **without an error, leaving uninitialised memory in the graph**: in an
unquantised DiffusionGemma these are the routers and all experts, as their names are translated only for nvfp4. So
routers are written under the names of its modules here, and fused experts one by one. What arrived in the graph is
compared afterwards (:mod:`trtllm_build.compilers.edge_llm.graph`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from nemo_diffgemma.checkpoint import TOKENIZER_FILES, Checkpoint
from nemo_diffgemma.errors import require
from nemo_diffgemma.files import write_json
from nemo_diffgemma.hf_config import load_architecture, write_config
from nemo_diffgemma.weight_files import Shape
from trtllm_build.quantization.shards import ShardEntry, write_shards

NVFP4 = "NVFP4"
QUANT_CONFIG = "hf_quant_config.json"
_MAX_SHARD = 5 * 2**30
_ROUTER = re.compile(r"(model\.decoder\.layers\.\d+\.)(router\..+)")
_EXPERTS = re.compile(r"(model\.decoder\.layers\.\d+\.)experts\.(gate_up_proj|down_proj)")
_NEEDED = ("chat_template.jinja", "generation_config.json", "tokenizer.json")


def quantization(checkpoint: Path) -> str | None:
    """``NVFP4``, or None for a checkpoint that is not quantised.

    Raises:
        FieldError: for any other quantisation. The exporter takes an fp8 directory too, but reads it as fp8 with one
            scale per tensor and static activation scales, experts unread: its graph would compute something else.
    """
    path = checkpoint / QUANT_CONFIG
    if not path.is_file():
        return None
    algorithm = json.loads(path.read_text())["quantization"]["quant_algo"]
    require(
        algorithm == NVFP4,
        field=f"checkpoint:{QUANT_CONFIG}:quant_algo",
        value=algorithm,
        allowed=f"{NVFP4}, or a checkpoint that is not quantised, with backend=edge_llm",
        fix="pass precision=nvfp4 or precision=bf16",
    )
    return NVFP4


def write_layout(checkpoint: Path, directory: Path, report: Callable[[str], None]) -> None:
    """Write ``checkpoint`` for the exporter into the empty directory ``directory``; text only.

    An nvfp4 directory keeps its weights and gets links to them; of an unquantised one they are copied, one by one.

    Raises:
        FieldError: when the checkpoint lacks a tokenizer, a chat template or its generation config, is quantised in
            another way, or is not whole.
    """
    for name in _NEEDED:
        fix = f"put {name} beside the weights; `make train` writes it"
        require(
            (checkpoint / name).is_file(),
            field=f"checkpoint:{name}",
            value=None,
            allowed=f"{name}, which Edge-LLM asks for",
            fix=fix,
        )
    arch = load_architecture(checkpoint).with_changes(vision_config=None)
    config = write_config(arch, "bfloat16")
    if quantization(checkpoint) is None:
        _write_renamed(Checkpoint(checkpoint), directory, report)
    else:
        source = json.loads((checkpoint / "config.json").read_text())
        config["quantization_config"] = source["quantization_config"]
        _link(checkpoint, directory, [p.name for p in checkpoint.glob("model*.safetensors*")] + [QUANT_CONFIG])
    write_json(directory / "config.json", config)
    names = [n for n in (*TOKENIZER_FILES, "generation_config.json") if (checkpoint / n).is_file()]
    _link(checkpoint, directory, names)


def _link(source: Path, target: Path, names: list[str]) -> None:
    for name in names:
        (target / name).symlink_to((source / name).resolve())


def _write_renamed(checkpoint: Checkpoint, directory: Path, report: Callable[[str], None]) -> None:
    entries = [
        ShardEntry(part, checkpoint.stored_dtype(name), tuple(shape))
        for name, whole in checkpoint.text_shapes.items()
        for part, shape, _ in _parts(name, whole)
    ]
    write_shards(directory, entries, _tensors(checkpoint), _MAX_SHARD, report)


def _tensors(checkpoint: Checkpoint) -> Iterator[tuple[str, Tensor]]:
    for name, whole in checkpoint.text_shapes.items():
        tensor = checkpoint.tensor(name)
        for part, _, where in _parts(name, whole):
            yield part, tensor[where]


def _parts(name: str, shape: Shape) -> Iterator[tuple[str, Shape, Any]]:
    """Names in the exporter's module tree, and where in the tensor each lies."""
    fused = _EXPERTS.fullmatch(name)
    if fused is None:
        yield _ROUTER.sub(r"\1moe_block.\2", name), shape, ...
        return
    count, rows, width = shape
    halves = ("gate_proj", "up_proj") if fused[2] == "gate_up_proj" else ("down_proj",)
    height = rows // len(halves)
    for expert in range(count):
        for i, half in enumerate(halves):
            part = f"{fused[1]}moe_block.experts._experts.{expert}.{half}.weight"
            yield part, (height, width), (expert, slice(i * height, (i + 1) * height))
