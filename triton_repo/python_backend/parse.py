"""From the tensors of a Triton request to the engine's request."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from nemo_diffgemma.errors import FieldError, require
from triton_repo.tensors import ALL_INPUTS, SAMPLER_INPUTS, SUPPORTED, TRACEPARENT, UNSUPPORTED
from trtllm_build.runtime.request import Request

if TYPE_CHECKING:
    from nemo_diffgemma.chat import Message
    from nemo_diffgemma.tokenizer import Tokenizer
    from trtllm_build import Engine
    from trtllm_build.runtime.process import EngineProcess

PROMPTS = ("text_input", "messages", "input_ids")
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class ParsedRequest:
    """A parsed request.

    Args:
        request: what the engine is asked.
        stream: one response per block, else one with everything.
        max_tokens: most tokens of the answer.
        withheld: outputs the client does not want.
        gap: with a suffix, tokens before it, which are the answer; else None.
        decode: text of token ids.
        traceparent: W3C trace context of the caller; None where it sent none.
    """

    request: Request
    stream: bool
    max_tokens: int
    withheld: frozenset[str]
    gap: int | None
    decode: Callable[[Sequence[int]], str]
    traceparent: str | None


def parse(arrays: Mapping[str, Any], parameters: Mapping[str, object], engine: Engine | EngineProcess) -> ParsedRequest:
    """Read one request.

    Args:
        arrays: input tensors by name, numpy, shape ``[1, *dims]``; STRING elements are bytes.
        parameters: request parameters; Triton's HTTP generate endpoints put unknown JSON keys there.
        engine: whose tokenizer, sampler defaults and limits hold.

    Raises:
        FieldError: for the first thing that cannot be honoured.
    """
    for name, value in parameters.items():
        if name == "id":  # of the request, for Triton, whose HTTP endpoints pass it on
            continue
        raise FieldError(field=name, value=value, allowed=f"only these inputs: {SUPPORTED}", fix="leave it out")
    inputs = {name: _values(name, array) for name, array in arrays.items()}
    _refuse_unsupported(inputs)
    stream = bool(_scalar(inputs, "stream", False))
    drafts = bool(_scalar(inputs, "drafts", False))
    require(stream or not drafts, field="drafts", value=drafts, allowed="false without stream", fix="pass stream=true")
    every = _scalar(inputs, "draft_every", int(drafts))
    require(stream or every == 0, field="draft_every", value=every, allowed="0 without stream", fix="pass stream=true")
    canvas: int | None = _scalar(inputs, "canvas_length", None)
    prompt = _prompt(inputs, engine)
    end_id: int | None = _scalar(inputs, "end_id", None)
    # A prompt that alone fills the context is for the engine to refuse, whose limit it is.
    left = max(1, engine.limits.context - len(prompt))
    max_tokens = _scalar(inputs, "max_tokens", left)
    suffix = _suffix(inputs, engine, stream)
    if _scalar(inputs, "cut_max_tokens", False):
        require(
            not suffix,
            field="cut_max_tokens",
            value=True,
            allowed="false with suffix, whose place max_tokens is",
            fix="leave it out",
        )
        max_tokens = min(max_tokens, left)
    request = Request(
        prompt_ids=tuple(prompt),
        max_tokens=max_tokens + len(suffix),
        seed=_aliased(inputs, "seed", "random_seed"),
        sampler=replace(engine.sampler, **{name: inputs[name][0] for name in SAMPLER_INPUTS if name in inputs}),
        temperature=_scalar(inputs, "temperature", 1.0),
        top_p=_scalar(inputs, "top_p", 1.0),
        ignore_eos=bool(_scalar(inputs, "ignore_eos", False)) or end_id is not None,
        min_tokens=_aliased(inputs, "min_tokens", "min_length"),
        stop=tuple(word for word in inputs.get("stop_words", ()) if word),
        stop_token_ids=(*inputs.get("stop_token_ids", ()), *([] if end_id in (None, -1) else [end_id])),
        pinned={max_tokens + i: token for i, token in enumerate(suffix)},
        draft_every=every,
        priority=_scalar(inputs, "priority", 0),
        client=_scalar(inputs, "client", ""),
        cache_salt=_scalar(inputs, "cache_salt", ""),
        deadline=_scalar(inputs, "deadline", None),
        canvas_length="fit" if canvas == 0 else canvas,
    )
    counts = ("num_input_tokens", "num_output_tokens")
    withheld = frozenset(name for name in counts if not _scalar(inputs, f"return_{name}", True))
    decode = engine.tokenizer.decode if engine.tokenizer is not None else lambda _ids: ""
    return ParsedRequest(
        request, stream, max_tokens, withheld, max_tokens if suffix else None, decode, _traceparent(inputs)
    )


def _values(name: str, array: Any) -> list[Any]:
    """A tensor's elements as Python values."""
    flat = np.asarray(array).reshape(-1)
    most = ALL_INPUTS[name].most_items
    require(len(flat) <= most, field=name, value=f"{len(flat)} elements", allowed=f"at most {most}", fix="shorten it")
    if ALL_INPUTS[name].dtype == "STRING":
        return [_text(name, item) for item in flat]
    if ALL_INPUTS[name].dtype == "FP32":
        # The shortest decimal of the float32: 0.4 on the wire is the 0.4 of a local call, not 0.4000000059604645.
        return [float(str(item)) for item in flat.astype(np.float32)]
    return list(flat.tolist())


