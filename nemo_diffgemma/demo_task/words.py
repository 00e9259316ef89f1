"""The words that prompts are made of."""

from __future__ import annotations

import calendar

NAMES = tuple("Ada Ben Cleo Dora Eli Finn Gia Hugo Ines Jana Kira Leo Mara Nils Olga Pia Rosa Sven Tara Uma Vera Zoe".split())
ITEMS = tuple("bags beds cups desks fans hats lamps mugs pens rugs socks toys".split())
COLORS = tuple("black blue brown green pink red white yellow".split())
CITIES = tuple("Bern Cairo Lima London Oslo Paris Rome Tokyo".split())
DAYS, MONTHS = tuple(calendar.day_name), tuple(calendar.month_name[1:])
# unit, a smaller one, how many of them it is
UNITS = (("km", "m", 1000), ("m", "cm", 100), ("cm", "mm", 10), ("kg", "g", 1000), ("t", "kg", 1000), ("l", "ml", 1000))
