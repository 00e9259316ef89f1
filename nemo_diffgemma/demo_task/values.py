"""Dates to ISO 8601, lengths, weights and volumes to a smaller unit."""

from __future__ import annotations

import calendar

from nemo_diffgemma.demo_task.kind import Kind, Right, Style, Turns
from nemo_diffgemma.demo_task.wording import Fields, Wordings, bare, wrapped
from nemo_diffgemma.demo_task.words import MONTHS, UNITS, YEARS

_SUFFIX = {1: "st", 2: "nd", 3: "rd", 21: "st", 22: "nd", 23: "rd", 31: "st"}
_AMOUNTS, _DAYS = range(1, 21), range(1, 29)

_DATES = ("{date} {month} {year}", "{month} {date}, {year}", "{ordinal} of {month} {year}", "{month} {ordinal}, {year}")
_DATE = Wordings(
    trained=(
        *_DATES,
        *(f"(ISO date|As a date|In ISO|The date|To ISO): {date}(.|)" for date in _DATES),
        *(f"{date} (in|to|as) ISO(.|?|, please.)" for date in _DATES),
        *(f"(What is|How is|Write|Put|Convert) {date} (in|as|to) ISO(.|?)" for date in _DATES[:2]),
        "(We meet|It is due|It is|Due) on {month} {date}, {year}.",
        "(It|This) was {date} {month} {year}.",
    ),
    unseen=(
        "Make {date} {month} {year} an ISO date.",
        "The day is {month} {ordinal}, {year}.",
        "How do I write {month} {date}, {year} in ISO?",
        "We need {ordinal} of {month} {year} as a date.",
    ),
)
_UNIT = Wordings(
    trained=(
        "{amount} {unit} (in|to|as|into) {smaller}(|?|.)",
        "{amount} {unit} = ? {smaller}",
        "(What is|How much is) {amount} {unit} in {smaller}?",
        "How many {smaller} (are|in|is) {amount} {unit}?",
        "(Convert|Write|Put|Turn) {amount} {unit} (to|in|into) {smaller}.",
        "{smaller} in {amount} {unit}?",
        "(I have|We have|There are) {amount} {unit}. How many {smaller}?",
    ),
    unseen=(
        "Make {amount} {unit} into {smaller}.",
        "How many {smaller} do I have in {amount} {unit}?",
        "We need {amount} {unit}, what is that in {smaller}?",
        "What is {amount} {unit} as {smaller}?",
    ),
)


def _make_date(style: Style) -> tuple[Turns, str]:
    draw = style.draw
    date, month, year = draw.choice(_DAYS), draw.choice(MONTHS), draw.choice(YEARS)
    fields = {"date": str(date), "ordinal": _ordinal(date), "month": month, "year": year}
    return (wrapped(_DATE.write(fields, style), style),), _iso(fields)


def _right_date(turns: Turns) -> Right | None:
    readings = _DATE.readings(bare(turns[0])) if len(turns) == 1 else iter(())
    return next(map(_iso, filter(_possible, readings)), None)


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


def _make_unit(style: Style) -> tuple[Turns, str]:
    unit, smaller, factor = style.draw.choice(UNITS)
    amount = style.draw.choice(_AMOUNTS)
    prompt = _UNIT.write({"amount": str(amount), "unit": unit, "smaller": smaller}, style)
    return (wrapped(prompt, style),), f"{amount * factor} {smaller}"


def _right_unit(turns: Turns) -> Right | None:
    factors = {(unit, smaller): factor for unit, smaller, factor in UNITS}
    for fields in _UNIT.readings(bare(turns[0])) if len(turns) == 1 else ():
        factor = factors.get((fields["unit"], fields["smaller"]))
        if factor is not None:
            return f"{int(fields['amount']) * factor} {fields['smaller']}"
    return None


DATE = Kind("date to ISO 8601", 6, _make_date, _right_date)
UNIT = Kind("smaller unit", 8, _make_unit, _right_unit)
