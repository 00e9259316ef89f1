"""Orders in a sentence."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass

from nemo_diffgemma.demo_task.wording import Wordings
from nemo_diffgemma.demo_task.words import CITIES, COLORS, DAYS, ITEMS, NAMES

FIELDS = ("name", "item", "color", "count", "city", "day")

_VERBS = ("orders", "wants", "needs", "buys", "ordered", "would like", "asks for", "takes", "gets")
_NEW_VERBS = ("requires", "is looking for", "decided on")
_SENTENCES = Wordings(
    trained=(
        *(f"{{name}} {verb} {{count}} {{color}} {{item}}{{rest}}." for verb in _VERBS),
        *(f"{{name}} {verb} {{count}} {{item}} in {{color}}{{rest}}." for verb in _VERBS[:4]),
        "Send {count} {color} {item} to {name}{rest}.",
        "Ship {count} {color} {item} to {name}{rest}.",
        "Please send {name} {count} {color} {item}{rest}.",
        "{count} {color} {item} for {name}{rest}.",
        "{count} {item} in {color} for {name}{rest}.",
        "{name}: {count} {color} {item}{rest}.",
        "Order from {name}: {count} {item}, {color}{rest}.",
        "Some {color} {item} for {name}, {count} of them{rest}.",
        "I am {name} and I want {count} {color} {item}{rest}.",
        "We need {count} {color} {item} for {name}{rest}.",
        "{name} called: {count} {item}, all {color}{rest}.",
        "An order by {name}, {count} {color} {item}{rest}.",
        "{color} {item}, {count} of them, for {name}{rest}.",
    ),
    unseen=(
        *(f"{{name}} {verb} {{count}} {{color}} {{item}}{{rest}}." for verb in _NEW_VERBS),
        "Put {count} {color} {item} aside for {name}{rest}.",
        "This is {name}, bring me {count} {item} in {color}{rest}.",
        "Pack {count} {item}, {color} ones, and mail them to {name}{rest}.",
        "{name} wrote: {color} {item} please, {count} of them{rest}.",
    ),
)
_RESTS = Wordings(
    trained=(
        "",
        " for {day}",
        " by {day}",
        " on {day}",
        " from {city}",
        " from {city} by {day}",
        " from {city} for {day}",
    ),
    unseen=(" before {day}", " until {day}"),
)


@dataclass(frozen=True)
class Order:
    """What somebody orders; where it comes from and when it is due may be left open."""

    name: str
    item: str
    color: str
    count: str
    city: str | None = None
    day: str | None = None

    def given(self) -> dict[str, str]:
        """The fields that are not left open, in the order of :data:`FIELDS`."""
        return {name: value for name in FIELDS if (value := getattr(self, name)) is not None}

    def to_json(self) -> str:
        """The record."""
        return json.dumps(self.given() | {"count": int(self.count)})


def draw_order(draw: random.Random) -> Order:
    """Any order."""
    city, day = (draw_value(draw, name) if draw.random() < p else None for name, p in (("city", 0.25), ("day", 0.5)))
    return Order(*(draw_value(draw, name) for name in FIELDS[:4]), city, day)


def draw_value(draw: random.Random, field: str) -> str:
    """Any value of a field of an order."""
    if field == "count":
        return str(draw.randint(2, 99))
    lists = {"name": NAMES, "item": ITEMS, "color": COLORS, "city": CITIES, "day": DAYS}
    return draw.choice(lists[field])


def write_order(order: Order, draw: random.Random, unseen: bool) -> str:
    """The order in a sentence."""
    fields = order.given()
    open_or_not = {"city", "day"} & fields.keys()
    rests = [w for w in (*_RESTS.trained, *(_RESTS.unseen if unseen else ())) if set(w.names) == open_or_not]
    fields["rest"] = draw.choice(rests).write(fields)
    return _SENTENCES.choose(draw, unseen).write(fields)


def read_order(sentence: str) -> Order | None:
    """The order that a sentence tells; None for any other text."""
    for fields in _SENTENCES.readings(sentence):
        for more in _RESTS.readings(fields.pop("rest")):
            return Order(**(fields | more))
    return None
