"""Questions about an order: yes or no, one of several, and open ones about a record."""

from __future__ import annotations

import random

from nemo_diffgemma.demo_task.kind import Kind, Turns
from nemo_diffgemma.demo_task.orders import Order, draw_order, draw_value, read_order, write_order
from nemo_diffgemma.demo_task.records import draw_record, recorded
from nemo_diffgemma.demo_task.wording import Wordings

_YES_OR_NO = Wordings(
    trained=(
        "{order} Are the {item} {color}?",
        "{order} Are they {color}?",
        "{order} Is the color {color}?",
        "{order} Are there {count}?",
        "{order} Is it {count} {item}?",
        "{order} Is the order by {name}?",
        "{order} Is it for {name}?",
        "{order} Did {name} order?",
        "{order} Does {name} get {item}?",
        "{order} Are these {item}?",
        "{order} Is it about {item}?",
        "{order} Is it due on {day}?",
        "{order} Is it for {day}?",
        "{order} Is it from {city}?",
        "Yes or no: {order} Are they {color}?",
        "Yes or no: {order} Are there {count}?",
        "Are they {color}? {order}",
        "Is it for {name}? {order}",
    ),
    unseen=(
        "{order} Is {color} the color of the {item}?",
        "{order} Is {count} the number of {item}?",
        "{order} Was it {name} who ordered?",
        "{order} Does it say {item}?",
        "{order} Would {day} be the day?",
    ),
)
_CHOICE = Wordings(
    trained=(
        "{order} {first} or {second}?",
        "{order} Is it {first} or {second}?",
        "{order} Which is right, {first} or {second}?",
        "{order} Choose: {first} or {second}.",
        "{first} or {second}? {order}",
        "{order} {first}, {second} or {third}?",
        "{order} Which one: {first}, {second} or {third}?",
    ),
    unseen=(
        "{order} Does it say {first} or {second}?",
        "{order} Pick one of {first} and {second}.",
        "{order} What is true, {first} or {second} or {third}?",
    ),
)
_OPEN = {
    "name": Wordings(("Who ordered?", "What is the name?", "Who is it for?"), ("And who is the customer?",)),
    "item": Wordings(("What was ordered?", "Which item?", "What is it?"), ("What is the item called?",)),
    "color": Wordings(("What color?", "What color are they?", "Which color is it?"), ("Tell me the color.",)),
    "count": Wordings(("How many?", "How many are there?", "What is the count?"), ("What is the number of them?",)),
    "day": Wordings(("Which day?", "For when?", "When is it due?"), ("On what day?",)),
    "city": Wordings(("From where?", "Which city?", "Where is it from?"), ("What city is that?",)),
}


def draw_yes_or_no(draw: random.Random, unseen: bool) -> tuple[Turns, str]:
    """An order and something that holds of it or does not."""
    while True:
        order, wording = draw_order(draw), _YES_OR_NO.choose(draw, unseen)
        fields = order.given()
        asked = [name for name in wording.names if name != "order"]
        if set(asked) <= fields.keys():
            break
    said = {"order": write_order(order, draw, False)} | {name: fields[name] for name in asked}
    if draw.random() < 0.5:
        wrong = draw.choice(asked)
        said[wrong] = _other(draw, wrong, fields[wrong])
    return (wording.write(said),), _yes_or_no(order, said)


def answer_yes_or_no(turns: Turns) -> str | None:
    """Whether it holds."""
    if len(turns) == 1:
        for fields in _YES_OR_NO.readings(turns[0]):
            order = read_order(fields["order"])
            if order is not None:
                return _yes_or_no(order, fields)
    return None


def _yes_or_no(order: Order, said: dict[str, str]) -> str:
    return "Yes." if all(getattr(order, n) == value for n, value in said.items() if n != "order") else "No."


def draw_choice(draw: random.Random, unseen: bool) -> tuple[Turns, str]:
    """An order and two or three values, one of which is in it."""
    order, wording = draw_order(draw), _CHOICE.choose(draw, unseen)
    field, right = draw.choice(list(order.given().items()))
    values = [right]
    while len(values) < len(wording.names) - 1:
        values.append(_other(draw, field, *values))
    draw.shuffle(values)
    said = dict(zip(("first", "second", "third"), values, strict=False))
    return (wording.write(said | {"order": write_order(order, draw, False)}),), right


def answer_choice(turns: Turns) -> str | None:
    """The value that is in the order."""
    if len(turns) == 1:
        for fields in _CHOICE.readings(turns[0]):
            order = read_order(fields.pop("order"))
            right = [] if order is None else [v for v in fields.values() if v in order.given().values()]
            if len(right) == 1:
                return right[0]
    return None


def draw_open(draw: random.Random, unseen: bool) -> tuple[Turns, str]:
    """A record, then a question about it."""
    (prompt,), record = draw_record(draw, False)
    order = recorded(prompt)
    assert order is not None
    field, value = draw.choice(list(order.given().items()))
    return (prompt, record, _OPEN[field].choose(draw, unseen).template), value


def answer_open(turns: Turns) -> str | None:
    """The value asked for."""
    order = recorded(turns[0]) if len(turns) == 3 else None
    if order is None or turns[1] != order.to_json():
        return None
    asked = (name for name, wordings in _OPEN.items() if next(wordings.readings(turns[2]), None) is not None)
    return order.given().get(next(asked, ""))


def _other(draw: random.Random, field: str, *values: str) -> str:
    while True:
        other = draw_value(draw, field)
        if other not in values:
            return other


YES_OR_NO = Kind("yes or no about an order", 9, draw_yes_or_no, answer_yes_or_no)
CHOICE = Kind("choice about an order", 6, draw_choice, answer_choice)
OPEN = Kind("question about a record", 7, draw_open, answer_open)
