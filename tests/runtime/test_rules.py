"""What each position of each canvas may choose from, as a request rules it."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from nemo_diffgemma.diffusion.draws import uniform_to_token
from nemo_diffgemma.errors import FieldError
from trtllm_build.contract import TokenChoice
from trtllm_build.runtime.request import Request
from trtllm_build.runtime.rules import Rules

CANVAS, VOCAB = 8, 50
END = (1, 6)


def rules(max_tokens: int = 24, canvas: int = CANVAS, ends: tuple[int, ...] = END, **options: Any) -> Rules:
    return Rules(Request((5,), max_tokens, **options), canvas, VOCAB, ends)


def described(
    choices: list[TokenChoice] | None,
) -> list[tuple[list[int], list[int] | None, list[int] | None, list[int]]]:
    """Rows, fixed, allowed and excluded of each, in the order of their first row."""
    assert choices is not None
    return sorted(
        (
            c.rows.tolist(),
            None if c.fixed is None else c.fixed.tolist(),
            None if c.allowed is None else c.allowed.tolist(),
            list(c.excluded),
        )
        for c in choices
    )


def tokens(choices: list[TokenChoice] | None, canvas: int = CANVAS) -> list[set[int]]:
    """The tokens that each row may become; every row is in exactly one choice."""
    if choices is None:
        return [set(range(VOCAB))] * canvas
    rows = [row for c in choices for row in c.rows.tolist()]
    assert sorted(rows) == list(range(canvas))
    found: list[set[int]] = [set() for _ in range(canvas)]
    for c in choices:
        for i, row in enumerate(c.rows.tolist()):
            found[row] = set(range(VOCAB)) if c.allowed is None else set(c.allowed.tolist())
            found[row] -= set(c.excluded)
            if c.fixed is not None:
                found[row] = {int(c.fixed[i])}
    return found


# -- free when unused -----------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stop_token_ids": (4,), "seed_canvas": (7, 8, 9), "ignore_eos": True},
        {"draft_every": 2, "priority": 3, "deadline": 9.0, "canvas_length": "fit", "stop": ("x",)},
        {"min_tokens": 0, "pinned": {}, "allowed_at": {}, "allowed": None},
    ],
)
def test_a_request_without_rules_costs_nothing(options: dict[str, Any]) -> None:
    found = rules(**options)
    assert [found.choices(i) for i in range(3)] == [None, None, None]


# -- grouping -------------------------------------------------------------------------


def test_positions_with_the_same_set_are_one_group() -> None:
    found = rules(allowed=(9, 3, 3, 7))
    for index in range(3):
        assert described(found.choices(index)) == [(list(range(8)), None, [3, 7, 9], [])]


def test_pins_hold_in_their_own_canvas_at_their_own_row() -> None:
    found = rules(pinned={2: 40, 7: 41, 8: 42, 21: 43})
    first, second, third = (tokens(found.choices(i)) for i in range(3))
    assert (first[2], first[7], second[0], third[5]) == ({40}, {41}, {42}, {43})
    for canvas in (first, second, third):
        assert all(len(t) == 1 or len(t) >= VOCAB - len(END) for t in canvas)
    assert sum(len(t) == 1 for canvas in (first, second, third) for t in canvas) == 4


def test_no_end_before_the_last_pin() -> None:
    found = rules(pinned={2: 40, 10: 41})
    free = set(range(VOCAB))
    early = free - set(END)
    assert tokens(found.choices(0)) == [early, early, {40}, *[early] * 5]
    assert tokens(found.choices(1)) == [early, early, {41}, *[free] * 5]
    assert tokens(found.choices(2)) == [free] * 8


def test_a_pin_that_ends_the_answer_before_another_pin_is_refused() -> None:
    rules(pinned={0: 7, 5: END[0]})
    with pytest.raises(
        FieldError, match="pinned: 'token 1 at position 1'.*ends the answer at the last pinned position"
    ):
        rules(pinned={0: 7, 1: 1, 5: 9})


def test_equal_sets_of_different_positions_are_one_group() -> None:
    found = rules(allowed_at={1: (6, 40), 3: (6, 40), 4: (41,)})
    rows = [(r, allowed) for r, _, allowed, _ in described(found.choices(0))]
    assert rows == [([0, 2, 5, 6, 7], None), ([1, 3], [6, 40]), ([4], [41])]


def test_no_end_before_min_tokens() -> None:
    found = rules(min_tokens=11)
    assert described(found.choices(0)) == [(list(range(8)), None, None, [1, 6])]
    assert described(found.choices(1)) == [([0, 1, 2], None, None, [1, 6]), ([3, 4, 5, 6, 7], None, None, [])]
    assert tokens(found.choices(2)) == [set(range(VOCAB))] * 8


def test_an_allowed_set_loses_its_end_tokens_before_min_tokens() -> None:
    found = rules(min_tokens=3, allowed=(6, 20, 1, 30))
    assert described(found.choices(0)) == [
        ([0, 1, 2], None, [20, 30], []),
        ([3, 4, 5, 6, 7], None, [1, 6, 20, 30], []),
    ]


def test_a_position_of_its_own_takes_the_place_of_the_common_set() -> None:
    found = rules(allowed=(20, 30), allowed_at={1: (6, 40), 9: (41,)}, min_tokens=2)
    common = {20, 30}
    assert tokens(found.choices(0)) == [common, {40}, *[common] * 6]
    assert tokens(found.choices(1)) == [common, {41}, *[common] * 6]


def test_a_position_of_its_own_beside_free_ones() -> None:
    found = rules(allowed_at={9: (41, 42)})
    assert tokens(found.choices(0)) == [set(range(VOCAB))] * 8
    assert tokens(found.choices(1))[1] == {41, 42}


@pytest.mark.parametrize("seed", range(40))
def test_every_position_is_in_one_group_with_its_own_set(seed: int) -> None:
    """Requests drawn at random, against the rules written out for one position."""
    r = random.Random(seed)
    size, canvas = r.randint(1, 40), r.randint(1, 9)

    def some(count: int) -> tuple[int, ...]:
        return (*r.sample(range(VOCAB), r.randint(1, count)), r.choice([20, 21]))  # one that ends nothing

    pinned = {p: r.randrange(2, 5) for p in r.sample(range(size), r.randint(0, size // 2))}
    allowed_at = {p: some(3) for p in r.sample(range(size), r.randint(0, size // 2))}
    allowed, least = r.choice([None, some(20)]), r.randint(0, size)
    found = rules(size, canvas, pinned=pinned, allowed=allowed, allowed_at=allowed_at, min_tokens=least)

    def expected(position: int) -> set[int]:
        if position in pinned:
            return {pinned[position]}
        ids = allowed_at.get(position, range(VOCAB) if allowed is None else allowed)
        early = position < least or any(p > position for p in pinned)
        return set(ids) - set(END) if early else set(ids)

    for index in range(-(-size // canvas)):
        choices = found.choices(index)
        start = index * canvas
        assert tokens(choices, canvas) == [expected(start + row) for row in range(canvas)]
        assert all((c.allowed is None or (c.allowed.diff() > 0).all()) for c in choices or ())  # ascending


# -- noise ----------------------------------------------------------------------------


def test_noise_is_of_the_whole_vocabulary_without_rules() -> None:
    draws = torch.rand(CANVAS, generator=torch.Generator().manual_seed(1))
    found = rules()
    assert torch.equal(found.noise(None, draws), uniform_to_token(draws, VOCAB))
    assert torch.equal(found.start(0, None, draws), uniform_to_token(draws, VOCAB))


def test_noise_ignores_allowed_sets_and_keeps_pins() -> None:
    """Noise is no answer: the model has learnt to see tokens of the whole vocabulary as noise."""
    draws = torch.rand(CANVAS, generator=torch.Generator().manual_seed(3))
    found = rules(allowed=(40, 41, 42), allowed_at={4: (43,)}, pinned={2: 9})
    noise, free = found.noise(found.choices(0), draws), uniform_to_token(draws, VOCAB)
    assert noise[2] == 9 != free[2]
    assert [i for i in range(CANVAS) if noise[i] != free[i]] == [2]


# -- the start ------------------------------------------------------------------------


def test_a_seed_canvas_is_the_start_of_its_positions_only() -> None:
    own = tuple(range(10, 21))
    draws = torch.rand(CANVAS, generator=torch.Generator().manual_seed(4))
    noise = uniform_to_token(draws, VOCAB).tolist()
    found = rules(seed_canvas=own)
    assert found.start(0, None, draws).tolist() == list(own[:8])
    assert found.start(1, None, draws).tolist() == [*own[8:], *noise[3:]]
    assert found.start(2, None, draws).tolist() == noise
    assert found.noise(None, draws).tolist() == noise  # later steps are not seeded


def test_pins_stand_in_the_start_and_in_all_noise() -> None:
    draws = torch.rand(CANVAS, generator=torch.Generator().manual_seed(5))
    found = rules(seed_canvas=(10, 11, 12), pinned={1: 40, 6: 41})
    choices = found.choices(0)
    start, noise = found.start(0, choices, draws).tolist(), found.noise(choices, draws).tolist()
    assert start[:3] == [10, 40, 12]
    assert start[6] == noise[6] == 41
    assert noise[1] == 40


# -- errors ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "field", "value"),
    [
        ({"stop_token_ids": (3, 50)}, "stop_token_ids", [50]),
        ({"seed_canvas": (-1,)}, "seed_canvas", [-1]),
        ({"pinned": {3: 77}}, "pinned", [77]),
        ({"pinned": {3: "red"}}, "pinned", ["red"]),
        ({"allowed": (3, 51, 52)}, "allowed", [51]),
        ({"allowed_at": {3: (1, 50)}}, "allowed_at[3]", [50]),
    ],
)
def test_ids_outside_the_vocabulary_are_refused_by_name(options: dict[str, Any], field: str, value: object) -> None:
    with pytest.raises(FieldError) as error:
        rules(**options)
    assert (error.value.field, error.value.value) == (field, value)
    assert error.value.allowed == "token ids from 0 to 49"
    assert error.value.fix == "use this engine's tokenizer"


@pytest.mark.parametrize(
    ("options", "position", "until"),
    [
        ({"allowed": END, "min_tokens": 4}, 0, 4),
        ({"allowed": (1,), "pinned": {0: 9, 12: 9}}, 1, 13),
        ({"allowed_at": {5: (6, 1)}, "min_tokens": 6}, 5, 6),
    ],
)
def test_a_position_left_without_any_token_is_refused(options: dict[str, Any], position: int, until: int) -> None:
    with pytest.raises(FieldError) as error:
        rules(**options)
    assert error.value.field.startswith("allowed")
    assert error.value.value == f"only tokens that end the answer at position {position}"
    assert error.value.allowed == f"another token before position {until} (min_tokens, pinned)"
    assert error.value.fix == "allow one more token there"


def test_only_end_tokens_may_be_allowed_where_the_answer_may_end() -> None:
    assert tokens(rules(allowed=END).choices(0)) == [set(END)] * 8
    assert tokens(rules(allowed_at={6: END}, min_tokens=6).choices(0))[6] == set(END)


@pytest.mark.parametrize(
    ("options", "field", "value", "allowed"),
    [
        ({"min_tokens": 25}, "min_tokens", 25, "an integer from 0 to 24"),
        ({"pinned": {24: 3}}, "pinned: position", 24, "an integer from 0 to 23"),
        ({"pinned": {-1: 3}}, "pinned: position", -1, "an integer from 0 to 23"),
        ({"allowed_at": {30: (3,)}}, "allowed_at: position", 30, "an integer from 0 to 23"),
        ({"allowed": ()}, "allowed", (), "at least one token id"),
        ({"allowed_at": {3: ()}}, "allowed_at[3]", (), "at least one token id"),
        ({"seed_canvas": (3,) * 25}, "seed_canvas", "25 tokens", "at most max_tokens (24)"),
        ({"draft_every": -1}, "draft_every", -1, "an integer >= 0"),
        ({"deadline": 0}, "deadline", 0, "seconds > 0, or None"),
        ({"deadline": float("nan")}, "deadline", None, "seconds > 0, or None"),
        ({"priority": 2**31}, "priority", 2**31, "an integer from -2147483648 to 2147483647"),
        ({"canvas_length": 0}, "canvas_length", 0, 'an integer >= 1, "fit" or None'),
        ({"stop": ("a", "")}, "stop", "", "texts that are not empty"),
        ({"max_tokens": 0}, "max_tokens", 0, "an integer >= 1"),
    ],
)
def test_requests_are_refused_by_name(options: dict[str, Any], field: str, value: object, allowed: str) -> None:
    with pytest.raises(FieldError) as error:
        rules(**options)
    assert error.value.field == field
    assert value is None or error.value.value == value
    assert error.value.allowed == allowed
    assert error.value.fix
