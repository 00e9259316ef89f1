"""Questions about an order that one word of it answers: yes or no, and one of several."""

from __future__ import annotations

from nemo_diffgemma.demo_task.kind import Kind, Right, Style, Turns
from nemo_diffgemma.demo_task.orders import Order, draw_order, read_order, write_order
from nemo_diffgemma.demo_task.wording import Wordings, bare, wrapped
from nemo_diffgemma.demo_task.words import LARGE, USES, WEEKEND


def _use(order: Order) -> str:
    return next(use for use, items in USES.items() if order.item in items)


_YES_OR_NO = {
    "weekend": Wordings(
        (
            "(Is|Was) (it|this|that) (for|on) (the|a) weekend?",
            "(On|For) the weekend?",
            "(Is|Was) the (day|date) (on|in) (the|a) weekend?",
            "(Do they|Do we) (need|want) it on the weekend?",
        ),
        ("Is that day a weekend?", "Will it be the weekend?", "Is the order for the weekend?"),
    ),
    "large": Wordings(
        (
            "(Is|Was) (it|this|that) (a|such a) large order?",
            "(Is|Was) (it|this|the order) large?",
            "(Are they|Are there|Is it|Is that) ten or more?",
            "A large order?",
        ),
        ("Is the count ten or more?", "Are these ten or more of them?", "Is that order a large one?"),
    ),
    "clothing": Wordings(
        (
            "(Is|Was) (it|this|that) clothing?",
            "(Is|Are) (it|they|these) (something|things) to wear?",
            "(Can we|Can you|Do you) wear (it|them)?",
            "(Are they|Are these|Clothes or not, are they) clothes?",
        ),
        ("Is the item clothing?", "Do they wear it?", "Is that for clothes?"),
    ),
}
_CHOICE = {
    "size": Wordings(
        (
            "(Small or large|Large or small)?",
            "Is (it|this|that) (a small or a large|a large or a small) order?",
            "Is (it|the order|this) (small or large|large or small)?",
        ),
        ("Which is it, small or large?", "Was that order large or small?"),
    ),
    "time": Wordings(
        (
            "(Weekday or weekend|Weekend or weekday)?",
            "Is (it|this|that) (for|on) (a weekday or the weekend|the weekend or a weekday)?",
            "Is the day (a weekday or a weekend|weekend or weekday)?",
        ),
        ("Which is it, weekday or weekend?", "Was that for the weekend or a weekday?"),
    ),
    "use": Wordings(
        (
            "(Kitchen, office or clothing|Office, clothing or kitchen|Clothing, kitchen or office)?",
            "Is (it|this|that) for the (kitchen, office or clothing|office, kitchen or clothing)?",
            "Is (it|this) (clothing, office or kitchen|kitchen, clothing or office)?",
        ),
        ("Which is it, kitchen, office or clothing?", "Was that clothing, kitchen or office?"),
    ),
}
_ASKED = Wordings(("{order} {question}", "{question} {order}"), ("{order} {question}", "{question} {order}"))


def _answer(about: str, order: Order) -> str:
    """The answer to any of the questions, and the word of the order that it is looked up from."""
    weekend, large, use = order.day in WEEKEND, int(order.count) >= LARGE, _use(order)
    found = {
        "weekend": ("yes" if weekend else "no", order.day),
        "large": ("yes" if large else "no", order.count),
        "clothing": ("yes" if use == "clothing" else "no", order.item),
        "size": ("large" if large else "small", order.count),
        "time": ("weekend" if weekend else "weekday", order.day),
        "use": (use, order.item),
    }
    answer, because = found[about]
    return f"{answer}, {because}"


def _make(questions: dict[str, Wordings], style: Style) -> tuple[Turns, str]:
    about = style.draw.choice(list(questions))
    order = draw_order(style, dated=True if about in ("weekend", "time") else None)
    if about == "weekend" and style.draw.random() < 0.4:
        order = Order(order.name, order.item, order.color, order.count, style.draw.choice(WEEKEND))
    # the order is worded as trained where the question is not: one of the two is judged
    plain = Style(style.draw, noisy=style.noisy)
    fields = {"order": write_order(order, plain), "question": questions[about].write({}, style)}
    return (wrapped(_ASKED.write(fields, plain), style),), _answer(about, order)


def _right(questions: dict[str, Wordings], turns: Turns) -> Right | None:
    for fields in _ASKED.readings(bare(turns[0])) if len(turns) == 1 else ():
        order = read_order(fields["order"])
        for about, wordings in questions.items():
            dated = about not in ("weekend", "time") or (order is not None and order.day is not None)
            if order is not None and dated and next(wordings.readings(fields["question"]), None) is not None:
                return _answer(about, order)
    return None


YES_OR_NO = Kind("yes or no about an order", 7, lambda style: _make(_YES_OR_NO, style), lambda t: _right(_YES_OR_NO, t))
CHOICE = Kind("choice about an order", 5, lambda style: _make(_CHOICE, style), lambda turns: _right(_CHOICE, turns))
