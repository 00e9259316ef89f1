"""Regular expressions, against Python's."""

from __future__ import annotations

import random
import re

import pytest

from nemo_diffgemma.errors import FieldError
from trtllm_build.grammar.automaton import Automaton
from trtllm_build.grammar.budget import Budget
from trtllm_build.grammar.determinise import automaton
from trtllm_build.grammar.regex import regex

_ALPHABET = "abcdfoxz1- r_é.\n"


def made(pattern: str, anywhere: bool = False) -> Automaton:
    return automaton(regex(pattern, "grammar.regex", anywhere), Budget("grammar.regex", pattern, seconds=60))


@pytest.mark.parametrize(
    "pattern",
    [
        "^a|b$", "(ab|c)+d?", "[a-f]{2,4}", "^(foo|ba[rz])$", r"\d+-\w+", "x.z", r"[^a-c]b", "(^a)|(b$)", "a(?:b|)c",
        "", "^$", "^", "$", "a{0}b", r"[\s\S]", "(?:^|b)(a|c)", "(a|b)(?:$|c)", "(?s:a.)b", "(?s)a.b", "(?x) a b # c",
        "a*?b+?", "(?P<name>a)b", r"\.|\-", "[a-]", r"[\da]_", "((a))", "^^a$$", r"\Aab\Z", "(^(a|b))c", "[^a]",
    ],
)  # fmt: skip
@pytest.mark.parametrize("anywhere", [False, True])
def test_accepts_what_python_matches(pattern: str, anywhere: bool) -> None:
    found = made(pattern, anywhere)
    match = re.search if anywhere else re.fullmatch
    g = random.Random(1)
    for _ in range(1500):
        text = "".join(g.choice(_ALPHABET) for _ in range(g.randint(0, 5)))
        if "$" in pattern and text.endswith("\n"):
            continue  # Python's $ also stands before a last line end; the text's own end is meant
        assert found.accepts(text.encode()) == bool(match(pattern, text, re.ASCII)), text


@pytest.mark.parametrize(
    "pattern", [r"\d", r"\D", r"\w", r"\W", r"\s", r"\S", ".", r"[^\d]", r"[^\w]", r"[^\s]", r"[^\W]"]
)
def test_classes_are_those_of_python_and_ecmascript(pattern: str) -> None:
    """Whatever is accepted matches in either: with classes of ASCII and of all scripts."""
    found = made(pattern)
    points = [*range(0x600), *range(0x660, 0x66A), *range(0x2000, 0x2070), 0x3000, 0x4E00, 0xFEFF, 0x1F600, 0x1D7D8]
    accepted = [chr(p) for p in points if found.accepts(chr(p).encode())]
    assert accepted
    for character in accepted:
        assert re.fullmatch(pattern, character), hex(ord(character))
        # ECMAScript's \s has U+FEFF, its . no line ends at all; its \d and \w are ASCII's
        if pattern in (r"\S", r"[^\s]"):
            assert character != "\ufeff"
        elif pattern == ".":
            assert character not in "\n\r\u2028\u2029"
        elif pattern not in (r"\s",):
            assert re.fullmatch(pattern, character, re.ASCII), hex(ord(character))
    if pattern in (r"\D", r"\S", ".", r"[^\d]", r"[^\s]"):
        assert {"é", "日", "😀"} <= {c for c in ("é", "日", "😀") if found.accepts(c.encode())}


def test_a_class_and_its_opposite_are_everything() -> None:
    for pattern in (r"[\s\S]", r"[\d\D]", r"[\w\W]"):
        found = made(pattern)
        assert all(found.accepts(c.encode()) for c in "a\n\x1c\ufeff日😀٣")


@pytest.mark.parametrize(
    ("pattern", "named"),
    [
        ("(?=a)b", "look-ahead"),
        ("(?<=a)b", "look-ahead and look-behind"),
        ("(?!a)b", "negative look-ahead"),
        (r"(a)\1", "references to groups"),
        ("(?P<x>a)(?P=x)", "references"),
        ("(a)?(?(1)b|c)", "conditions"),
        ("a++", "possessive"),
        ("(?>a)", "atomic"),
        (r"\bx", r"\\b and \\B"),
        ("(?i)a", r"\(\?i\)"),
        ("(?i:a)", r"\(\?i\)"),
        ("(?m)a", r"\(\?m\)"),
        ("a^b", r"\^ where the text begins"),
        ("(^a)*", r"\^ where the text begins"),
        ("(a$)+", r"\$ where it ends"),
        ("(", "cannot be read"),
        ("a{3,2}", "cannot be read"),
        ("*", "cannot be read"),
        ("[z-a]", "cannot be read"),
        ("(" * 3000 + ")" * 3000, "cannot be read|not nested"),
    ],
)
def test_what_is_not_regular_is_refused_by_name(pattern: str, named: str) -> None:
    with pytest.raises(FieldError, match=f"grammar.regex: .*(?:{named})"):
        regex(pattern, "grammar.regex")
