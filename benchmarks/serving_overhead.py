"""What serving costs: tritonserver over gRPC beside the same engine in process, under the same closed loops, in turns.

Each side has a process of its own for its loop; prompts, seeds and settings are the same, and so must the answers be.
In process, loop and engine may use every CPU. The load generator, which stands for clients on other machines, keeps off
the CPU that the service leaves to its engine; it shares the rest with tritonserver. `floor_ms` is what a request takes
that is refused before it reaches the engine: client, tritonserver and the model's process alone.
`make demo` first.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from scipy.stats import quantile_test

from benchmarks.closed_loops import Measured, Work, in_process, load, refused, through_server
from benchmarks.common import built_engine, console, random_checkpoint, run, show
from benchmarks.processes import ENGINE, cpu_s, held_up, tree, turns
from nemo_diffgemma.checkpoint import HELD_OUT
from nemo_diffgemma.errors import require
from triton_repo.bench.statistics import summarize
from triton_repo.launcher.server import Server
from triton_repo.tensors import MODEL
from trtllm_build.hardware import beside_the_engine

MOST_LOST = 0.05  # share of the throughput in process
MOST_MS = 5.0  # p50 to first block, over in process
SHOWN = ("tritonserver", MODEL, ENGINE)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", type=Path, default=Path("build/demo/engine"), help="bundle (%(default)s)")
    about = f"prompts, as `diffgemma bench` takes them (default: {HELD_OUT} of the checkpoint beside the bundle)"
    parser.add_argument("--prompts", type=Path, help=about)
    parser.add_argument("--random", action="store_true", help="a random 184M model instead: steps of 0.2 s")
    parser.add_argument("--rounds", type=int, default=25, help="of each side, at least 6 (%(default)s)")
    parser.add_argument("--requests", type=int, help="a round (120; 4 a client of the random model)")
    loops = "may be repeated (default: 1, the engine's slots, twice as many)"
    parser.add_argument("--concurrency", type=int, action="append", help=loops)
    given = parser.parse_args()
    require(
        given.rounds >= 6,
        field="--rounds",
        value=given.rounds,
        allowed="at least 6: of fewer there is no interval",
        fix="pass --rounds 7",
    )
    # As diffgemma-serve has it: threads that spin while they wait take the other side's core.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    engine, work, name = _random() if given.random else _demo(given.engine, given.prompts)
    context = multiprocessing.get_context("spawn")
    with (
        Server(engine, http_port=0, grpc_port=0, metrics_port=0) as server,
        # Linux may share the CPU by session, and tritonserver has one of its own.
        ProcessPoolExecutor(1, context, os.setsid) as local,
        ProcessPoolExecutor(1, context, _client) as remote,
    ):
        slots = local.submit(load, engine).result()
        pids = tree(server.pid)
        floor_ms = 1000 * remote.submit(refused, server.grpc_url, 300).result()
        rows = []
        for concurrency in given.concurrency or (1, slots, 2 * slots):
            requests = given.requests or (4 * concurrency if given.random else 120)
            inside: list[Measured] = []
            outside: list[Measured] = []
            cpu: list[dict[str, float]] = []
            waited: list[float] = []

            def run_inside(c: int = concurrency, r: int = requests, found: list[Measured] = inside) -> None:
                found.append(local.submit(in_process, work, c, r).result())

            def run_outside(
                c: int = concurrency,
                r: int = requests,
                found: list[Measured] = outside,
                cpu: list[dict[str, float]] = cpu,
                waited: list[float] = waited,
            ) -> None:
                before = {name: cpu_s(pid) for name, pid in pids.items()}
                threads = turns(pids[ENGINE])
                found.append(remote.submit(through_server, server.grpc_url, work, c, r).result())
                cpu.append({name: (cpu_s(pid) - before[name]) / r for name, pid in pids.items()})
                waited.append(held_up(threads, turns(pids[ENGINE])))

            for turn in range(given.rounds + 1):  # the first warms up
                for run in (run_inside, run_outside)[:: 1 if turn % 2 else -1]:
                    run()
                line = f"{_line(inside[-1])} in process, {_line(outside[-1])} through tritonserver"
                console.print(f"{concurrency} in flight, turn {turn}: {line}", style="dim")
            row = compare(concurrency, inside[1:], outside[1:], cpu[1:])
            rows.append({**row, "engine_held_up": statistics.median(waited[1:]), "floor_ms": floor_ms})
    show(name, f"serving overhead, {name}", rows, rounds=given.rounds, slots=slots)
    if not all(row["same_answers"] for row in rows):
        raise SystemExit("error: tritonserver's answers are not the engine's")


def compare(
    concurrency: int, inside: list[Measured], outside: list[Measured], cpu: list[dict[str, float]]
) -> dict[str, Any]:
    """The figures of one concurrency; those of both sides are medians over rounds, overheads medians of differences,
    with their intervals of 95 % confidence: the speed of a shared machine changes from round to round.

    Args:
        concurrency: of the loops.
        inside, outside: rounds.
        cpu: seconds of CPU a request, by the server's process, of the rounds outside.
    """
    a, b = [summarize(m.records) for m in inside], [summarize(m.records) for m in outside]
    lost = [1 - y.tokens_per_second / x.tokens_per_second for x, y in zip(a, b, strict=True)]
    late = [1000 * (_first(y) - _first(x)) for x, y in zip(a, b, strict=True)]
    return {
        "in flight": concurrency,
        "in_process_tokens_per_second": statistics.median(s.tokens_per_second for s in a),
        "triton_tokens_per_second": statistics.median(s.tokens_per_second for s in b),
        "throughput_lost": statistics.median(lost),
        "throughput_lost_interval": "{:.3f} to {:.3f}".format(*_interval(lost)),
        "in_process_first_block_ms_p50": 1000 * statistics.median(_first(s) for s in a),
        "triton_first_block_ms_p50": 1000 * statistics.median(_first(s) for s in b),
        "first_block_ms_added": statistics.median(late),
        "first_block_ms_added_interval": "{:.2f} to {:.2f}".format(*_interval(late)),
        "cpu_ms_per_request_in_process": 1000 * statistics.median(m.cpu_s / len(m.records) for m in inside),
        **{f"cpu_ms_per_request_{name}": 1000 * statistics.median(took[name] for took in cpu) for name in SHOWN},
        "cpu_ms_per_request_client": 1000 * statistics.median(m.cpu_s / len(m.records) for m in outside),
        f"within_{MOST_LOST:.0%}": str(statistics.median(lost) <= MOST_LOST),
        f"within_{MOST_MS:g}_ms": str(statistics.median(late) <= MOST_MS),
        "same_answers": all(x.tokens == y.tokens for x, y in zip(inside, outside, strict=True)),
    }


def _client() -> None:
    os.setsid()
    os.sched_setaffinity(0, beside_the_engine())


def _first(summary: Any) -> float:
    assert summary.first_block is not None, "a request was answered"
    return float(summary.first_block.p50)


def _interval(values: list[float]) -> tuple[float, float]:
    """Of the median."""
    low, high = quantile_test(values, p=0.5).confidence_interval(0.95)
    return float(low), float(high)


def _line(measured: Measured) -> str:
    return f"{summarize(measured.records).tokens_per_second:,.0f} tokens/s"


def _demo(engine: Path, prompts: Path | None) -> tuple[Path, Work, str]:
    file = prompts or engine.parent / "checkpoint" / HELD_OUT
    require(engine.is_dir(), field="engine", value=str(engine), allowed="an engine bundle", fix="run `make demo`")
    require(
        file.is_file(),
        field="prompts",
        value=str(file),
        allowed="a file of prompts",
        fix="run `make demo`, or pass --prompts FILE",
    )
    return engine, Work(file, 0, 64, {}, {}), "serving_overhead"


def _random() -> tuple[Path, Work, str]:
    """Four forced steps of a canvas of 32, after 64 tokens."""
    from benchmarks.cpu_vs_transformers import NEVER, shapes

    engine = built_engine(random_checkpoint("184m", shapes()), "184m/fp32", "precision=fp32")
    sampler = {"max_denoising_steps": 4, "confidence_threshold": NEVER}
    work = Work(None, 64, 32, sampler, {"canvas_length": 32, "ignore_eos": True})
    return engine, work, "serving_overhead_184m"


if __name__ == "__main__":
    run(main)
