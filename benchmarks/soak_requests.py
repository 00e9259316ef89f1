"""What the soak sends: requests with a known answer, over-long ones, and malformed ones."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from tritonclient.grpc import service_pb2

from triton_repo.client.wire import encode
from triton_repo.tensors import MODEL

if TYPE_CHECKING:
    from trtllm_build import Engine

_SAID = (
    "12 km in m",
    "Reverse: rugs green toys.",
    "19 February 2024",
    "To JSON: Mara orders 7 red lamps for Monday.",
    "What is the largest of 12, 345 and 67?",
    "größe, naïve, 日本, 🙂",
    "Sort: chair, lamp, table, rug",
    "a " * 20,
)
_LONG = 6  # canvases of a long answer


@dataclass(frozen=True)
class Known:
    """A request and its one right answer.

    Args:
        inputs: of the served model.
        tokens: what the engine answers in process.
        text: likewise.
        reason: likewise.
    """

    inputs: dict[str, Any]
    tokens: tuple[int, ...]
    text: str
    reason: str


def known(engine: Engine, count: int, long: bool) -> list[Known]:
    """Requests with their answers from ``engine``.

    Args:
        engine: has a tokenizer.
        count: how many.
        long: answers of several canvases, to the full length; else as the model ends them.
    """
    from trtllm_build.runtime.request import Request

    assert engine.tokenizer is not None
    inputs, requests = [], []
    most = engine.limits.canvas * (_LONG if long else 2)
    for seed in range(count):
        draw = random.Random(f"{long}:{seed}")
        said = draw.choice(_SAID)
        kind = seed % 3
        if kind == 0:
            messages = [{"role": "user", "content": said}]
            if draw.random() < 0.5:
                messages = [*messages, {"role": "assistant", "content": "Yes."}, {"role": "user", "content": "Again!"}]
            asked: dict[str, Any] = {"messages": messages}
            ids = engine.tokenizer.chat(messages)
        elif kind == 1:
            asked, ids = {"prompt": said}, engine.tokenizer.encode(said)
        else:
            ids = draw.choices(
                range(engine.limits.vocab_size), k=draw.randint(1, min(200, engine.limits.context - most))
            )
            asked = {"input_ids": ids}
        inputs.append({**asked, "max_tokens": most, "seed": seed, "ignore_eos": long})
        requests.append(Request(tuple(ids), most, seed, engine.sampler, ignore_eos=long))
    answers = engine.run(requests)
    return [
        Known(asked, answer.token_ids, answer.text, answer.finish_reason)
        for asked, answer in zip(inputs, answers, strict=True)
    ]


def over_long(draw: random.Random, context: int) -> dict[str, Any]:
    """Inputs of a request that does not fit a context of so many tokens."""
    ids = [1] * (context + draw.randint(0, 5000))
    return draw.choice(
        [
            {"input_ids": ids},
            {"input_ids": ids[: context // 2], "max_tokens": context},
            {"prompt": "word " * 20 * context},
            {"messages": [{"role": "user", "content": "word " * 20 * context}]},
        ]
    )


def _inputs(**values: Any) -> Any:
    """Triton's whole message, which has fields that our client never sends."""
    sent = encode({"max_tokens": 8, **values}, "malformed")
    return service_pb2.ModelInferRequest.FromString(sent.SerializeToString())


def _text(content: bytes) -> Any:
    request = _inputs(text_input="a")
    request.raw_input_contents[-1] = struct.pack("<I", len(content)) + content
    return request


def _replaced(content: bytes, **inputs: Any) -> Any:
    """A request whose last tensor, four token ids unless given, has other bytes than its shape says."""
    request = _inputs(**(inputs or {"input_ids": [1, 2, 3, 4]}))
    request.raw_input_contents[-1] = content
    return request


def _shaped(*shape: int) -> Any:
    request = _inputs(input_ids=[1, 2, 3, 4])
    del request.inputs[-1].shape[:]
    request.inputs[-1].shape.extend(shape)
    return request


def _another(name: str, datatype: str, content: bytes) -> Any:
    request = _inputs(input_ids=[1, 2])
    request.inputs.add(name=name, datatype=datatype, shape=[1, 1])
    request.raw_input_contents.append(content)
    return request


def _without_contents() -> Any:
    request = _inputs(input_ids=[1, 2])
    del request.raw_input_contents[:]
    return request


def _twice() -> Any:
    request = _inputs(input_ids=[1, 2])
    request.inputs.append(request.inputs[-1])
    request.raw_input_contents.append(request.raw_input_contents[-1])
    return request


def _parameter() -> Any:
    request = _inputs(input_ids=[1, 2])
    request.parameters["no_such_parameter"].int64_param = 1
    return request


_INT64 = np.array([1], dtype=np.int64).tobytes()
MALFORMED: dict[str, Callable[[], Any]] = {
    "wrong dtype": lambda: _another("seed", "INT64", _INT64),
    "dtype that does not exist": lambda: _another("seed", "FOO", _INT64),
    "unknown input": lambda: _another("max_new_tokens", "INT32", b"\0\0\0\1"),
    "unknown parameter": _parameter,
    "an input twice": _twice,
    "no prompt": _inputs,
    "two prompts": lambda: _inputs(text_input="a", input_ids=[1]),
    "JSON that ends early": lambda: _inputs(messages="["),
    "JSON of another shape": lambda: _inputs(messages=json.dumps({"role": "user"})),
    "deep JSON": lambda: _inputs(messages="[" * 100_000),
    "a role that does not exist": lambda: _inputs(messages=json.dumps([{"role": "admin", "content": "a"}])),
    "a lone surrogate": lambda: _inputs(messages='[{"role": "user", "content": "\\ud800"}]'),
    "text that is not UTF-8": lambda: _text(b"\xff\xfe\xfa"),
    "negative token id": lambda: _inputs(input_ids=[1, -1]),
    "token id past the vocabulary": lambda: _inputs(input_ids=[2**31 - 1]),
    "negative max_tokens": lambda: _inputs(input_ids=[1], max_tokens=-5),
    "negative steps": lambda: _inputs(input_ids=[1], max_denoising_steps=-1),
    "temperature": lambda: _inputs(input_ids=[1], temperature=0.3),
    "beams": lambda: _inputs(input_ids=[1], beam_width=4),
    "fewer bytes than elements": lambda: _replaced(b"\1\0\0\0"),
    "no bytes": lambda: _replaced(b""),
    "more bytes than elements": lambda: _replaced(b"\0" * 4096),
    "half an element": lambda: _replaced(b"\0" * 15),
    "text longer than its bytes": lambda: _replaced(struct.pack("<I", 2**31 - 1) + b"a", text_input="a"),
    "batch of four": lambda: _shaped(4, 1),
    "negative shape": lambda: _shaped(1, -4),
    "huge shape": lambda: _shaped(1, 2**40),
    "no shape": lambda: _shaped(),
    "no contents": _without_contents,
    "unknown model": lambda: service_pb2.ModelInferRequest(model_name="no_such_model", id="malformed"),
    "unknown version": lambda: service_pb2.ModelInferRequest(model_name=MODEL, model_version="7", id="malformed"),
    "nothing at all": lambda: service_pb2.ModelInferRequest(),
}
"""Messages that have to be refused."""
