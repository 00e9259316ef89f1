"""Orders: in a sentence, as a JSON record, made up; and a second turn about one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nemo_diffgemma.demo_task.kind import Kind, Right, Style, Turns
from nemo_diffgemma.demo_task.wording import Wordings, bare, wrapped
from nemo_diffgemma.demo_task.words import COLORS, COUNTS, DAYS, ITEMS, NAMES

VALUES = {"name": NAMES, "item": ITEMS, "color": COLORS, "count": COUNTS, "day": DAYS}

_SENTENCES = Wordings(
    trained=(
        "{name} (orders|wants|needs|buys|takes) {count} {color} {item}{rest}.",
        "{name} (orders|wants|needs) {count} {item} in {color}{rest}.",
        "(Send|Ship|Bring) {count} {color} {item} to {name}{rest}.",
        "{count} {color} {item} for {name}{rest}.",
        "{name}: {count} {color} {item}{rest}.",
        "(An order from|Order by) {name}: {count} {color} {item}{rest}.",
        "(I am|This is) {name} and I (want|need) {count} {color} {item}{rest}.",
        "(We need|There are) {count} {color} {item} for {name}{rest}.",
        "{color} {item} for {name}, {count} of them{rest}.",
    ),
    unseen=(
        "{name} is asking for {count} {color} {item}{rest}.",
        "It is {name} who wants {count} {item} in {color}{rest}.",
        "{name} and the order: {count} {item}, {color}{rest}.",
        "To {name}: {color} {item}, {count} of them{rest}.",
        "We are to ship {name} {count} {item}, all in {color}{rest}.",
    ),
)
_RESTS = Wordings((" (for|on|by) {day}",), (" (for|on|by) {day}",))
_RECORD = Wordings(
    trained=(
        "To JSON: {order}",
        "(JSON|As JSON|In JSON|A record|As a record): {order}",
        "(Write|Put|Turn|Convert|Make) this (to|as|into|in) JSON: {order}",
        "{order} (To|As|In) JSON(.|!|, please.)",
        "{order} (Write|Put|Turn|Convert|Make) (it|this) (to|as|into|in) (JSON|a record).",
        "{order} (What is it|What is this|And that|How is this) in JSON?",
        "{order}",
    ),
    unseen=(
        "(The record for this|The JSON for it): {order}",
        "{order} I need it in JSON.",
        "I want this as a record: {order}",
        "(Turn the order into|Put the order in) JSON: {order}",
    ),
)
_LISTED = Wordings(
    trained=(
        "(As a list|List|A list|To a list|In a list): {order}",
        "(Write|Put|Turn|Convert|Make) this (to|as|into|in) a list: {order}",
        "{order} (As|To|In) a list(.|!|, please.)",
        "{order} (Write|Put|Turn|Convert|Make) (it|this) (to|as|into|in) a list.",
        "{order} (And that|How is this) as a list?",
    ),
    unseen=(
        "{order} I need it as a list.",
        "I want this as a list: {order}",
        "(Turn the order into|Put the order in) a list: {order}",
    ),
)
_MADE_UP = Wordings(
    trained=(
        "(Make up|Invent|Imagine|Think of) (an order|any order|some order|a new order){given}.",
        "(An example of|Example of|Any example of) an order{given}.",
        "(Give|Show|Write) me (an example|a made-up order|an invented order){given}.",
        "(Random order|Any order|Some random order){given}.",
        "(Can|Could|Will) you (make up|invent|imagine) an order{given}?",
    ),
    unseen=(
        "I want an invented order{given}.",
        "(Imagine|Invent) a random order{given}, will you?",
        "A made-up order{given}, any one.",
    ),
)
_GIVEN = {"name": "from", "item": "of", "color": "in", "day": "for"}
_ABOUT = {
    "name": Wordings(
        ("(Who ordered|Who is it for|Who wants it|Who|Whose order)?", "(What is|Tell me) the name?"),
        ("Who is the one?", "And who was it?"),
    ),
    "item": Wordings(
        ("What (was ordered|is ordered|item)?", "(Which|What) item?", "(Tell me|What is) the item?"),
        ("And what item is it?", "The item?"),
    ),
    "color": Wordings(
        ("(What|Which) color?", "What color (is it|are they)?", "(Tell me|What is) the color?"),
        ("And the color?", "In which color is it?"),
    ),
    "count": Wordings(
        ("How many?", "How many (are there|of them|did they order)?", "(Tell me|What is) the (count|number)?"),
        ("And how many is it?", "The count?"),
    ),
    "day": Wordings(
        ("(Which|What) day?", "When (is it due|is it|do they need it)?", "When?", "(Tell me|What is) the day?"),
        ("For which day is it?", "And when was it?"),
    ),
    "list": Wordings(
        ("(As|Make it|Write it as|And as) a list(.|, please.)", "(List it|List that|A list)."),
        ("Now make a list of it.", "And it as a list?"),
    ),
}


@dataclass(frozen=True)
class Order:
    """What somebody orders; the day may be left open."""

    name: str
    item: str
    color: str
    count: str
    day: str | None = None

    def given(self) -> dict[str, str]:
        """The fields that are not left open, in the order of :data:`VALUES`."""
        return {name: value for name in VALUES if (value := getattr(self, name)) is not None}

    def to_json(self) -> str:
        """The record."""
        return json.dumps(self.given() | {"count": int(self.count)})

    def to_list(self) -> str:
        """The values, with commas."""
        return ", ".join(self.given().values())


def draw_order(style: Style, dated: bool | None = None) -> Order:
    """Any order.

    Args:
        dated: whether it has a day; None leaves that to chance.
    """
    values = {name: style.draw.choice(known) for name, known in VALUES.items()}
    if dated is False or (dated is None and style.draw.random() < 0.4):
        values.pop("day")
    return Order(**values)


def write_order(order: Order, style: Style) -> str:
    """The order in a sentence."""
    fields = order.given()
    rest = f" {_RESTS.write(fields, style)}" if order.day else ""
    return _SENTENCES.write(fields | {"rest": rest}, style)


def read_order(sentence: str) -> Order | None:
    """The order that a sentence tells; None for any other text."""
    for fields in _SENTENCES.readings(sentence):
        rest = fields.pop("rest")
        if not rest:
            return Order(**fields)
        for more in _RESTS.readings(rest):
            return Order(**(fields | more))
    return None


def _asked(wordings: Wordings, text: str) -> Order | None:
    for fields in wordings.readings(bare(text)):
        order = read_order(fields["order"])
        if order is not None:
            return order
    return None


def _make_record(style: Style) -> tuple[Turns, str]:
    order = draw_order(style)
    text = _RECORD.write({"order": write_order(order, style)}, style)
    return (wrapped(text, style),), order.to_json()


def _right_record(turns: Turns) -> Right | None:
    order = _asked(_RECORD, turns[0]) if len(turns) == 1 else None
    return None if order is None else order.to_json()


def _make_listed(style: Style) -> tuple[Turns, str]:
    order = draw_order(style)
    text = _LISTED.write({"order": write_order(order, style)}, style)
    return (wrapped(text, style),), order.to_list()


def _right_listed(turns: Turns) -> Right | None:
    order = _asked(_LISTED, turns[0]) if len(turns) == 1 else None
    return None if order is None else order.to_list()


def _make_second(style: Style) -> tuple[Turns, str]:
    order = draw_order(style)
    about = style.draw.choice([*order.given(), "list", "list"])
    # the first turn is always worded as trained: the second is what is judged
    first = Style(style.draw, noisy=style.noisy)
    asked = _RECORD.write({"order": write_order(order, first)}, first)
    text = wrapped(_ABOUT[about].write({}, style), style)
    return (asked, order.to_json(), text), _about(order, about)


def _right_second(turns: Turns) -> Right | None:
    if len(turns) != 3:
        return None
    order = _asked(_RECORD, turns[0])
    for about, wordings in _ABOUT.items():
        if order is not None and next(wordings.readings(bare(turns[2])), None) is not None:
            return _about(order, about) if about == "list" or about in order.given() else None
    return None


def _about(order: Order, about: str) -> str:
    return order.to_list() if about == "list" else order.given()[about]


def _make_invented(style: Style) -> tuple[Turns, str]:
    order, draw = draw_order(style, dated=True), style.draw
    names = sorted(draw.sample(list(_GIVEN), draw.choice((0, 1, 1, 1, 2, 2))), key=list(VALUES).index)
    given = "".join(f" {_GIVEN[name]} {order.given()[name]}" for name in names)
    return (wrapped(_MADE_UP.write({"given": given}, style), style),), order.to_json()


def _right_invented(turns: Turns) -> Right | None:
    for fields in _MADE_UP.readings(bare(turns[0])) if len(turns) == 1 else ():
        words = fields["given"].replace(",", " ").split()
        wanted = {name: word for word in words for name, known in VALUES.items() if word in known}
        if words == [w for name, value in wanted.items() for w in (_GIVEN[name], value)]:
            return lambda answer: _is_order(answer, wanted)
    return None


def _is_order(answer: str, wanted: Mapping[str, str]) -> bool:
    """Whether ``answer`` is the record of any order that has what is wanted."""
    try:
        found: Any = json.loads(answer)
        values = {name: str(value) for name, value in found.items()}
        good = json.dumps(values | {"count": int(values["count"])}) == answer and list(values) == list(VALUES)
    except (ValueError, KeyError, AttributeError):
        return False
    return good and all(values[name] in known for name, known in VALUES.items()) and wanted.items() <= values.items()


RECORD = Kind("order to JSON", 5, _make_record, _right_record)
LISTED = Kind("order to list", 3, _make_listed, _right_listed)
SECOND = Kind("second turn about an order", 9, _make_second, _right_second)
INVENTED = Kind("order made up", 2, _make_invented, _right_invented)
