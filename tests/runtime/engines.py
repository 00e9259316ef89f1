"""Requests to a running engine, and what their events say."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

from trtllm_build import Engine
from trtllm_build.runtime.request import Block, Draft, Event, Request, RequestStats
from trtllm_build.sampling import SamplerConfig

FEW = SamplerConfig(max_denoising_steps=4, confidence_threshold=0.0)  # always all four steps
ENDLESS = SamplerConfig(max_denoising_steps=100_000, confidence_threshold=0.0)
EOS, TURN_END = 1, 5
CANVAS = 16
CONTROLS: dict[str, dict[str, Any]] = {
    "pinned": {"pinned": {0: 40, 17: 41}},
    "allowed": {"allowed": (20, 33, 47, 48, 250)},
    "allowed_at": {"allowed_at": {2: (20, 21), 30: (22, 23)}, "min_tokens": 3},
    "min_tokens": {"min_tokens": 25, "stop_token_ids": tuple(range(100, 200)), "ignore_eos": False},
    "stop_token_ids": {"stop_token_ids": tuple(range(290, 300))},
    "stop": {"stop": ("e",)},
    "canvas_length": {"canvas_length": 7, "draft_every": 2},
    "seed_canvas": {"seed_canvas": tuple(range(50, 75))},
}


def request(max_tokens: int = 40, prompt: tuple[int, ...] = (7, 8, 9), seed: int = 3, **options: Any) -> Request:
    return Request(prompt, max_tokens, seed, **({"sampler": FEW, "ignore_eos": True} | options))


def events_of(engine: Engine, *requests: Request) -> list[list[Event]]:
    """All events of requests that run together."""
    events: list[list[Event]] = [[] for _ in requests]
    tickets = [engine.submit(r, e.append) for r, e in zip(requests, events, strict=True)]
    assert all(ticket.wait(60) for ticket in tickets)
    return events


def blocks(events: list[Event]) -> list[Block]:
    return [e for e in events if isinstance(e, Block)]


def drafts(events: list[Event]) -> list[Draft]:
    return [e for e in events if isinstance(e, Draft)]


def answer(events: list[Event]) -> list[int]:
    return [t for b in blocks(events) for t in b.token_ids]


def text(events: list[Event]) -> str:
    return "".join(b.text for b in blocks(events))


def reason(events: list[Event]) -> str | None:
    """Of the last block; no other has one."""
    assert all(b.finish_reason is None for b in blocks(events)[:-1])
    assert events[-1] is blocks(events)[-1]
    return blocks(events)[-1].finish_reason


def stats(events: list[Event]) -> RequestStats:
    """Of the last block; no other has any."""
    assert all(b.stats is None for b in blocks(events)[:-1])
    found = blocks(events)[-1].stats
    assert found is not None
    return found


def without_times(events: list[Event]) -> list[Event]:
    return [replace(e, stats=None) if isinstance(e, Block) else e for e in events]


def controlled(name: str) -> Request:
    index = list(CONTROLS).index(name)
    return request(prompt=tuple(range(9, 12 + index)), seed=index, **CONTROLS[name])


class Gate:
    """Holds the engine's thread inside a request's first event until opened, so that others can be lined up."""

    def __init__(self, engine: Engine, **options: Any):
        self.reached, self.opened = threading.Event(), threading.Event()
        self.events: list[Event] = []
        self.ticket = engine.submit(request(8, draft_every=1, **options), self._hold)
        assert self.reached.wait(30)

    def _hold(self, event: Event) -> None:
        self.events.append(event)
        self.reached.set()
        assert self.opened.wait(30)

    def open(self) -> None:
        self.opened.set()
        assert self.ticket.wait(30)
