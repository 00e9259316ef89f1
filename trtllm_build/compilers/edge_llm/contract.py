"""Inputs and outputs of the graph that TensorRT Edge-LLM 0.11.0 exports for DiffusionGemma, and the check of them.

One graph serves both phases: ``phase_is_encoder`` picks the layer scalars, ``context_mask_selector`` the mask. Tokens
of all sequences lie one after another (``physical_tokens``), keys and values in pages of 128 tokens. It is NVIDIA's own
contract, with logits of the vocabulary's width: their runtime samples, not this project's.

The lists were read off graphs exported by that version, and its runtime allocates by these names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nemo_diffgemma.architecture import Architecture
from nemo_diffgemma.errors import require

Dim = int | str
EXPORTER = "0.11.0"
PAGE = 128  # tokens of a page of keys and values
ALIGNMENT = 128  # the SM 12x expert plugin pads an expert's inner width to a multiple of this
EXPERT_OP = "NvFP4MoEPluginGeforce"  # of SM 120 and 121; the one for SM 100 to 110 wants another order of rows
REEXPORT = "make setup-edge-llm, then build again; the list is in trtllm_build/compilers/edge_llm/contract.py"

# name, dtype as ONNX spells it, shape; a name in a shape that is a field of Architecture stands for its value, others
# are dynamic; {layer} is every layer, with its own heads and head size
INPUTS: tuple[tuple[str, str, tuple[Dim, ...]], ...] = (
    ("inputs_embeds", "FLOAT16", ("physical_tokens", "hidden_size")),  # what the encode phase reads
    ("phase_is_encoder", "INT32", (1,)),
    ("canvas_ids", "INT32", ("physical_tokens",)),  # what the denoise phase reads
    ("prev_self_conditioning_embeds", "FLOAT16", ("physical_tokens", "hidden_size")),
    ("self_conditioning_temperature", "FLOAT", (1,)),
    ("past_key_values_{layer}", "FLOAT16", (2, "num_pages", PAGE, "kv_heads", "head_size")),
    ("rope_rotary_cos_sin_sliding", "FLOAT", ("physical_tokens", "head_dim")),
    ("rope_rotary_cos_sin_full", "FLOAT", ("physical_tokens", "global_head_dim")),
    ("positions", "INT32", ("physical_tokens",)),
    ("query_start_offsets", "INT32", ("num_sequences + 1",)),
    ("query_lengths", "INT32", ("num_sequences",)),
    ("past_lengths", "INT32", ("num_sequences",)),
    ("attention_sequence_lengths", "INT32", ("num_sequences",)),
    ("state_indices", "INT32", ("num_sequences",)),
    ("execution_phase_marker", "INT32", ("execution_phase_extent",)),
    ("context_sequence_count_carrier", "INT32", (0,)),
    ("kv_page_table", "INT32", ("num_sequences", 2, "max_pages_per_seq")),
    ("select_token_indices", "INT64", ("num_selected",)),
    ("context_mask_selector", "INT32", ("context_selector_len",)),
)
OUTPUTS: tuple[tuple[str, str, tuple[Dim, ...]], ...] = (
    ("logits", "FLOAT", ("num_selected", "vocab_size")),  # soft-capped, before the temperature
    ("next_self_conditioning_embeds", "FLOAT16", ("num_selected", "hidden_size")),
    ("present_key_values_{layer}", "FLOAT16", (2, "num_pages", PAGE, "kv_heads", "head_size")),
)
_STATIC = ("hidden_size", "head_dim", "global_head_dim", "vocab_size")


@dataclass(frozen=True)
class EdgePort:
    """An input or an output of a graph.

    Args:
        name: its name.
        dtype: as ONNX spells it (``FLOAT16``).
        shape: integers, and names of dynamic dimensions.
    """

    name: str
    dtype: str
    shape: tuple[Dim, ...]


def inputs(arch: Architecture) -> list[EdgePort]:
    """Inputs of the graph for ``arch``, in the exporter's order."""
    return _resolve(INPUTS, arch)


def outputs(arch: Architecture) -> list[EdgePort]:
    """Outputs of the graph for ``arch``, in the exporter's order."""
    return _resolve(OUTPUTS, arch)


