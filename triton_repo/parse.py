"""From the tensors of a Triton request to the engine's request."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np

from nemo_diffgemma.errors import FieldError, require
from nemo_diffgemma.tokenizer import Message
from triton_repo.tensors import ALL_INPUTS, SUPPORTED, UNSUPPORTED
from trtllm_build.runtime.request import Request

if TYPE_CHECKING:
    from trtllm_build import Engine

_PROMPTS = ("text_input", "messages", "input_ids")
_SAMPLER = (
    "max_denoising_steps",
    "t_min",
    "t_max",
    "entropy_bound",
    "confidence_threshold",
    "stability_threshold",
)
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Generation:
    """A parsed request.

    Args:
        request: what the engine is asked.
        stream: one response a block, else one with everything.
        withheld: outputs the client does not want.
    """

    request: Request
    stream: bool
    withheld: frozenset[str]


def parse(arrays: Mapping[str, Any], parameters: Mapping[str, object], engine: Engine) -> Generation:
    """Read one request.

    Args:
        arrays: input tensors by name, numpy, shape ``[1, *dims]``; STRING elements are bytes.
        parameters: request parameters; Triton's HTTP generate endpoints put unknown JSON keys there.
        engine: whose tokenizer, sampler defaults and limits hold.

    Raises:
        FieldError: for the first thing that cannot be honoured.
    """
    for name, value in parameters.items():
        raise FieldError(name, value, f"only these inputs: {SUPPORTED}", "leave it out")
    inputs = {name: _values(name, array) for name, array in arrays.items()}
    _refuse_unsupported(inputs)
    stream = bool(_scalar(inputs, "stream", False))
    drafts = bool(_scalar(inputs, "drafts", False))
    require(stream or not drafts, "drafts", drafts, "false without stream", "pass stream=true")
    every = _scalar(inputs, "draft_every", int(drafts))
    require(stream or every == 0, "draft_every", every, "0 without stream", "pass stream=true")
    canvas: int | None = _scalar(inputs, "canvas_length", None)
    prompt = _prompt(inputs, engine)
    request = Request(
        prompt_ids=tuple(prompt),
        # A prompt that alone fills the context is for the engine to refuse, whose limit it is.
        max_tokens=_scalar(inputs, "max_tokens", max(1, engine.limits.context - len(prompt))),
        seed=_seed(inputs),
        sampler=replace(engine.sampler, **{name: inputs[name][0] for name in _SAMPLER if name in inputs}),
        ignore_eos=bool(_scalar(inputs, "ignore_eos", False)),
        min_tokens=_scalar(inputs, "min_tokens", 0),
        stop=tuple(word for word in inputs.get("stop_words", ()) if word),
        stop_token_ids=tuple(inputs.get("stop_token_ids", ())),
        draft_every=every,
        priority=_scalar(inputs, "priority", 0),
        deadline=_scalar(inputs, "deadline", None),
        canvas_length="fit" if canvas == 0 else canvas,
    )
    counts = ("num_input_tokens", "num_output_tokens")
    withheld = frozenset(name for name in counts if not _scalar(inputs, f"return_{name}", True))
    return Generation(request, stream, withheld)


def _values(name: str, array: Any) -> list[Any]:
    """A tensor's elements as Python values."""
    flat = np.asarray(array).reshape(-1)
    if ALL_INPUTS[name].dtype == "STRING":
        return [_text(name, item) for item in flat]
    if ALL_INPUTS[name].dtype == "FP32":
        # The shortest decimal of the float32: 0.4 on the wire is the 0.4 of a local call, not 0.4000000059604645.
        return [float(str(item)) for item in flat.astype(np.float32)]
    return list(flat.tolist())


def _text(name: str, item: bytes | str) -> str:
    try:
        return item.decode() if isinstance(item, bytes) else item
    except UnicodeDecodeError as error:
        raise FieldError(name, item[:40], "UTF-8 text", f"encode it as UTF-8 ({error.reason})") from error


def _scalar(inputs: Mapping[str, list[Any]], name: str, default: Any) -> Any:
    return inputs[name][0] if name in inputs else default


def _refuse_unsupported(inputs: Mapping[str, list[Any]]) -> None:
    for refused in UNSUPPORTED:
        name = refused.tensor.name
        for value in inputs.get(name, ()):
            allowed = " or ".join(f"{neutral!r}" for neutral in refused.neutral) or "nothing: it is not supported"
            require(value in refused.neutral, name, value, allowed, refused.instead)


def _seed(inputs: Mapping[str, list[Any]]) -> int:
    seed, alias = _scalar(inputs, "seed", None), _scalar(inputs, "random_seed", None)
    same = seed is None or alias is None or seed == alias
    require(same, "random_seed", alias, f"the same as seed ({seed})", "send one of the two")
    return int(seed if seed is not None else alias or 0)


def _prompt(inputs: Mapping[str, list[Any]], engine: Engine) -> list[int]:
    given = [name for name in _PROMPTS if name in inputs]
    found = " and ".join(given) or "none of them"
    require(len(given) == 1, "prompt", found, f"exactly one of {', '.join(_PROMPTS)}", "send one of them")
    (name,) = given
    if name == "input_ids":
        size = engine.limits.vocab_size
        strange = next((token for token in inputs[name] if not 0 <= token < size), None)
        allowed = f"token ids from 0 to {size - 1}"
        require(strange is None, name, strange, allowed, "tokenize with this checkpoint's tokenizer")
        return inputs[name]
    tokenizer = engine.tokenizer
    if tokenizer is None:
        raise FieldError(name, "text", "input_ids: this engine has no tokenizer", "send input_ids")
    value = inputs[name][0]
    if name == "text_input":
        return tokenizer.encode(value)
    try:
        return tokenizer.chat(_messages(value))
    except jinja2.TemplateError as error:
        raise FieldError(name, str(error), "what the chat template renders", "correct the conversation") from error


def _messages(text: str) -> Sequence[Message]:
    shape = 'a JSON list like [{"role": "user", "content": "..."}]'
    try:
        messages = json.loads(text)
    except json.JSONDecodeError as error:
        raise FieldError("messages", text[:80], shape, f"correct the JSON: {error}") from error
    require(isinstance(messages, list) and bool(messages), "messages", text[:80], shape, "send at least one message")
    for i, message in enumerate(messages):
        good = isinstance(message, dict) and set(message) == {"role", "content"}
        require(good, f"messages[{i}]", message, "an object with role and content, no more", f"send {shape}")
        role, content = message["role"], message["content"]
        require(role in _ROLES, f"messages[{i}].role", role, " or ".join(_ROLES), "use one of these roles")
        whole = isinstance(content, str) and content == content.encode(errors="ignore").decode()
        require(whole, f"messages[{i}].content", content, "a string without lone surrogates", "send text")
    return list(messages)
