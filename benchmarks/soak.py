"""Ten minutes of what users do to a server: tritonserver with 32 clients that ask, go away, and send nonsense.

With ``--hostile`` ten more, in which others attack it meanwhile, and p99 of the honest ones has to stay within twice.

10 % of requests are cancelled at a random moment, 5 % are malformed, 2 % over-long. Ends with status 1 unless every
request ended in exactly one way, every answer is the engine's own, memory stays flat, no slot and no process is left,
and the server's metrics add up with what the clients saw. `make demo` first.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import aclosing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import OUT, run, show
from benchmarks.processes import Watch, resident, tree
from benchmarks.soak_hostile import Done, Hostile, Place
from benchmarks.soak_metrics import SETTLE_S, adds_up, scrape, settle, wait_until
from benchmarks.soak_picture import write_picture
from benchmarks.soak_requests import Known, known
from benchmarks.soak_traffic import CLIENTS, Seen, Traffic
from nemo_diffgemma.errors import require
from triton_repo.client.client import Client
from triton_repo.launcher.server import Server, ServerFailed
from triton_repo.tensors import MOST_STEPS
from trtllm_build import load_engine

FLAT = 0.05  # mean memory of the last third of the samples over that of the first, less 1
SHORT, LONG = 96, 24  # requests with known answers
SAMPLES = 600
SLOWER = 2.0  # p99 beside hostile clients over that without, at most


@dataclass(frozen=True)
class Phase:
    """What came of a part of a soak.

    Args:
        name: whom the honest clients had beside them.
        seen: by the honest clients.
        served: what the server's counters rose by, by name and last label.
        growth: of the memory of each process.
        hostile: what the others did; None without.
    """

    name: str
    seen: Seen
    served: dict[str, float]
    growth: dict[str, float]
    hostile: Done | None

    def row(self) -> dict[str, Any]:
        """Its figures."""
        seen = self.seen
        took = {"all": [s for took in seen.took_s.values() for s in took], **seen.took_s}
        attacks = {} if self.hostile is None else self.hostile.counts
        return {
            "requests": seen.sent,
            **dict(sorted(seen.ends.items())),
            **{f"meant_{kind}": count for kind, count in sorted(seen.kinds.items())},
            **{
                f"p{share}_ms_{where}": 1000 * float(np.percentile(s, share))
                for where, s in took.items()
                for share in (50, 99)
                if s
            },
            **{f"memory_growth_{name}": value for name, value in self.growth.items()},
            **{f"hostile_{kind}": count for kind, count in sorted(attacks.items())},
        }


@dataclass(frozen=True)
class Result:
    """What came of a soak.

    Args:
        phases: one; with hostile clients two, of which the second is theirs.
        conditions: what has to hold, in words, and whether it does.
    """

    phases: tuple[Phase, ...]
    conditions: dict[str, bool]

    @property
    def p99_ratio(self) -> dict[str, float]:
        """p99 of plain answered requests beside hostile clients over that without, by where they were sent."""
        first, last = self.phases[0].row(), self.phases[-1].row()
        return {key.removeprefix("p99_ms_"): last[key] / first[key] for key in first if key.startswith("p99_ms_")}

    @property
    def problems(self) -> list[str]:
        """What must not happen, in words."""
        return [
            problem
            for phase in self.phases
            for problem in (*phase.seen.problems, *([] if phase.hostile is None else phase.hostile.problems))
        ]


def main() -> None:
    """Entry point; exits with status 1 when a condition fails."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--engine", type=Path, default=Path("build/demo/engine"), help="bundle (%(default)s)")
    parser.add_argument("--minutes", type=float, default=10.0, help="of each phase (%(default)s)")
    parser.add_argument("--clients", type=int, default=CLIENTS, help="(%(default)s)")
    about = "then as long again with hostile clients beside them; some ask OpenAI's endpoint"
    parser.add_argument("--hostile", action="store_true", help=about)
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
        result = soak(given.engine, 60 * given.minutes, given.clients, picture, log, given.hostile)
    except ServerFailed as error:
        raise SystemExit(f"error: {error}\n{log} has it all") from None
    names = {name: None for phase in result.phases for name in phase.row()}
    rows = [
        {
            "soak": f"{given.clients} clients, {given.minutes:g} min, {phase.name}",
            **{name: phase.row().get(name, 0) for name in names},
        }
        for phase in result.phases
    ]
    told = {condition: "yes" if good else "NO" for condition, good in result.conditions.items()}
    ratio = {"p99_ratio": result.p99_ratio} if given.hostile else {}
    served = {phase.name: phase.served for phase in result.phases}
    show("soak", f"soak; {picture}", rows, **ratio, conditions=told, problems=result.problems[:20], served=served)
    for problem, count in Counter(result.problems).most_common(10):
        print(f"{count} times: {problem}", file=sys.stderr)
    for condition, good in result.conditions.items():
        if not good:
            print(f"does not hold: {condition}", file=sys.stderr)
    if not all(result.conditions.values()):
        raise SystemExit(1)


