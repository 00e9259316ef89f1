"""A request's prompt: what is looked at at once, and how it becomes token ids, which may take long."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nemo_diffgemma.errors import FieldError, require

if TYPE_CHECKING:
    from nemo_diffgemma.chat import Message
    from nemo_diffgemma.decisions import Question
    from nemo_diffgemma.tokenizer import Tokenizer
    from trtllm_build.decisions.layout import Layout, Order
    from trtllm_build.grammar.token_automaton import TokenAutomaton

PROMPTS = ("text_input", "messages", "input_ids")
_ROLES = ("system", "user", "assistant", "tool")
# What a message of a role may have beside role and content.
_MORE = {"assistant": {"tool_calls"}, "tool": {"tool_call_id", "name"}}
# JSON spells a byte of text in at most six ("\\u0061"); of short texts braces and roles are most.
_JSON_BYTES, _LEAST_JSON = 6, 2**16


@dataclass(frozen=True)
class Decisions:
    """Questions about a prompt, and how they are laid out, see :class:`trtllm_build.decisions.layout.Layouts`."""

    questions: tuple[Question, ...]
    order: Order
    joint: bool

    @property
    def size(self) -> int:
        """Characters to be read."""
        texts = [q.instructions for q in self.questions]
        options = [o for q in self.questions for o in q.options]
        return sum(map(len, (*texts, *(o.description + str(o.value) for o in options))))


@dataclass(frozen=True)
class Prompt:
    """What is to be read of a request.

    Args:
        name: the input that it came in, one of :data:`PROMPTS`.
        value: its text, or token ids for ``input_ids``.
        suffix: text after the answer; empty for none.
        grammar: the form of the answer, JSON; empty for any.
        decisions: questions about it; None where something is to be generated.
        compiled: whether that is compiled already.
    """

    name: str
    value: str | tuple[int, ...]
    suffix: str = ""
    grammar: str = ""
    decisions: Decisions | None = None
    compiled: bool = False

    @property
    def size(self) -> int:
        """Characters to be read; token ids are not."""
        value = len(self.value) if isinstance(self.value, str) else 0
        return len(self.suffix) + len(self.grammar) + value + (0 if self.decisions is None else self.decisions.size)


@dataclass(frozen=True)
class TokenIds:
    """What a prompt has become, the suffix, the grammar (None for none, or one that is yet to be compiled), and where
    its questions are answered (None without).
    """

    prompt: tuple[int, ...]
    suffix: tuple[int, ...] = ()
    grammar: TokenAutomaton | None = None
    layout: Layout | None = None


@dataclass(frozen=True)
class Room:
    """How long a text may be.

    Args:
        context: tokens of the engine's context.
        each: most bytes that a token stands for; None where it is not known, and a text of any length may fit.
    """

    context: int
    each: int | None

    def check(self, name: str, size: int) -> None:
        """Refuse a text of ``size`` bytes that can never fit: to tokenise it takes seconds of a core per megabyte."""
        if self.each is None:
            return
        most = self.context * self.each
        require(
            size <= most,
            field=name,
            value=f"{size} bytes",
            allowed=f"at most {most} bytes (context {self.context}, a token is at most {self.each} bytes)",
            fix="shorten it, or build with a larger gpu.limits.context",
        )

    def check_unread(self, prompt: Prompt) -> None:
        """Refuse what can be seen not to fit before any of it is read."""
        self.check("suffix", len(prompt.suffix.encode()))
        if not isinstance(prompt.value, str):
            return
        size = len(prompt.value.encode())
        if prompt.name != "messages":
            self.check(prompt.name, size)
        elif size > _LEAST_JSON and self.each is not None:
            most = max(_LEAST_JSON, self.context * self.each * _JSON_BYTES)
            why = (
                f"context {self.context}, a token is at most {self.each} bytes, of which JSON makes {_JSON_BYTES} each"
            )
            require(
                size <= most,
                field="messages",
                value=f"{size} bytes",
                allowed=f"at most {most} bytes ({why})",
                fix="shorten them, or build with a larger gpu.limits.context",
            )


def tokenise(
    prompt: Prompt,
    tokenizer: Tokenizer,
    room: Room,
    rendering: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> TokenIds:
    """Read a prompt.

    Args:
        prompt: what to read.
        tokenizer: the checkpoint's.
        room: what may fit.
        rendering: entered while the checkpoint's chat template runs.

    Raises:
        FieldError: for messages that are none, that the template cannot render, or that cannot fit.
    """
    value = prompt.value
    if prompt.name == "messages":
        messages = messages_of(str(value))
        room.check("messages", sum(len(message["content"].encode()) for message in messages))
        try:
            with rendering():
                rendered = tokenizer.render(messages, _tools(prompt.grammar))
        except RecursionError as error:
            allowed = "messages and tools that are not nested so deep"
            raise FieldError(
                field="messages", value=f"{len(value)} characters", allowed=allowed, fix="flatten them"
            ) from error
        room.check("messages", sum(len(piece.encode()) for piece in rendered.pieces))
        ids = tokenizer.read(rendered)
    else:
        ids = tokenizer.encode(value) if isinstance(value, str) else list(value)
    if not prompt.suffix:
        return TokenIds(tuple(ids))
    # as the prompt is read: control tokens are for those who write the whole text themselves
    read = tokenizer.literal if prompt.name == "messages" else tokenizer.encode
    return TokenIds(tuple(ids), tuple(read(prompt.suffix)))


def _tools(grammar: str) -> list[dict[str, Any]]:
    """What a grammar declares of tools, as chat templates take it; what is none the grammar refuses."""
    tools = json.loads(grammar).get("tools") if grammar else None
    functions = tools.get("functions") if isinstance(tools, dict) else None
    functions = functions if isinstance(functions, list) else []
    found = [{"type": "function", "function": function} for function in functions if isinstance(function, dict)]
    allowed = "texts without lone surrogates"
    require(_has_utf8(found), field="grammar.tools", value="a text", allowed=allowed, fix="correct it")
    return found


def messages_of(text: str) -> Sequence[Message]:
    """A conversation of its JSON.

    Raises:
        FieldError: for what is none.
    """
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
        more = _MORE.get(str(message.get("role")), set()) if isinstance(message, dict) else set()
        good = isinstance(message, dict) and {"role", "content"} <= set(message) <= {"role", "content", *more}
        require(
            good,
            field=f"messages[{i}]",
            value=message,
            allowed="an object with role and content, an assistant's perhaps with tool_calls, a tool's with "
            "tool_call_id and name, no more",
            fix=f"send {shape}",
        )
        role, content = message["role"], message["content"]
        require(
            isinstance(role, str) and role in _ROLES,
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
        for j, call in enumerate(message.get("tool_calls", ())):
            require(
                _is_call(call),
                field=f"messages[{i}].tool_calls[{j}]",
                value=call,
                allowed='{"id", "type", "function": {"name", "arguments": {...}}}',
                fix="correct it",
            )
    return list(messages)


def _is_call(call: Any) -> bool:
    function = call.get("function") if isinstance(call, dict) else None
    return (
        isinstance(function, dict)
        and set(call) <= {"id", "type", "function"}
        and set(function) == {"name", "arguments"}
        and isinstance(function["name"], str)
        and isinstance(function["arguments"], dict)
        and _has_utf8(call)
    )


def _has_utf8(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True
