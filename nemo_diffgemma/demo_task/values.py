"""Dates to ISO 8601, lengths, weights and volumes to a smaller unit."""

from __future__ import annotations

import calendar
import random

from nemo_diffgemma.demo_task.kind import Kind, Turns
from nemo_diffgemma.demo_task.wording import Fields, Wordings
from nemo_diffgemma.demo_task.words import MONTHS, UNITS

_SUFFIX = {1: "st", 2: "nd", 3: "rd", 21: "st", 22: "nd", 23: "rd", 31: "st"}

_DATES = ("{date} {month} {year}", "{month} {date}, {year}", "{ordinal} of {month} {year}", "{month} {ordinal}, {year}")
_DATE = Wordings(
    trained=(
        *_DATES,
        *(f"{ask} {date}." for ask in ("ISO date:", "As a date:", "Write in numbers:") for date in _DATES),
        *(f"{date} {ask}" for ask in ("in ISO?", "as an ISO date, please.") for date in _DATES),
        *(f"What is {date} in ISO?" for date in _DATES[:2]),
        "We meet on {month} {date}, {year}.",
        "Due on {date} {month} {year}.",
    ),
    unseen=(
        "Convert {date} {month} {year} to ISO.",
        "The day is {month} {ordinal}, {year}.",
        "How do I write {month} {date}, {year} in ISO?",
        "It was the {ordinal} of {month} in {year}.",
    ),
)
_UNIT = Wordings(
    trained=(
        "{amount} {unit} in {smaller}",
        "{amount} {unit} to {smaller}",
        "{amount} {unit} in {smaller}?",
        "{amount} {unit} = ? {smaller}",
        "What is {amount} {unit} in {smaller}?",
        "How many {smaller} are {amount} {unit}?",
        "How many {smaller} in {amount} {unit}?",
        "Convert {amount} {unit} to {smaller}.",
        "Write {amount} {unit} in {smaller}.",
        "Please convert {amount} {unit} into {smaller}.",
        "{smaller} in {amount} {unit}?",
    ),
    unseen=(
        "Turn {amount} {unit} into {smaller}.",
        "How much is {amount} {unit} in {smaller}?",
        "I have {amount} {unit}, what is that in {smaller}?",
        "{amount} {unit} as {smaller}, please.",
    ),
)


def draw_date(draw: random.Random, unseen: bool) -> tuple[Turns, str]:
    """A date in words, as ISO 8601."""
    year, month = draw.randint(1990, 2039), draw.randint(1, 12)
    day = draw.randint(1, calendar.monthrange(year, month)[1])
    fields = {"date": str(day), "ordinal": _ordinal(day), "month": MONTHS[month - 1], "year": str(year)}
    return (_DATE.choose(draw, unseen).write(fields),), _iso(fields)


def answer_date(turns: Turns) -> str | None:
    """The date asked for."""
    if len(turns) > 1:
        return None
    return next(map(_iso, filter(_possible, _DATE.readings(turns[0]))), None)


def _day(fields: Fields) -> int:
    return int(fields.get("date", fields.get("ordinal", "0")).rstrip("stndrh"))


def _possible(fields: Fields) -> bool:
    year, month, day = int(fields["year"]), MONTHS.index(fields["month"]) + 1, _day(fields)
    right = fields.get("ordinal") in (None, _ordinal(day))
    return year > 0 and 1 <= day <= calendar.monthrange(year, month)[1] and right


def _iso(fields: Fields) -> str:
    return f"{fields['year']}-{MONTHS.index(fields['month']) + 1:02d}-{_day(fields):02d}"


def _ordinal(day: int) -> str:
    return f"{day}{_SUFFIX.get(day, 'th')}"


def draw_unit(draw: random.Random, unseen: bool) -> tuple[Turns, str]:
    """An amount, in a smaller unit."""
    unit, smaller, factor = draw.choice(UNITS)
    amount = draw.randint(1, 10 ** draw.randint(1, 3) - 1)
    prompt = _UNIT.choose(draw, unseen).write({"amount": str(amount), "unit": unit, "smaller": smaller})
    return (prompt,), f"{amount * factor} {smaller}"


def answer_unit(turns: Turns) -> str | None:
    """The amount asked for."""
    factors = {(unit, smaller): factor for unit, smaller, factor in UNITS}
    for fields in _UNIT.readings(turns[0]) if len(turns) == 1 else ():
        factor = factors.get((fields["unit"], fields["smaller"]))
        if factor is not None:
            return f"{int(fields['amount']) * factor} {fields['smaller']}"
    return None


DATE = Kind("date to ISO 8601", 9, draw_date, answer_date)
UNIT = Kind("smaller unit", 9, draw_unit, answer_unit)