def soak(
    bundle: Path, seconds: float, clients: int, picture: Path | None, log: Path | None = None, hostile: bool = False
) -> Result:
    """Start a server, have it used for so many seconds, look at what is left.

    Args:
        bundle: whose engine has a tokenizer.
        seconds: of traffic, in each phase.
        clients: at once.
        picture: of memory and rate over time, a PNG; None for none. That of a second phase lies beside it.
        log: file that gets the server's output; None: it is lost.
        hostile: a second phase follows, in which hostile clients are there, too; and there is a gateway in both.

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
    with Server(
        bundle, http_port=0, grpc_port=0, metrics_port=0, openai_port=0 if hostile else None, log_file=log
    ) as server:
        pids = _processes(server)
        openai_url = server.openai_url if hostile else None

        def traffic(seconds: float) -> Traffic:
            return Traffic(server.grpc_url, short, long, limits.context, seconds, clients, openai_url)

        phases = [_phase(server, pids, traffic, seconds, picture, None)]
        if openai_url is not None:
            place = Place(server.grpc_url, server.http_url, openai_url, server.pid)
            beside = None if picture is None else picture.with_stem(f"{picture.stem}_hostile")
            phases.append(_phase(server, pids, traffic, seconds, beside, place))
        held = asyncio.run(_fill(server.grpc_url, limits.slots, long[0]))
        left = settle(server.metrics_url)
        server.probe()
        same = _processes(server) == pids
    gone = wait_until(lambda: not any(map(resident, pids.values())), 5.0)
    conditions = {name: good for phase in phases for name, good in _judged(phase).items()}
    conditions |= {
        "all slots can be filled": held,
        "none is held at the end": left,
        "no process was replaced": same,
        "no process or memory is left": gone and _regions() == regions,
    }
    result = Result(tuple(phases), conditions)
    if hostile:
        conditions[f"p99 beside hostile clients at most {SLOWER:g} times that without"] = (
            result.p99_ratio["all"] <= SLOWER
        )
    return result


def _phase(
    server: Server,
    pids: dict[str, int],
    traffic: Callable[[float], Traffic],
    seconds: float,
    picture: Path | None,
    place: Place | None,
) -> Phase:
    hostile = nullcontext() if place is None else Hostile(place)
    with hostile:
        # What the processes fetch once, they have fetched then.
        asyncio.run(traffic(min(10.0, seconds / 10)).run())
        server.check()
        if place is None:
            settle(server.metrics_url)
        before = scrape(server.metrics_url)
        asked = traffic(seconds)
        with Watch(pids, max(0.1, seconds / SAMPLES)) as watch:
            asyncio.run(asked.run())
    server.check()
    settle(server.metrics_url)
    after = scrape(server.metrics_url)
    served = {
        name: after[name] - before.get(name, 0.0)
        for name in after
        if name.startswith("diffgemma_") and "_bucket" not in name
    }
    if picture is not None:
        write_picture(watch, asked.seen, picture)
    growth = {name: watch.growth(name) for name in pids}
    if isinstance(hostile, Hostile):
        return Phase("hostile ones beside them", asked.seen, served, growth, hostile.done)
    return Phase("by themselves", asked.seen, served, growth, None)


def _judged(phase: Phase) -> dict[str, bool]:
    seen = phase.seen
    found = {
        "every request ended in one way": sum(seen.ends.values()) == seen.sent and not set(seen.ends) - _WAYS,
        "all answers right, nothing else wrong": not seen.problems,
        **{f"memory of {name} flat": growth <= FLAT for name, growth in phase.growth.items()},
        **adds_up(seen, phase.served, alone=phase.hostile is None),
    }
    if phase.hostile is None:
        return found
    found["each attack was told what it is told alone"] = not phase.hostile.problems
    return {f"{name}, beside hostile clients": good for name, good in found.items()}


_WAYS = {"answered", "refused", "cancelled", "unavailable"}


def _processes(server: Server) -> dict[str, int]:
    gateway = server.gateway_pid
    return tree(server.pid) | ({} if gateway is None else {"gateway": gateway})


def _regions() -> set[Path]:
    """Shared memory of servers that this process started."""
    return set(Path("/dev/shm").glob(f"diffgemma_{os.getpid()}_*"))


async def _fill(url: str, slots: int, request: Known) -> bool:
    """Whether so many requests can hold a slot at once."""
    holding = asyncio.Barrier(slots)

    async def hold(client: Client) -> None:
        asked = {**request.inputs, "max_denoising_steps": MOST_STEPS, "drafts": True}
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
