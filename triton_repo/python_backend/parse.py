"""From the tensors of a Triton request to the engine's request."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from nemo_diffgemma.errors import FieldError, require
from triton_repo.python_backend.parameters import TIMEOUT, check_parameters
from triton_repo.python_backend.prompt import PROMPTS, Prompt, Room, TokenIds, tokenise
from triton_repo.tensors import ALL_INPUTS, MOST_STEPS, SAMPLER_INPUTS, TRACEPARENT, UNSUPPORTED
from trtllm_build.runtime.grammars import Grammars
from trtllm_build.runtime.request import Request
from trtllm_build.sampling import SamplerConfig

if TYPE_CHECKING:
    from trtllm_build import Engine
    from trtllm_build.runtime.process import EngineProcess


@dataclass(frozen=True)
class Manner:
    """How a request is to be answered.

    Args:
        stream: one response per block, else one with everything.
        max_tokens: most tokens of the answer.
        withheld: outputs the client does not want.
        gap: with a suffix, tokens before it, which are the answer; else None.
        decode: text of token ids.
        prompt_tokens: tokens of the prompt; 0 while it is not read.
        tools: of an answer that may call tools, whose grammars they are; else None.
    """

    stream: bool
    max_tokens: int
    withheld: frozenset[str]
    gap: int | None
    decode: Callable[[Sequence[int]], str]
    prompt_tokens: int = 0
    tools: Grammars | None = None


@dataclass(frozen=True)
class ParsedRequest:
    """A parsed request.

    Args:
        request: what the engine is asked.
        manner: how it is to be answered.
    """

    request: Request
    manner: Manner


@dataclass(frozen=True)
class Asked:
    """A request whose prompt is not read yet. All else that it asks for has been looked at.

    Args:
        prompt: to be read.
        manner: how it is to be answered.
        traceparent: W3C trace context of the caller; None where it sent none.
        request: what the engine is asked, but for the prompt; ``max_tokens`` is what was asked for, or the context.
        given: most tokens of the answer, where they were given.
        cut: whether ``given`` becomes what the context has left, where that is less.
    """

    prompt: Prompt
    manner: Manner
    traceparent: str | None
    request: Request
    given: int | None
    cut: bool

    def finish(self, ids: TokenIds, context: int) -> ParsedRequest:
        """The request, once its prompt is read, for an engine of so many tokens of context.

        Raises:
            FieldError: for what does not fit together.
        """
        # A prompt that alone fills the context is for the engine to refuse, whose limit it is.
        left = max(1, context - len(ids.prompt))
        max_tokens = left if self.given is None else min(self.given, left) if self.cut else self.given
        prompt, suffix = len(ids.prompt), len(ids.suffix)
        if suffix and prompt < context:  # otherwise the engine would name a sum that nobody sent
            fix = "lower max_tokens, shorten the prompt or the suffix, or build with a larger gpu.limits.context"
            counted = f"(context {context}, a prompt of {prompt} and a suffix of {suffix} tokens)"
            require(
                suffix < left,
                field="suffix",
                value=f"{suffix} tokens",
                allowed=f"at most {left - 1} tokens {counted}",
                fix=fix.removeprefix("lower max_tokens, "),
            )
            require(
                max_tokens + suffix <= left,
                field="max_tokens",
                value=max_tokens,
                allowed=f"at most {left - suffix} {counted}",
                fix=fix,
            )
        request = replace(
            self.request,
            prompt_ids=ids.prompt,
            max_tokens=max_tokens + len(ids.suffix),
            pinned={max_tokens + i: token for i, token in enumerate(ids.suffix)},
            grammar=ids.grammar or self.request.grammar,
        )
        gap = max_tokens if ids.suffix else None
        return ParsedRequest(
            request, replace(self.manner, max_tokens=max_tokens, gap=gap, prompt_tokens=len(ids.prompt))
        )


def parse(arrays: Mapping[str, Any], parameters: Mapping[str, object], engine: Engine) -> ParsedRequest:
    """Read one request, its prompt included.

    Raises:
        FieldError: for the first thing that cannot be honoured.
    """
    tokenizer = engine.tokenizer
    room = Room(engine.limits.context, None if tokenizer is None else tokenizer.most_bytes_per_token)
    asked = ask(arrays, parameters, engine, room)
    assert tokenizer is not None or asked.prompt.name == "input_ids", "others have been refused"
    if isinstance(asked.prompt.value, tuple) and not asked.prompt.suffix:
        ids = TokenIds(asked.prompt.value)
    else:
        assert tokenizer is not None, "others have been refused"
        ids = tokenise(asked.prompt, tokenizer, room)
    return asked.finish(ids, room.context)


def ask(
    arrays: Mapping[str, Any], parameters: Mapping[str, object], engine: Engine | EngineProcess, room: Room
) -> Asked:
    """Look at everything but the prompt, of which only the size.

    Args:
        arrays: input tensors by name, numpy, shape ``[1, *dims]``; STRING elements are bytes.
        parameters: request parameters; Triton's HTTP generate endpoints put unknown JSON keys there.
        engine: whose tokenizer, sampler defaults and limits hold.
        room: how long a prompt may be.

    Raises:
        FieldError: for the first thing that cannot be honoured.
    """
    check_parameters(parameters)
    _require_ids_fit(arrays, room.context)
    inputs = {name: values(name, array) for name, array in arrays.items()}
    _refuse_unsupported(inputs)
    for name in ("questions", "samples", "order", "joint"):
        require(
            name not in inputs,
            field=name,
            value="an input",
            allowed="only with questions, which a server answers",
            fix="send questions, or leave it out",
        )
    stream = bool(scalar(inputs, "stream", False))
    drafts = bool(scalar(inputs, "drafts", False))
    require(stream or not drafts, field="drafts", value=drafts, allowed="false without stream", fix="pass stream=true")
    every = scalar(inputs, "draft_every", int(drafts))
    require(stream or every == 0, field="draft_every", value=every, allowed="0 without stream", fix="pass stream=true")
    canvas: int | None = scalar(inputs, "canvas_length", None)
    prompt = _prompt(inputs, engine, stream)
    room.check_unread(prompt)
    end_id: int | None = scalar(inputs, "end_id", None)
    given: int | None = scalar(inputs, "max_tokens", None)
    cut = bool(scalar(inputs, "cut_max_tokens", False))
    require(
        not (cut and prompt.suffix),
        field="cut_max_tokens",
        value=True,
        allowed="false with suffix, whose place max_tokens is",
        fix="leave it out",
    )
    request = Request(
        prompt_ids=(0,),  # stands for what is not read yet
        max_tokens=room.context if given is None else given,
        seed=aliased(inputs, "seed", "random_seed"),
        sampler=_sampler(inputs, engine.sampler),
        temperature=scalar(inputs, "temperature", 1.0),
        top_p=scalar(inputs, "top_p", 1.0),
        ignore_eos=bool(scalar(inputs, "ignore_eos", False)) or end_id is not None,
        min_tokens=aliased(inputs, "min_tokens", "min_length"),
        stop=tuple(word for word in inputs.get("stop_words", ()) if word),
        stop_token_ids=(*inputs.get("stop_token_ids", ()), *([] if end_id in (None, -1) else [end_id])),
        draft_every=every,
        priority=scalar(inputs, "priority", 0),
        client=scalar(inputs, "client", ""),
        cache_salt=scalar(inputs, "cache_salt", ""),
        deadline=deadline(scalar(inputs, "deadline", None), parameters.get(TIMEOUT)),
        canvas_length="fit" if canvas == 0 else canvas,
        grammar=json.loads(prompt.grammar) if prompt.grammar else None,
    )
    tools = (
        isinstance(request.grammar, Mapping) and "tools" in request.grammar and engine.grammars.tool_tokens is not None
    )
    counts = ("num_input_tokens", "num_output_tokens")
    withheld = frozenset(name for name in counts if not scalar(inputs, f"return_{name}", True))
    decode = engine.tokenizer.decode if engine.tokenizer is not None else lambda _ids: ""
    manner = Manner(stream, given or 0, withheld, None, decode, tools=engine.grammars if tools else None)
    return Asked(prompt, manner, traceparent(inputs), request, given, cut)


def _sampler(inputs: Mapping[str, list[Any]], own: SamplerConfig) -> SamplerConfig:
    """The checkpoint's own sampler with what the request changes; a canvas has to end while its client stays."""
    given = {name: inputs[name][0] for name in SAMPLER_INPUTS if name in inputs}
    for name in ("max_denoising_steps", "stability_threshold"):
        most = max(MOST_STEPS, getattr(own, name))
        require(
            given.get(name, 0) <= most, field=name, value=given.get(name), allowed=f"at most {most}", fix="lower it"
        )
    return replace(own, **given)


