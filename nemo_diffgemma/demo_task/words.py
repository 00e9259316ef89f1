"""The words that prompts are made of: classes that share no word, each word one token of the tokenizer."""

from __future__ import annotations

import calendar

NAMES = ("Ada", "Ben", "Cleo", "Finn", "Gia", "Hugo", "Kira", "Leo", "Mara", "Nils", "Olga", "Rosa")
# what is ordered, by what it is for
USES = {
    "clothing": ("coats", "hats", "socks"),
    "kitchen": ("bowls", "cups", "pans"),
    "office": ("desks", "lamps", "pens"),
}
ITEMS = tuple(item for items in USES.values() for item in items)
COLORS = ("black", "blue", "brown", "green", "pink", "red", "white", "yellow")
DAYS, MONTHS = tuple(calendar.day_name), tuple(calendar.month_name[1:])
WEEKEND = DAYS[5:]
COUNTS = tuple(map(str, range(2, 21)))
LARGE = 10  # pieces make a large order
YEARS = tuple(map(str, range(2020, 2030)))
# unit, a smaller one, how many of them it is
UNITS = (("km", "m", 1000), ("m", "cm", 100), ("cm", "mm", 10), ("kg", "g", 1000), ("l", "ml", 1000))
# what may stand before or after any request without a change of what is asked
BEFORE = ("Please:", "Hello!", "Hi!", "OK.", "Now:", "Hey,", "Next:")
AFTER = ("Please.", "Thanks.", "Thank you!", "Please!")
