"""Ten minutes of what users do to a server: tritonserver with 32 clients that ask, go away, and send nonsense.

10 % of requests are cancelled at a random moment, 5 % are malformed, 2 % over-long. Ends with status 1 unless every
request ended in exactly one way, every answer is the engine's own, memory stays flat, no slot and no process is left,
and the server's metrics add up with what the clients saw. `make demo` first.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import sys
import time
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import OUT, run, show
from benchmarks.processes import Watch, resident, tree
from benchmarks.soak_picture import write_picture
from benchmarks.soak_requests import Known, known
from benchmarks.soak_traffic import CLIENTS, Seen, Traffic
from nemo_diffgemma.errors import require
from triton_repo.client.client import Client
from triton_repo.launcher.server import Server, ServerFailed
from trtllm_build import load_engine

FLAT = 0.05  # mean memory of the last third of the samples over that of the first, less 1
SHORT, LONG = 96, 24  # requests with known answers
SETTLE_S = 30.0  # for what was cancelled last to end
SAMPLES = 600
_LINE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True)
class Result:
    """What came of a soak.

    Args:
        seen: by the clients.
        served: what the server's counters rose by, by name and last label.
        growth: of the memory of each process.
        conditions: what has to hold, in words, and whether it does.
    """

    seen: Seen
    served: dict[str, float]
    growth: dict[str, float]
    conditions: dict[str, bool]


def main() -> None:
    """Entry point; exits with status 1 when a condition fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", type=Path, default=Path("build/demo/engine"), help="bundle (%(default)s)")
    parser.add_argument("--minutes", type=float, default=10.0, help="(%(default)s)")
    parser.add_argument("--clients", type=int, default=CLIENTS, help="(%(default)s)")
    given = parser.parse_args()
    require(
        given.engine.is_dir(),
        field="engine",
        value=str(given.engine),
        allowed="an engine bundle",
        fix="run `make demo`",
    )
    OUT.mkdir(parents=True, exist_ok=True)
    picture = OUT / "soak.png"
    log = OUT / "soak.log"
    log.unlink(missing_ok=True)
    try:
        result = soak(given.engine, 60 * given.minutes, given.clients, picture, log)
    except ServerFailed as error:
        raise SystemExit(f"error: {error}\n{log} has it all") from None
    seen = result.seen
    row = {
        "soak": f"{given.clients} clients, {given.minutes:g} min",
        "requests": seen.sent,
        **dict(sorted(seen.ends.items())),
        **{f"meant_{kind}": count for kind, count in sorted(seen.kinds.items())},
        **{f"memory_growth_{name}": value for name, value in result.growth.items()},
        **{condition: "yes" if good else "NO" for condition, good in result.conditions.items()},
    }
    show("soak", f"soak; {picture}", [row], problems=seen.problems[:20], served=result.served)
    for problem, count in Counter(seen.problems).most_common(10):
        print(f"{count} times: {problem}", file=sys.stderr)
    if not all(result.conditions.values()):
        raise SystemExit(1)


def soak(bundle: Path, seconds: float, clients: int, picture: Path | None, log: Path | None = None) -> Result:
    """Start a server, have it used for so many seconds, look at what is left.

    Args:
        bundle: whose engine has a tokenizer.
        seconds: of traffic.
        clients: at once.
        picture: of memory and rate over time, a PNG; None for none.
        log: file that gets the server's output; None: it is lost.

    Raises:
        ServerFailed: when tritonserver or a model's process ended, with the end of the log.
    """
    engine = load_engine(bundle)
    require(
        engine.tokenizer is not None,
        field="engine",
        value=str(bundle),
        allowed="an engine with a tokenizer",
        fix="build one",
    )
    limits = engine.limits
    short, long = known(engine, SHORT, long=False), known(engine, LONG, long=True)
    engine.close()
    regions = _regions()
    with Server(bundle, http_port=0, grpc_port=0, metrics_port=0, log_file=log) as server:
        pids = tree(server.pid)
        # What the processes fetch once, they have fetched then.
        asyncio.run(Traffic(server.grpc_url, short, long, limits.context, min(10.0, seconds / 10), clients).run())
        server.check()
        _settle(server.metrics_url)
        before = scrape(server.metrics_url)
        traffic = Traffic(server.grpc_url, short, long, limits.context, seconds, clients)
        with Watch(pids, max(0.1, seconds / SAMPLES)) as watch:
            asyncio.run(traffic.run())
        server.check()
        _settle(server.metrics_url)
        after = scrape(server.metrics_url)
        held = asyncio.run(_fill(server.grpc_url, limits.slots, long[0]))
        left = _settle(server.metrics_url)
        server.probe()
        same = tree(server.pid) == pids
    gone = _wait_until(lambda: not any(map(resident, pids.values())), 5.0)
    served = {
        name: after[name] - before.get(name, 0.0)
        for name in after
        if name.startswith("diffgemma_") and "_bucket" not in name
    }
    growth = {name: watch.growth(name) for name in pids}
    seen = traffic.seen
    conditions = {
        "every request ended in one way": sum(seen.ends.values()) == seen.sent and not set(seen.ends) - _WAYS,
        "all answers right, nothing else wrong": not seen.problems,
        **{f"memory of {name} flat": growth[name] <= FLAT for name in pids},
        "all slots can be filled": held,
        "none is held at the end": left,
        "no process was replaced": same,
        "no process or memory is left": gone and _regions() == regions,
        **adds_up(seen, served),
    }
    if picture is not None:
        write_picture(watch, seen, picture)
    return Result(seen, served, growth, conditions)