def deadline(seconds: float | None, timeout: Any) -> float | None:
    """The earlier of our deadline, in seconds, and Triton's, in microseconds."""
    ends = [end for end in (seconds, None if timeout is None else timeout / 1e6) if end is not None]
    # what is no number is refused as the request's
    return seconds if seconds is not None and not seconds > 0 else min(ends, default=None)


def _require_ids_fit(arrays: Mapping[str, Any], context: int) -> None:
    """Refuse token ids that alone fill the context, in the engine's words, before they are looked at one by one."""
    size = np.asarray(arrays["input_ids"]).size if "input_ids" in arrays else 0
    require(
        size < context,
        field="prompt",
        value=f"{size} tokens",
        allowed=f"at most {context - 1} tokens (context {context})",
        fix="shorten the prompt, or build with a larger gpu.limits.context",
    )


def values(name: str, array: Any) -> list[Any]:
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


def scalar(inputs: Mapping[str, list[Any]], name: str, default: Any) -> Any:
    return inputs[name][0] if name in inputs else default


def _refuse_unsupported(inputs: Mapping[str, list[Any]]) -> None:
    for refused in UNSUPPORTED:
        name = refused.tensor.name
        for value in inputs.get(name, ()):
            allowed = " or ".join(f"{neutral!r}" for neutral in refused.neutral) or "nothing: it is not supported"
            require(value in refused.neutral, field=name, value=value, allowed=allowed, fix=refused.instead)