def _text(name: str, item: bytes) -> str:
    most = ALL_INPUTS[name].most_bytes
    require(
        len(item) <= most, field=name, value=f"{len(item)} bytes", allowed=f"at most {most} bytes", fix="shorten it"
    )
    try:
        return item.decode()
    except UnicodeDecodeError as error:
        raise FieldError(
            field=name, value=item[:40], allowed="UTF-8 text", fix=f"encode it as UTF-8 ({error.reason})"
        ) from error


def _scalar(inputs: Mapping[str, list[Any]], name: str, default: Any) -> Any:
    return inputs[name][0] if name in inputs else default


def _refuse_unsupported(inputs: Mapping[str, list[Any]]) -> None:
    for refused in UNSUPPORTED:
        name = refused.tensor.name
        for value in inputs.get(name, ()):
            allowed = " or ".join(f"{neutral!r}" for neutral in refused.neutral) or "nothing: it is not supported"
            require(value in refused.neutral, field=name, value=value, allowed=allowed, fix=refused.instead)


def _aliased(inputs: Mapping[str, list[Any]], name: str, alias: str) -> int:
    """An input that has two names; 0 when neither is given."""
    value, other = _scalar(inputs, name, None), _scalar(inputs, alias, None)
    same = value is None or other is None or value == other
    require(same, field=alias, value=other, allowed=f"the same as {name} ({value})", fix="send one of the two")
    return int(value if value is not None else other or 0)


def _suffix(inputs: Mapping[str, list[Any]], engine: Engine | EngineProcess, stream: bool) -> list[int]:
    """Token ids that follow the answer; none without ``suffix``."""
    text = _scalar(inputs, "suffix", "")
    if not text:
        return []
    require(
        not stream,
        field="stream",
        value=True,
        allowed="false with suffix: the answer is one piece",
        fix="leave stream out",
    )
    given = "max_tokens" in inputs
    require(
        given,
        field="max_tokens",
        value=None,
        allowed="with suffix the number of tokens before it",
        fix="pass max_tokens=32",
    )
    tokenizer = _tokenizer(engine, "suffix")
    _require_room("suffix", text, tokenizer, engine)
    # as the prompt is read: control tokens are for those who write the whole text themselves
    return tokenizer.literal(text) if "messages" in inputs else tokenizer.encode(text)


def _traceparent(inputs: Mapping[str, list[Any]]) -> str | None:
    value: str | None = _scalar(inputs, "traceparent", None)
    good = value is None or TRACEPARENT.fullmatch(value) is not None
    require(
        good,
        field="traceparent",
        value=value,
        allowed="00-TRACE ID-PARENT ID-FLAGS in lower-case hexadecimal",
        fix="leave it out",
    )
    return value


def _tokenizer(engine: Engine | EngineProcess, name: str) -> Tokenizer:
    if engine.tokenizer is None:
        raise FieldError(
            field=name, value="text", allowed="input_ids: this engine has no tokenizer", fix="send input_ids"
        )
    return engine.tokenizer


def _prompt(inputs: Mapping[str, list[Any]], engine: Engine | EngineProcess) -> list[int]:
    given = [name for name in PROMPTS if name in inputs]
    found = " and ".join(given) or "none of them"
    require(
        len(given) == 1,
        field="prompt",
        value=found,
        allowed=f"exactly one of {', '.join(PROMPTS)}",
        fix="send one of them",
    )
    (name,) = given
    if name == "input_ids":
        size = engine.limits.vocab_size
        strange = next((token for token in inputs[name] if not 0 <= token < size), None)
        allowed = f"token ids from 0 to {size - 1}"
        require(
            strange is None, field=name, value=strange, allowed=allowed, fix="tokenize with this checkpoint's tokenizer"
        )
        return inputs[name]
    tokenizer = _tokenizer(engine, name)
    value = inputs[name][0]
    if name == "messages":
        return tokenizer.chat(_messages(value))
    _require_room(name, value, tokenizer, engine)
    return tokenizer.encode(value)


def _require_room(name: str, text: str, tokenizer: Tokenizer, engine: Engine | EngineProcess) -> None:
    """Refuse a text that can never fit, before it is tokenised, which takes seconds of a core for each megabyte."""
    if (each := tokenizer.most_bytes_per_token) is None:
        return
    most, size = engine.limits.context * each, len(text.encode())
    require(
        size <= most,
        field=name,
        value=f"{size} bytes",
        allowed=f"at most {most} bytes (context {engine.limits.context}, a token is at most {each} bytes)",
        fix="shorten it, or build with a larger gpu.limits.context",
    )


def _messages(text: str) -> Sequence[Message]:
    shape = 'a JSON list like [{"role": "user", "content": "..."}]'
    try:
        messages = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FieldError(field="messages", value=text, allowed=shape, fix=f"correct the JSON: {error}") from error
    require(
        isinstance(messages, list) and bool(messages),
        field="messages",
        value=text,
        allowed=shape,
        fix="send at least one message",
    )
    for i, message in enumerate(messages):
        good = isinstance(message, dict) and set(message) == {"role", "content"}
        require(
            good,
            field=f"messages[{i}]",
            value=message,
            allowed="an object with role and content, no more",
            fix=f"send {shape}",
        )
        role, content = message["role"], message["content"]
        require(
            role in _ROLES,
            field=f"messages[{i}].role",
            value=role,
            allowed=" or ".join(_ROLES),
            fix="use one of these roles",
        )
        whole = isinstance(content, str) and content == content.encode(errors="ignore").decode()
        require(
            whole,
            field=f"messages[{i}].content",
            value=content,
            allowed="a string without lone surrogates",
            fix="send text",
        )
    return list(messages)
