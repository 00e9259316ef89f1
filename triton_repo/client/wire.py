"""The client's side of the wire: typed values into Triton's request message, its response message into a dataclass."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nemo_diffgemma.errors import FieldError
from triton_repo.client.protocol import ModelInferRequest
from triton_repo.tensors import ALL_INPUTS, ALL_OUTPUTS, MODEL, SUPPORTED, DType, Tensor

_RANGES: dict[DType, str] = {
    "STRING": "text that can be encoded as UTF-8",
    "BOOL": "True or False",
    "INT32": f"integers from {-(2**31)} to {2**31 - 1}",
    "UINT64": f"integers from 0 to {2**64 - 1}",
    "FP32": "finite numbers",
}
# Little-endian elements as `struct` spells them.
_FORMATS: dict[str, str] = {"BOOL": "?", "INT32": "i", "UINT64": "Q", "FP32": "f"}
_LARGEST_FLOAT = float.fromhex("0x1.fffffep+127")


@dataclass(frozen=True)
class Response:
    """One response of the server.

    Args:
        text: new text; for a provisional response the text of the whole canvas as it stands.
        token_ids: its token ids.
        provisional: a draft, which the next response may change.
        canvas_index: which canvas of the request, from 0; without streaming the last.
        denoising_steps: steps done on this canvas; without streaming on all canvases.
        entropy: mean entropy of the canvas after its last step, in nats; None before its first.
        finish_reason: ``stop``, ``length``, ``cancelled`` or ``deadline`` on the last response, None before.
        num_input_tokens: tokens of the prompt; None if the request declined it.
        num_output_tokens: tokens committed so far; None if the request declined it.
        max_tokens: most tokens that the answer could get; None from a server that does not say.
        canvas_steps: denoising steps of each canvas that is part of this response; none in drafts.
        step_entropies: the canvas's mean entropy after each of these steps, in nats, canvas after canvas.
        form_log_probability: with a grammar, of each of these canvases, nats, that it keeps to the form by itself.
        answers: with questions, JSON of an answer to each; without anything else that a generation has.
        tool_calls: calls of this response, JSON of ``name`` and ``arguments`` each.
        num_cached_tokens: tokens of the prompt that were in the cache of an earlier request; None before the last
            response, and from a server that does not say.
    """

    text: str
    token_ids: tuple[int, ...]
    provisional: bool
    canvas_index: int
    denoising_steps: int
    entropy: float | None
    finish_reason: str | None
    num_input_tokens: int | None
    num_output_tokens: int | None
    max_tokens: int | None = None
    canvas_steps: tuple[int, ...] = ()
    step_entropies: tuple[float, ...] = ()
    num_cached_tokens: int | None = None
    form_log_probability: tuple[float, ...] = ()
    answers: str | None = None
    tool_calls: tuple[str, ...] = ()


def encode(values: Mapping[str, object], request_id: str, model: str = MODEL) -> Any:
    """Triton's ``ModelInferRequest`` with those ``values`` that are not None.

    Raises:
        FieldError: for a name that the model has no input of, or a value that does not fit the input's type.
    """
    request = ModelInferRequest(model_name=model, id=request_id)
    for name, value in values.items():
        if value is None:
            continue
        tensor = ALL_INPUTS.get(name)
        if tensor is None:
            raise FieldError(field=name, value=value, allowed=f"one of {SUPPORTED}", fix="leave it out")
        listed = tensor.dims == (-1,) and isinstance(value, Sequence) and not isinstance(value, str)
        items = list(value) if listed and isinstance(value, Sequence) else [value]
        if not all(_fits(item, tensor) for item in items):
            raise FieldError(field=name, value=value, allowed=_RANGES[tensor.dtype], fix=f"pass {name} as such")
        datatype = "BYTES" if tensor.dtype == "STRING" else tensor.dtype
        request.inputs.add(name=name, datatype=datatype, shape=[1, len(items)])
        request.raw_input_contents.append(_content(items, tensor))
    return request


def decode(message: Any) -> Response:
    """The dataclass for Triton's ``ModelInferResponse``."""
    found = dict(zip((output.name for output in message.outputs), message.raw_output_contents, strict=True))
    values: dict[str, list[Any]] = {name: [None] if t.dims == (1,) else [] for name, t in ALL_OUTPUTS.items()}
    values |= {name: _items(content, ALL_OUTPUTS[name]) for name, content in found.items() if name in ALL_OUTPUTS}
    return Response(
        text=values["text_output"][0] or "",
        token_ids=tuple(values["output_ids"]),
        provisional=values["provisional"][0],
        canvas_index=values["canvas_index"][0],
        denoising_steps=values["denoising_steps"][0],
        entropy=values["entropy"][0],
        finish_reason=values["finish_reason"][0] or None,
        num_input_tokens=values["num_input_tokens"][0],
        num_output_tokens=values["num_output_tokens"][0],
        max_tokens=values["max_tokens"][0],
        canvas_steps=tuple(values["canvas_steps"]),
        step_entropies=tuple(values["step_entropies"]),
        num_cached_tokens=values["num_cached_tokens"][0],
        form_log_probability=tuple(values["form_log_probability"]),
        answers=values["answers"][0],
        tool_calls=tuple(values["tool_calls"]),
    )


def _content(items: Sequence[Any], tensor: Tensor) -> bytes:
    """Little-endian elements; strings each after their length in four bytes."""
    if tensor.dtype != "STRING":
        return struct.pack(f"<{len(items)}{_FORMATS[tensor.dtype]}", *items)
    return b"".join(struct.pack("<I", len(item)) + item for item in (text.encode() for text in items))


def _items(content: bytes, tensor: Tensor) -> list[Any]:
    """What :func:`_content` wrote."""
    if tensor.dtype != "STRING":
        return [item for (item,) in struct.iter_unpack(f"<{_FORMATS[tensor.dtype]}", content)]
    found, start = [], 0
    while start < len(content):
        (length,) = struct.unpack_from("<I", content, start)
        found.append(content[start + 4 : start + 4 + length].decode())
        start += 4 + length
    return found


def _fits(item: object, tensor: Tensor) -> bool:
    match tensor.dtype:
        case "STRING":
            # Lone surrogates, which a command line of undecodable bytes yields, have no UTF-8.
            return isinstance(item, str) and item == item.encode(errors="ignore").decode()
        case "BOOL":
            return isinstance(item, bool)
        case "FP32":
            number = isinstance(item, int | float) and not isinstance(item, bool)
            return number and isinstance(item, int | float) and -_LARGEST_FLOAT <= item <= _LARGEST_FLOAT
        case "INT32":
            return isinstance(item, int) and not isinstance(item, bool) and -(2**31) <= item < 2**31
        case "UINT64":
            return isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 2**64
