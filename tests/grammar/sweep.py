"""Texts of random distributions under many schemas, each judged by json and jsonschema:

    python -m tests.grammar.sweep                  # 10,000 texts, minutes
    python -m tests.grammar.sweep --texts 200 --seed 7

Nothing of a model is in it but the read-out: logits are random, canvases 1 to 3, budgets from the fewest tokens up.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from typing import Any

import torch
from jsonschema import Draft202012Validator

from tests.grammar.random_schemas import random_schema
from tests.grammar.schemas import CASES
from tests.grammar.support import END, small_vocabulary
from tests.grammar.test_json_schema import _FORMATS
from trtllm_build.grammar.compile import compile_grammar
from trtllm_build.grammar.transitions import Transitions
from trtllm_build.network.pieces import statistics
from trtllm_build.network.vocabulary import Vocabulary
from trtllm_build.runtime.form import Form
from trtllm_build.sampling import Sampling

HIDDEN, CAP = 8, 30.0
SPACINGS = ("spaced", "compact", "flexible")


def schemas(count: int, seed: int) -> list[Any]:
    """The schemas of the tests' table, spread over it, and random ones: half and half."""
    g = random.Random(seed)
    table = [schema for schema, _, _ in CASES]
    g.shuffle(table)
    half = min(len(table), count // 2)
    return [*table[:half], *(random_schema(g)[0] for _ in range(count - half))]


def answer(transitions: Transitions, max_tokens: int, canvases: int, g: random.Random) -> bytes:
    """What a request gets whose model's logits are random: of each canvas the argmax or a sample of it."""
    vocabulary = small_vocabulary()
    t = torch.Generator().manual_seed(g.getrandbits(32))
    table = torch.randn(len(vocabulary.texts), HIDDEN, generator=t) * g.choice([0.0, 0.3, 3.0, 30.0])
    read = Vocabulary(table, CAP, 1.0, lambda *a: statistics(*a, cap=CAP))
    form = Form(transitions, max_tokens)
    canvas = -(-max_tokens // canvases)
    row: list[int] = []
    while len(row) < max_tokens and END not in row:
        constraint = form.constraint(canvas)
        hidden = torch.randn(canvas, HIDDEN, generator=t)
        sampling = Sampling(temperature=g.choice([0.0, 0.5, 1.0, 2.0]))
        found = read.read_out(
            hidden,
            g.choice([0.4, 0.8]),
            torch.rand(canvas, generator=t),
            False,
            sampling=sampling,
            constraint=constraint,
        )
        ids = g.choice([found.argmax_ids, found.sampled_ids]).tolist()[: constraint.rows]
        form.commit(ids)
        row += ids
    assert form.complete, (row, max_tokens, canvases)
    written = row[: row.index(END)] if END in row else row
    return b"".join(vocabulary.texts[token] or b"" for token in written)


def sweep(texts: int, count: int, seed: int) -> Counter[int]:
    """Judge so many texts over so many schemas.

    Returns:
        How many texts had one, two and three canvases.

    Raises:
        AssertionError: for a text that json or jsonschema does not take, with all that makes it again.
    """
    g = random.Random(seed)
    found: Counter[int] = Counter()
    for i, schema in enumerate(schemas(count, seed)):
        judge = Draft202012Validator(schema, format_checker=_FORMATS)
        spacing = SPACINGS[i % len(SPACINGS)]
        automaton = compile_grammar({"json_schema": schema, "whitespace": spacing}, small_vocabulary(), [END])
        transitions = Transitions.of(automaton)
        fewest = int(automaton.distance[automaton.start])
        for j in range(i, texts, count):
            # the fewest tokens, a few more, and room
            max_tokens = fewest + g.choice([0, 0, 1, 2, 5, 17, 60])
            canvases = 1 + j // count % 3
            text = answer(transitions, max_tokens, canvases, g)
            try:
                judge.validate(json.loads(text))
            except Exception as error:
                raise AssertionError(f"{text!r} of {schema}, {spacing}, {max_tokens} tokens") from error
            found[canvases] += 1
    return found


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=10_000)
    parser.add_argument("--schemas", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    found = sweep(given.texts, given.schemas, given.seed)
    canvases = ", ".join(f"{n} of {k}" for k, n in sorted(found.items()))
    print(f"{found.total()} texts over {given.schemas} schemas, by canvases: {canvases}; all are valid")


if __name__ == "__main__":
    main()