def expert_inputs(arch: Architecture) -> list[EdgePort]:
    """The inputs that follow in an nvfp4 graph: expert weights, which the runtime binds from a file of their own.

    Two values of four bits lie in a byte; block scales, one float8 for 16 values, are tiled 128 x 4.
    """
    count, width = arch.num_experts, arch.hidden_size
    inner = -(-arch.moe_intermediate_size // ALIGNMENT) * ALIGNMENT
    ports = []
    for layer in range(arch.num_hidden_layers):
        kinds: tuple[tuple[str, str, tuple[int, ...]], ...] = (
            ("fc1_qweights", "INT8", (count, 2 * inner, width // 2)),
            ("fc1_blocks_scale", "INT8", (count, *_tiles(2 * inner, width))),
            ("fc1_alpha", "FLOAT", (count,)),
            ("fc2_qweights", "INT8", (count, width, inner // 2)),
            ("fc2_blocks_scale", "INT8", (count, *_tiles(width, inner))),
            ("fc2_alpha", "FLOAT", (count,)),
            ("input_global_scale", "FLOAT", (count,)),  # 1 everywhere: activations are not quantised
            ("down_input_scale", "FLOAT", (count,)),  # likewise
            ("e_score_correction_bias", "FLOAT", (count,)),  # the router's per_expert_scale
        )
        ports += [EdgePort(f"_model.model.layers.{layer}.moe_block.{n}", dtype, shape) for n, dtype, shape in kinds]
    return ports


def check_graph(graph: Mapping[str, Any], arch: Architecture, nvfp4: bool) -> None:
    """Compare what :mod:`trtllm_build.compilers.edge_llm.graph` found with the contract.

    Raises:
        FieldError: naming the first input, output or operator that differs.
    """
    found = [_port(entry) for entry in graph["inputs"]]
    wanted = inputs(arch)
    _compare("input", found[: len(wanted)], wanted)
    # the exporter keeps one of tensors that hold the same bytes, such as scales that are 1 everywhere
    experts = {port.name: port for port in expert_inputs(arch)} if nvfp4 else {}
    for port in found[len(wanted) :]:
        known = experts.get(port.name)
        require(port == known, field=f"edge_llm:input {port.name}", value=port, allowed=str(known), fix=REEXPORT)
    missing = {n for n in experts if n.endswith("_qweights")} - {port.name for port in found}
    require(not missing, field="edge_llm:inputs", value=sorted(missing), allowed="none missing", fix=REEXPORT)
    _compare("output", [_port(entry) for entry in graph["outputs"]], outputs(arch))
    layers = arch.num_hidden_layers
    ops = {"AttentionPlugin": layers} | ({EXPERT_OP: layers} if nvfp4 else {})
    require(graph["plugins"] == ops, field="edge_llm:plugins", value=graph["plugins"], allowed=str(ops), fix=REEXPORT)


def _resolve(entries: Sequence[tuple[str, str, tuple[Dim, ...]]], arch: Architecture) -> list[EdgePort]:
    ports = []
    for name, dtype, shape in entries:
        for layer in range(arch.num_hidden_layers if "{layer}" in name else 1):
            sizes = {n: getattr(arch, n) for n in _STATIC}
            sizes |= {"kv_heads": arch.kv_heads(layer), "head_size": arch.head_size(layer)}
            dims = tuple(sizes.get(d, d) if isinstance(d, str) else d for d in shape)
            ports.append(EdgePort(name.format(layer=layer), dtype, dims))
    return ports


def _tiles(rows: int, width: int) -> tuple[int, ...]:
    return -(-rows // 128), -(-width // 64), 32, 4, 4


def _port(entry: Sequence[Any]) -> EdgePort:
    return EdgePort(entry[0], entry[1], tuple(entry[2]))


def _compare(kind: str, found: Sequence[EdgePort], wanted: Sequence[EdgePort]) -> None:
    for i, port in enumerate(wanted):
        have = found[i] if i < len(found) else None
        require(have == port, field=f"edge_llm:{kind} {port.name}", value=have, allowed=str(port), fix=REEXPORT)
    extra = [port.name for port in found[len(wanted) :]]
    require(not extra, field=f"edge_llm:{kind}s", value=extra, allowed="none beyond the contract", fix=REEXPORT)
