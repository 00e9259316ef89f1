"""A checkpoint's chat template is a program that came with the weights: it is looked at before it runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from jinja2 import TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from nemo_diffgemma.errors import FieldError
from nemo_diffgemma.processes import memory

# Of a template for one short message: the released one takes less than a hundredth.
MOST_STEPS, MOST_CHARACTERS, MOST_BYTES = 100_000, 1_000_000, 2**29
# A number that a template writes out; what is larger only makes something huge.
_MOST_NUMBER = 1_000_000
_FIX = "take the template that the checkpoint's publisher gives, and build again"


class _Generation(Extension):
    """transformers' tag around an assistant's words."""

    tags = {"generation"}  # noqa: RUF012  jinja2's way

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def check_text(template: str) -> None:
    """Refuse what a template must not name, without running any of it: compiling would already compute its constants.

    Raises:
        FieldError: for names of Python's inside (``lipsum.__globals__``), powers and huge numbers, and for what is no
            template.
    """
    environment = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols", _Generation])
    try:
        tree = environment.parse(template)
    except TemplateSyntaxError as error:
        raise _refused(f"line {error.lineno}: {error.message}", "a template that jinja2 can read") from error
    except RecursionError:
        raise _refused("brackets or blocks too deep in each other", "a template that jinja2 can read") from None
    for node in tree.find_all((nodes.Getattr, nodes.Const, nodes.Pow)):
        if isinstance(node, nodes.Getattr) and node.attr.startswith("_"):
            raise _refused(f"line {node.lineno}: .{node.attr}", "no name that begins with _: Python's inside")
        if isinstance(node, nodes.Const) and isinstance(node.value, str) and node.value.startswith("__"):
            raise _refused(f"line {node.lineno}: {node.value}", "no name that begins with __: Python's inside")
        number = isinstance(node, nodes.Const) and isinstance(node.value, int | float)
        if isinstance(node, nodes.Pow) or (number and abs(node.value) > _MOST_NUMBER):  # type: ignore[attr-defined]
            what = "**" if isinstance(node, nodes.Pow) else node.value  # type: ignore[attr-defined]
            raise _refused(f"line {node.lineno}: {what}", f"no power, and no number over {_MOST_NUMBER}")


def check_run(render: Callable[[], str]) -> None:
    """Render a short conversation, counting steps, which takes as many everywhere.

    Args:
        render: renders it; may raise anything, which is left to the conversations that come.

    Raises:
        FieldError: when it takes more than :data:`MOST_STEPS`, :data:`MOST_CHARACTERS` or :data:`MOST_BYTES` of memory
            (a single step may multiply a text), or leaves its sandbox.
    """
    before, count = sys.gettrace(), 0

    def step(_frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        if count > MOST_STEPS:
            raise _TooLong
        return step

    def enter(frame: FrameType, _event: str, _argument: Any) -> Any:
        return step if frame.f_code.co_filename == "<template>" else None

    sys.settrace(enter)
    try:
        with memory(MOST_BYTES):
            text = render()
    except MemoryError:
        allowed = f"at most {MOST_BYTES >> 20} MiB for one short message"
        raise _refused("more memory than it gets", allowed) from None
    except _TooLong:
        allowed = f"at most {MOST_STEPS} for one short message"
        raise _refused(f"more than {MOST_STEPS} steps", allowed) from None
    except SecurityError as error:
        raise _refused(str(error), "what jinja2's sandbox allows") from error
    except Exception:
        return
    finally:
        sys.settrace(before)
    if len(text) > MOST_CHARACTERS:
        raise _refused(f"{len(text)} characters", f"at most {MOST_CHARACTERS} for one short message")


class _TooLong(BaseException):
    """Not caught by what catches errors."""


def _refused(value: str, allowed: str) -> FieldError:
    return FieldError(field="chat_template", value=value, allowed=allowed, fix=_FIX)