_WAYS = {"answered", "refused", "cancelled", "unavailable"}


def adds_up(seen: Seen, served: dict[str, float]) -> dict[str, bool]:
    """Whether the server counted what the clients saw.

    Of requests whose client went away some had just been answered, and some never reached the model: that is as far as
    the two may differ.
    """
    outcomes = {key.partition(" ")[2]: value for key, value in served.items() if key.startswith("diffgemma_requests")}
    answered = outcomes.get("stop", 0) + outcomes.get("length", 0)
    gone = seen.ends["cancelled"]
    return {
        "metrics: answered": seen.ends["answered"] <= answered <= seen.ends["answered"] + gone,
        "metrics: each finish reason": all(
            count <= outcomes.get(reason, 0) <= count + gone for reason, count in seen.reasons.items()
        ),
        "metrics: cancelled": answered + outcomes.get("cancelled", 0) <= seen.ends["answered"] + gone,
        "metrics: refused": outcomes.get("refused", -1) == seen.by_model,
        "metrics: unavailable": outcomes.get("unavailable", -1) == seen.ends["unavailable"],
        "metrics: no errors, no deadlines": outcomes.get("error", -1) == outcomes.get("deadline", -1) == 0,
        "metrics: tokens": served.get("diffgemma_output_tokens_total", -1) >= seen.tokens,
    }


def scrape(url: str) -> dict[str, float]:
    """Prometheus values by name and, after a space, the value of its label other than model and version, if any."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    found: defaultdict[str, float] = defaultdict(float)
    for name, labels, value in _LINE.findall(text):
        kind = "".join(text for label, text in _LABEL.findall(labels) if label not in ("model", "version"))
        found[f"{name} {kind}".strip()] += float(value)
    return dict(found)


def _regions() -> set[Path]:
    """Shared memory of servers that this process started."""
    return set(Path("/dev/shm").glob(f"diffgemma_{os.getpid()}_*"))


def _settle(url: str) -> bool:
    """Wait until no request waits or holds a slot or a block of the cache; False when that takes too long."""
    gauges = [f"nv_trt_llm_request_metrics {kind}" for kind in ("waiting", "context", "scheduled", "active")]
    gauges.append("nv_trt_llm_kv_cache_block_metrics used")
    idle = _wait_until(lambda: not any(scrape(url)[gauge] for gauge in gauges), SETTLE_S)
    # Counters are brought up to date with the gauges, or just after.
    time.sleep(0.5)
    return idle


def _wait_until(condition: Callable[[], bool], budget_s: float) -> bool:
    """Whether it holds within so many seconds."""
    deadline = time.monotonic() + budget_s
    while not (held := condition()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return held


async def _fill(url: str, slots: int, request: Known) -> bool:
    """Whether so many requests can hold a slot at once."""
    holding = asyncio.Barrier(slots)

    async def hold(client: Client) -> None:
        asked = {**request.inputs, "max_denoising_steps": 2**31 - 1, "drafts": True}
        async with aclosing(client.generate(**asked)) as responses:
            async for response in responses:
                # A draft comes only from a slot; one that got none could not come to the barrier.
                assert response.provisional
                await holding.wait()
                return

    async with Client(url) as client:
        work = [asyncio.create_task(hold(client)) for _ in range(slots)]
        done, pending = await asyncio.wait(work, timeout=SETTLE_S)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        return len(done) == slots and not any(task.exception() for task in done)


if __name__ == "__main__":
    run(main)
