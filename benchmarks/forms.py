"""What a guaranteed form costs: compiling a schema over 262,144 tokens, and a step of a 184M-parameter model.

The vocabulary is made up: bytes, JSON's pieces and words of random letters, with and without a space. Weights are
random.
"""

from __future__ import annotations

import argparse
import random
import statistics
import string
import time
from typing import Any

from benchmarks.common import built_engine, random_checkpoint, run, show
from benchmarks.cpu_vs_transformers import shapes
from nemo_diffgemma.errors import require_integer
from trtllm_build import Engine, load_engine
from trtllm_build.grammar.compile import compile_grammar
from trtllm_build.grammar.token_automaton import TokenAutomaton
from trtllm_build.grammar.vocabulary import Vocabulary

_PIECES = (
    '{"',
    '"}',
    '": "',
    '", "',
    '": ',
    ", ",
    '": [',
    '"]',
    '": {"',
    "}}",
    "]}",
    "true",
    "false",
    "null",
    "\n",
    "  ",
)
_LENGTHS = (2, 3, 4, 5, 6, 7, 8, 9, 10, 12)
_FORMATS = ("date", "date-time", "email", "uuid")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.forms", description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="of each, in turns (default: %(default)s)")
    repeats = parser.parse_args().repeats
    require_integer("--repeats", repeats, 1)
    engine = load_engine(built_engine(random_checkpoint("184m", shapes()), "184m/fp32"))
    ends = engine.spec.arch.eos_token_ids
    start = time.perf_counter()
    vocabulary = made_up(engine.limits.vocab_size, set(ends))
    assert vocabulary.trie
    prepared_s = time.perf_counter() - start
    rows, grammars = compiled(vocabulary, ends, repeats)
    show("forms_compiled", f"{engine.limits.vocab_size:,} tokens", rows, prepared_once_s=prepared_s)
    try:
        rows = steps(engine, grammars, repeats)
    finally:
        engine.close()
    show("forms_steps", "a canvas of 256 tokens, 184M parameters, 262,144 tokens", rows)


def made_up(size: int, ends: set[int]) -> Vocabulary:
    """A vocabulary of different texts, as many of them words as a language model's are."""
    draw = random.Random(0)
    texts: dict[bytes, None] = dict.fromkeys([*(bytes([b]) for b in range(256)), *(p.encode() for p in _PIECES)])
    while len(texts) < size - len(ends):
        word = "".join(draw.choices(string.ascii_letters, k=draw.choice(_LENGTHS)))
        texts[draw.choice((b"", b" ")) + word.encode()] = None
    rest = iter(texts)
    return Vocabulary(tuple(None if token in ends else next(rest) for token in range(size)))


def schema(fields: int) -> dict[str, Any]:
    """An object of texts, numbers, dates, choices and lists."""
    kinds: tuple[dict[str, Any], ...] = (
        {"type": "string", "minLength": 1, "maxLength": 40},
        {"type": "integer", "minimum": 0, "maximum": 100_000},
        {"enum": ["low", "middle", "high"]},
        {"type": "number"},
        {"type": "array", "items": {"type": "string"}, "maxItems": 3},
        {"type": "boolean"},
    )
    properties = {
        f"field_{i}": {"type": "string", "format": _FORMATS[i // 7 % 4]} if i % 7 == 6 else kinds[i % 7]
        for i in range(fields)
    }
    return {"type": "object", "properties": properties, "required": list(properties)}


def compiled(
    vocabulary: Vocabulary, ends: tuple[int, ...], repeats: int
) -> tuple[list[dict[str, Any]], dict[str, TokenAutomaton]]:
    """Times of compiling, and what was compiled, by name."""
    asked: dict[str, dict[str, Any]] = {
        "choice of 2": {"choice": ["yes", "no"]},
        "regex": {"regex": "[A-Z]{2}-[0-9]{4}"},
        "schema of 5 fields": {"json_schema": schema(5)},
        "schema of 20 fields": {"json_schema": schema(20)},
        "any object": {"json_object": True},
    }
    rows, found = [], {}
    for name, grammar in asked.items():
        seconds, cpu = [], []
        for _ in range(repeats):
            start, began = time.perf_counter(), time.thread_time()
            found[name] = compile_grammar(grammar, vocabulary, ends)
            seconds.append(time.perf_counter() - start)
            cpu.append(time.thread_time() - began)
        states, classes = found[name].target.shape[1], len(found[name].target)
        figures = {"s": statistics.median(seconds), "cpu_s": statistics.median(cpu)}
        rows.append({"form": name, "states": states, "classes": classes, **figures})
    return rows, found


def steps(engine: Engine, grammars: dict[str, TokenAutomaton], repeats: int) -> list[dict[str, Any]]:
    """Time of a denoising step without a form and with each, in turns."""
    prompt = list(range(1000, 1064))
    forms: dict[str, TokenAutomaton | None] = {"none": None, **grammars}
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(repeats):
        for name, automaton in forms.items():
            seconds[name].append(step_seconds(engine, prompt, automaton))
    free = seconds["none"]
    return [
        {
            "form": name,
            "ms_per_step": 1000 * statistics.median(took),
            "over_none": statistics.median(a / b for a, b in zip(took, free, strict=True)),
        }
        for name, took in seconds.items()
    ]


def step_seconds(engine: Engine, prompt: list[int], automaton: TokenAutomaton | None) -> float:
    """Of a denoising step: what five of them take longer than one, which leaves out the prompt."""
    settings: dict[str, Any] = {"confidence_threshold": 0.0, "canvas_length": 256}
    seconds = []
    for count in (1, 5):
        (result,) = engine.generate(
            [prompt], max_tokens=256, stream=False, max_denoising_steps=count, grammar=automaton, **settings
        )
        seconds.append(result.stats.seconds)
    return (seconds[1] - seconds[0]) / 4


if __name__ == "__main__":
    run(main)
