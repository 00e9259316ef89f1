"""Requests in flight: 1,000 simulated ones with faults through the scheduler, and 64 of the demo at 8 slots.

`make demo` first.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import Counter

from benchmarks.common import demo, run, show
from trtllm_build.runtime.request import Request
from trtllm_build.runtime.scheduler import Job, QueueFull, Scheduler


def main() -> None:
    """Entry point."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    ends = simulate(1000)
    rows = [{"requests": "1,000 simulated", **dict(sorted(ends.items()))}]
    show("scheduler", "scheduler", rows, accounted=sum(ends.values()))
    real(64)


def simulate(count: int) -> Counter[str]:
    """Random arrivals, lengths, priorities, deadlines, cancellations and faults; how each request ended."""
    draw = random.Random(0)
    scheduler = Scheduler(slots=8, pages=256, page=64, chunk=512, queue=64)
    ends: Counter[str] = Counter()
    left: dict[int, int] = {}  # denoising steps to go
    submitted, now = 0, 0.0
    while submitted < count or not scheduler.idle:
        now += 1
        for _ in range(draw.choice((0,) * 60 + (1, 1, 2, 40))):
            if submitted == count:
                break
            prompt = tuple(draw.choices(range(100), k=draw.choice((5, 80, 700, 3000))))
            deadline = now + draw.randint(5, 200) if draw.random() < 0.1 else None
            job = Job(submitted, prompt, len(prompt) + 512, draw.choice((0, 0, 0, 1, 2)), deadline)
            try:
                scheduler.submit(job)
                left[job.key] = draw.randint(1, 20)
            except QueueFull:
                ends["refused"] += 1
            submitted += 1
        if draw.random() < 0.2 and left:
            scheduler.cancel(draw.choice(list(left)))
        plan = scheduler.plan(now)
        for ended in plan.ended:
            ends[ended.reason] += 1
            del left[ended.key]
        for piece in plan.encode:
            if draw.random() < 0.01:
                scheduler.failed(piece.key)
                ends["failed"] += 1
                del left[piece.key]
            else:
                scheduler.encoded(piece.key)
        for key, _ in plan.denoise:
            left[key] -= 1
            if draw.random() < 0.01:
                scheduler.failed(key)
                ends["failed"] += 1
                del left[key]
            elif left[key] == 0:
                scheduler.finished(key)
                ends["finished"] += 1
                del left[key]
            elif left[key] == 5:
                scheduler.committed(key, tuple(range(256)))
    if left or scheduler.running or scheduler.waiting:
        raise SystemExit(f"error: not accounted for: {sorted(left)}")
    return ends


def real(count: int) -> None:
    """Held-out questions to the demo's engine, each alone, then all at once."""
    engine, questions = demo()
    assert engine.tokenizer is not None
    requests = [
        Request(tuple(engine.tokenizer.chat(q.messages)), 64, seed=i, sampler=engine.sampler)
        for i, q in enumerate(questions[:count])
    ]
    start = time.perf_counter()
    alone = [engine.run([request])[0] for request in requests]
    middle = time.perf_counter()
    together = engine.run(requests)
    end = time.perf_counter()
    same = sum(a.token_ids == b.token_ids for a, b in zip(alone, together, strict=True))
    tokens = sum(len(a.token_ids) for a in alone)
    rows = [
        {"requests": "one after another", "tokens_per_second": tokens / (middle - start), "seconds": middle - start},
        {
            "requests": f"{engine.limits.slots} slots",
            "tokens_per_second": tokens / (end - middle),
            "seconds": end - middle,
        },
    ]
    stats = engine.stats()
    engine.close()
    show("in_flight", f"{count} requests of the demo", rows, same_answers=same, of=count, finished=stats.finished)


if __name__ == "__main__":
    run(main)
