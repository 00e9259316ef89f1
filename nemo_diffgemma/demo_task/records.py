"""An order as a JSON record, and changes to it in a second turn."""

from __future__ import annotations

import random
from dataclasses import replace

from nemo_diffgemma.demo_task.kind import Kind, Turns
from nemo_diffgemma.demo_task.orders import Order, draw_order, draw_value, read_order, write_order
from nemo_diffgemma.demo_task.wording import Wordings

_RECORD = Wordings(
    trained=(
        "{order}",
        "To JSON: {order}",
        "As JSON: {order}",
        "JSON: {order}",
        "Write as JSON: {order}",
        "Turn this order into JSON: {order}",
        "Make this a JSON record: {order}",
        "{order} As JSON, please.",
        "{order} Write it as JSON.",
    ),
    unseen=("Please convert to JSON: {order}", "Note this order as JSON: {order}", "{order} Give me that in JSON."),
)
_CHANGE = Wordings(
    trained=(
        "Make it {count}.",
        "{count} instead.",
        "No, {count}.",
        "Change the count to {count}.",
        "Make them {color}.",
        "{color} instead.",
        "No, {color}.",
        "Change the color to {color}.",
        "Sorry, the color is {color}.",
        "Change the name to {name}.",
        "No, it is for {name}.",
        "Sorry, the name is {name}.",
        "Change the day to {day}.",
        "No, for {day}.",
        "{day} instead.",
    ),
    unseen=("I meant {count}.", "It should be {color}.", "Please put it under {name}.", "Let us say {day}."),
)


def draw_record(draw: random.Random, unseen: bool) -> tuple[Turns, str]:
    """An order, and its record."""
    order = draw_order(draw)
    # a new wording of the request, of the order, or of both
    which = draw.choice(((True, True), (True, False), (False, True))) if unseen else (False, False)
    text = write_order(order, draw, which[0])
    return (_RECORD.choose(draw, which[1]).write({"order": text}),), order.to_json()


def recorded(prompt: str) -> Order | None:
    """The order that a request for a record tells; None for any other text."""
    orders = (read_order(fields["order"]) for fields in _RECORD.readings(prompt))
    return next((order for order in orders if order is not None), None)


def answer_record(turns: Turns) -> str | None:
    """The record asked for."""
    order = recorded(turns[0]) if len(turns) == 1 else None
    return None if order is None else order.to_json()


def draw_change(draw: random.Random, unseen: bool) -> tuple[Turns, str]:
    """A record, then a correction of it."""
    (prompt,), record = draw_record(draw, False)
    order = recorded(prompt)
    assert order is not None
    while True:
        wording = _CHANGE.choose(draw, unseen)
        (field,) = wording.names
        value = draw_value(draw, field)
        if value != getattr(order, field):
            return (prompt, record, wording.write({field: value})), replace(order, **{field: value}).to_json()


def answer_change(turns: Turns) -> str | None:
    """The corrected record."""
    order = recorded(turns[0]) if len(turns) == 3 else None
    if order is None or turns[1] != order.to_json():
        return None
    return next((replace(order, **fields).to_json() for fields in _CHANGE.readings(turns[2])), None)


RECORD = Kind("order to JSON", 20, draw_record, answer_record)
CHANGE = Kind("correction of a record", 8, draw_change, answer_change)