def aliased(inputs: Mapping[str, list[Any]], name: str, alias: str) -> int:
    """An input that has two names; 0 when neither is given."""
    value, other = scalar(inputs, name, None), scalar(inputs, alias, None)
    same = value is None or other is None or value == other
    require(same, field=alias, value=other, allowed=f"the same as {name} ({value})", fix="send one of the two")
    return int(value if value is not None else other or 0)


def _suffix(inputs: Mapping[str, list[Any]], stream: bool) -> str:
    """Text that follows the answer; empty for none."""
    text: str = scalar(inputs, "suffix", "")
    if not text:
        return ""
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
    return text


def _grammar(inputs: Mapping[str, list[Any]]) -> str:
    """JSON of the form that the answer has; empty for any."""
    text: str = scalar(inputs, "grammar", "")
    if not text:
        return ""
    shape = 'a JSON object, for example {"choice": ["yes", "no"]}'
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FieldError(field="grammar", value=text, allowed=shape, fix=f"correct the JSON: {error}") from error
    require(isinstance(found, dict), field="grammar", value=text, allowed=shape, fix="send one, or leave it out")
    return text


def traceparent(inputs: Mapping[str, list[Any]]) -> str | None:
    value: str | None = scalar(inputs, "traceparent", None)
    good = value is None or TRACEPARENT.fullmatch(value) is not None
    require(
        good,
        field="traceparent",
        value=value,
        allowed="00-TRACE ID-PARENT ID-FLAGS in lower-case hexadecimal",
        fix="leave it out",
    )
    return value


def _prompt(inputs: Mapping[str, list[Any]], engine: Engine | EngineProcess, stream: bool) -> Prompt:
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
    suffix, grammar = _suffix(inputs, stream), _grammar(inputs)
    if name == "input_ids":
        size = engine.limits.vocab_size
        strange = next((token for token in inputs[name] if not 0 <= token < size), None)
        allowed = f"token ids from 0 to {size - 1}"
        require(
            strange is None, field=name, value=strange, allowed=allowed, fix="tokenize with this checkpoint's tokenizer"
        )
    require(
        not (suffix and grammar),
        field="suffix",
        value=suffix,
        allowed="nothing beside grammar, which alone says what is written",
        fix="leave out suffix, or grammar",
    )
    if name != "input_ids" or suffix or grammar:
        require(
            engine.tokenizer is not None,
            field=name if name != "input_ids" else "suffix" if suffix else "grammar",
            value="text",
            allowed="input_ids: this engine has no tokenizer",
            fix="send input_ids",
        )
    value = tuple(inputs[name]) if name == "input_ids" else inputs[name][0]
    return Prompt(name, value, suffix, grammar)
