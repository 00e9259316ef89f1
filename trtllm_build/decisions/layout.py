"""From questions to canvases: what the prompt says, where the answer's label stands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from nemo_diffgemma.chat import Message
from nemo_diffgemma.decisions import Option, Question
from nemo_diffgemma.errors import FieldError, require
from nemo_diffgemma.tokenizer import Tokenizer
from trtllm_build.decisions.labels import Labels, Named
from trtllm_build.runtime.read import ReadCanvas

Order = Literal["given", "permute"]
ORDERS: tuple[Order, ...] = ("given", "permute")
# Orders of one question's options that are averaged at most.
MOST_ORDERS = 8
_WIDTH = 16  # canvases are multiples of it


@dataclass(frozen=True)
class Part:
    """One open position of a canvas.

    Args:
        question: number of the question that is answered there.
        order: which option each of the position's labels stands for; of a predicate, 0 is yes and 1 is no.
    """

    question: int
    order: tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """What is read to answer some questions.

    Args:
        prompt_ids: what all canvases begin with.
        canvases: what is read.
        parts: what stands at the open positions of each canvas.
    """

    prompt_ids: tuple[int, ...]
    canvases: tuple[ReadCanvas, ...]
    parts: tuple[tuple[Part, ...], ...]


class Layouts:
    """Lays out questions for one engine.

    Args:
        tokenizer: the checkpoint's.
        canvas: tokens of the engine's canvas.
        fill: the token that follows an answer's end.
    """

    def __init__(self, tokenizer: Tokenizer, canvas: int, fill: int):
        self._tokenizer = tokenizer
        self._labels = Labels(tokenizer)
        self._canvas = canvas
        self._fill = fill

    def layout(
        self, messages: Sequence[Message], questions: Sequence[Question], order: Order = "given", joint: bool = False
    ) -> Layout:
        """What is read to answer ``questions`` about a conversation.

        Args:
            messages: with ``role`` and ``content``.
            questions: each is answered as if it were alone, but for ``joint``.
            order: permute: options are shown in several orders, whose answers are averaged; of a choice they are the
                same ones in whichever order its options come.
            joint: ask as many questions at once as a canvas has lines for; they see each other.

        Raises:
            FieldError: for an order that is none, when options cannot be told apart, or the chat template cannot render
                the conversation.
        """
        known = isinstance(order, str) and order in ORDERS
        require(known, field="order", value=order, allowed=" or ".join(ORDERS), fix="leave it out")
        good = isinstance(joint, bool)
        require(good, field="joint", value=joint, allowed="true or false", fix="leave it out")
        shown = [self._orders(i, question, order) for i, question in enumerate(questions)]
        if joint:
            rounds = max(len(each) for each in shown)
            groups = [group for r in range(rounds) for group in self._groups([each[r % len(each)] for each in shown])]
        else:
            groups = [[view] for each in shown for view in each]
        texts = [_asked([(questions[v.part.question], v) for v in group]) for group in groups]
        before, asked, after = self._tokenizer.chat_around(messages, texts)
        canvases = tuple(
            ReadCanvas((*ids, *after), self._answer(group), tuple(tuple(n.ids for n in v.labels) for v in group))
            for ids, group in zip(asked, groups, strict=True)
        )
        return Layout(tuple(before), canvases, tuple(tuple(v.part for v in group) for group in groups))

    def _orders(self, index: int, question: Question, order: Order) -> list[_View]:
        """A question's options in the orders in which they are shown."""
        try:
            labels: tuple[Named, ...]
            if question.kind == "predicate":
                labels = self._labels.truth
            elif question.kind == "score":
                labels = self._labels.levels(len(question.options))
            else:
                labels = self._labels.options(len(question.options))
        except FieldError as error:
            name = {"choice": "choices", "score": "levels", "predicate": "type"}[question.kind]
            field = f"questions[{index}].{name}"
            raise FieldError(field=field, value=error.value, allowed=error.allowed, fix=error.fix) from None
        count = len(labels)
        given = tuple(range(count))
        if order == "given":
            return [_View(Part(index, given), labels)]
        if question.kind == "choice":
            # turned from an order of their own: which orders are shown does not depend on the one that was sent
            own = tuple(sorted(given, key=lambda i: (repr(type(question.options[i].value)), question.options[i].value)))
            used = min(count, MOST_ORDERS)
            starts = [i * count // used for i in range(used)]
            return [_View(Part(index, (*own[s:], *own[:s])), labels) for s in starts]
        # of a scale, and of yes and no, there and back; a label means the same in both
        return [_View(Part(index, given), labels), _View(Part(index, given[::-1]), labels[::-1])]

    def _groups(self, views: Sequence[_View]) -> list[list[_View]]:
        """The fewest canvases that have lines for all of them."""
        groups: list[list[_View]] = [[]]
        for view in views:
            if groups[-1] and len(self._lines([*groups[-1], view])) > self._canvas:
                groups.append([])
            groups[-1].append(view)
        return groups

    def _answer(self, group: Sequence[_View]) -> tuple[int | None, ...]:
        """The canvas: None where a label stands, then the answer's end and at least one token that fills."""
        lines = self._lines(group)
        width = min(self._canvas, -(-len(lines) // _WIDTH) * _WIDTH)
        require(
            len(lines) <= width,
            field="questions",
            value=f"an answer of {len(lines)} tokens",
            allowed=f"at most {self._canvas}, this engine's canvas",
            fix="serve an engine with a wider canvas",
        )
        return (*lines, *[self._fill] * (width - len(lines)))

    def _lines(self, group: Sequence[_View]) -> list[int | None]:
        lines: list[int | None] = []
        for number in range(len(group)):
            if len(group) > 1:
                start = "\n" if number else ""
                lines += self._tokenizer.literal(f"{start}{number + 1}:")
            lines.append(None)
        return [*lines, *self._tokenizer.answer_end, self._fill]


@dataclass(frozen=True)
class _View:
    """A question with its options in one order, and the labels they are shown with, in that order."""

    part: Part
    labels: tuple[Named, ...]


def _asked(group: Sequence[tuple[Question, _View]]) -> str:
    """What the prompt asks behind the text."""
    if len(group) == 1:
        (question, view) = group[0]
        return f"{question.instructions.strip()}\n{_how(question, view)}"
    parts = [f"{i}. {q.instructions.strip()}\n{_how(q, view)}" for i, (q, view) in enumerate(group, 1)]
    end = 'Answer each question in a line of its own: its number, a colon and its one label, for example "1: '
    return "\n\n".join(parts) + f'\n\n{end}{group[0][1].labels[0].text}".'


def _how(question: Question, view: _View) -> str:
    """What may be answered."""
    if question.kind == "predicate":
        return f"Is this so? Answer with one word: {view.labels[0].text} or {view.labels[1].text}."
    what: Callable[[Option], str] = _level if question.kind == "score" else _choice
    lines = [
        f"{label.text}: {what(question.options[option])}"
        for label, option in zip(view.labels, view.part.order, strict=True)
    ]
    return "\n".join(lines) + "\nAnswer with one label."


def _level(option: Option) -> str:
    return f"{option.value} ({option.description})" if option.description else str(option.value)


def _choice(option: Option) -> str:
    # a text that reads like a truth value is quoted beside one
    value = str(option.value).lower() if isinstance(option.value, bool) else option.value
    shown = f'"{value}"' if isinstance(option.value, str) and value.lower() in ("true", "false") else value
    return f"{shown} ({option.description})" if option.description else shown
