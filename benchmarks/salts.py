"""Whether the time to the first block tells what others have asked: one prompt, under its own salt, another, and cold.

One request at a time against a real server. Before each that is timed, a prompt with the same long beginning is asked
for under a salt. Then the beginning is asked for again: under that salt (``same``), under another (``other``), or one
that nobody has ever sent, under another (``cold``); in random order. A two-sided rank test (Mann-Whitney U) compares
``other`` with ``cold``, which must look alike, and ``same`` with ``cold``, which must not: else nothing was measured.
`make demo` first.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import time
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scipy.stats import mannwhitneyu

from benchmarks.common import run, show
from nemo_diffgemma.errors import require, require_integer
from triton_repo.bench.prompts import synthetic
from triton_repo.client.client import Client
from triton_repo.launcher.server import Server
from trtllm_build.hardware import beside_the_engine

SAME, OTHER, COLD = "same", "other", "cold"
_ALPHA = 0.01  # a server that leaks nothing fails once in so many runs
_PREFIX, _TAIL = 700, 4  # tokens; what is kept of a prompt is at least 512
_WARM_UP = 5  # rounds that are not counted


@dataclass
class Timed:
    """One kind of request.

    Args:
        first_s: seconds from sending each to its first block.
        cached: tokens of each that were found in the cache.
    """

    first_s: list[float] = field(default_factory=list)
    cached: list[int] = field(default_factory=list)

    def row(self, kind: str) -> dict[str, Any]:
        """Its figures."""
        return {
            "salt": kind,
            "requests": len(self.first_s),
            "first_block_ms_p50": 1000 * statistics.median(self.first_s),
            "first_block_ms_p10": 1000 * statistics.quantiles(self.first_s, n=10)[0],
            "first_block_ms_p90": 1000 * statistics.quantiles(self.first_s, n=10)[-1],
            "cached_tokens_most": max(self.cached),
            "cached_tokens_least": min(self.cached),
        }


def main() -> None:
    """Entry point; exits with status 1 when salts can be told apart, or the cache cannot."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.salts", description=__doc__)
    parser.add_argument("--engine", type=Path, default=Path("build/demo/engine"), metavar="DIR", help="(%(default)s)")
    parser.add_argument("--repeats", type=int, default=300, metavar="N", help="of each kind (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of prompts and order (default: %(default)s)")
    given = parser.parse_args()
    require_integer("--repeats", given.repeats, 10)
    found = given.engine.is_dir()
    require(found, field="engine", value=str(given.engine), allowed="an engine bundle", fix="run `make demo`")
    with Server(given.engine, http_port=0, grpc_port=0, metrics_port=0) as server:
        os.sched_setaffinity(0, beside_the_engine())  # as clients on other machines
        timed = asyncio.run(measured(server.grpc_url, given.repeats, given.seed))
    tests = {f"{kind} against {COLD}": compared(timed[kind], timed[COLD]) for kind in (OTHER, SAME)}
    conditions = {
        "another salt looks like a prompt that nobody sent": tests[f"{OTHER} against {COLD}"]["p"] >= _ALPHA,
        "the same salt does not": tests[f"{SAME} against {COLD}"]["p"] < _ALPHA,
        "found in the cache: under the same salt alone": min(timed[SAME].cached) >= _PREFIX
        and max(timed[OTHER].cached + timed[COLD].cached) == 0,
    }
    rows = [timed[kind].row(kind) for kind in (SAME, OTHER, COLD)]
    told = {condition: "yes" if good else "NO" for condition, good in conditions.items()}
    title = f"time to the first block, beginning of {_PREFIX} tokens"
    show("salts", title, rows, test="Mann-Whitney U, two-sided", alpha=_ALPHA, tests=tests, conditions=told)
    if not all(conditions.values()):
        raise SystemExit(1)


async def measured(url: str, repeats: int, seed: int) -> dict[str, Timed]:
    """Ask ``repeats`` times for each kind, in random order.

    Args:
        url: of the gRPC endpoint of a server that nobody else asks.
        repeats: of each kind.
        seed: of prompts and order.
    """
    prompts, tails = synthetic(_PREFIX, seed), synthetic(_TAIL, seed + 1)
    draw = random.Random(seed)
    order = draw.sample([SAME, OTHER, COLD] * repeats, 3 * repeats)
    timed = {kind: Timed() for kind in (SAME, OTHER, COLD)}
    async with Client(url) as client:
        for number, kind in enumerate([*([SAME, OTHER, COLD] * _WARM_UP), *order]):
            known, new = prompts(2 * number)["input_ids"], prompts(2 * number + 1)["input_ids"]
            # of this nothing but the prompt is kept: its answer is one canvas
            await _asked(client, known, f"{number}")
            asked = (new if kind == COLD else known) + tails(number)["input_ids"]
            found = await _asked(client, asked, f"{number}" if kind == SAME else f"{number} too")
            if number >= 3 * _WARM_UP:
                timed[kind].first_s.append(found[0])
                timed[kind].cached.append(found[1])
    return timed


def compared(one: Timed, other: Timed) -> dict[str, float]:
    """The rank test of two kinds.

    Returns:
        ``p``: two-sided; ``slower``: the share of pairs in which ``one`` took longer, 0.5 where nothing tells them
        apart; ``ms``: the difference of the medians.
    """
    result = mannwhitneyu(one.first_s, other.first_s, alternative="two-sided")
    pairs = len(one.first_s) * len(other.first_s)
    difference = statistics.median(one.first_s) - statistics.median(other.first_s)
    return {"p": float(result.pvalue), "slower": float(result.statistic) / pairs, "ms": 1000 * difference}


async def _asked(client: Client, ids: list[int], salt: str) -> tuple[float, int]:
    """Seconds to the first block, and how many tokens of the prompt were in the cache."""
    began, first, cached = time.perf_counter(), None, None
    asked = client.generate(input_ids=ids, max_tokens=4, max_denoising_steps=1, ignore_eos=True, cache_salt=salt)
    async with aclosing(asked) as responses:
        async for response in responses:
            first = first or time.perf_counter() - began
            cached = response.num_cached_tokens
    assert first is not None
    assert cached is not None
    return first, cached


if __name__ == "__main__":
    run(main)
