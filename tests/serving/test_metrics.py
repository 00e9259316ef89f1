"""What Prometheus scrapes of a real server: it parses, and adds up to what the clients saw."""

from __future__ import annotations

import json
import shutil
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.serving.endless import ENDLESS
from triton_repo.client.blocking import BlockingClient
from triton_repo.client.failures import GenerationError
from triton_repo.client.settings import Retry
from triton_repo.client.wire import Response
from triton_repo.launcher.server import Server
from triton_repo.python_backend.metrics import METRICS, OUTCOMES
from trtllm_build import Engine
from trtllm_build.bundle import manifest_hash

pytestmark = pytest.mark.server

SLOTS, QUEUE = 2, 4
# One step per canvas, by its convergence.
SURE: dict[str, Any] = {"confidence_threshold": 1e9, "stability_threshold": 0}
# Three steps per canvas: nothing is ever that sure.
UNSURE: dict[str, Any] = {"confidence_threshold": 0.0, "max_denoising_steps": 3}
Scrape = dict[tuple[str, str], float]


@pytest.fixture(scope="module")
def server(demo_bundle: Path, same_threads: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One of its own, whose queue is soon full, and where nobody else is counted."""
    bundle = shutil.copytree(demo_bundle, tmp_path_factory.mktemp("small") / "engine")
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["limits"] |= {"slots": SLOTS, "queue": QUEUE}
    manifest["manifest_hash"] = manifest_hash(manifest)
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with Server(bundle, http_port=0, grpc_port=0, metrics_port=0) as running:
        yield running


def exposition(server: Server) -> str:
    with urllib.request.urlopen(server.metrics_url, timeout=30) as answer:
        return str(answer.read().decode())


def samples(text: str) -> Scrape:
    """Of our families, by name and the last label's value."""
    ours = ("diffgemma_", "nv_trt_llm_")
    return {
        (s.name, "".join(v for k, v in s.labels.items() if k not in ("model", "version"))): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
        if s.name.startswith(ours)
    }


def settled(server: Server, done: Callable[[Scrape], bool]) -> Scrape:
    """The first scrape that is ``done``: counters follow within a fifth of a second."""
    deadline = time.monotonic() + 30
    while not done(found := samples(exposition(server))):
        assert time.monotonic() < deadline, {key: value for key, value in found.items() if key[1] and value}
        time.sleep(0.05)
    return found


def requests(found: Scrape) -> Counter[str]:
    """Of ended ones by outcome."""
    return Counter({o: int(found["diffgemma_requests_total", o]) for o in OUTCOMES})


def at_rest(server: Server, ended: int) -> Scrape:
    """When so many requests have ended since the server started, and none is there any more."""

    def done(found: Scrape) -> bool:
        state = {name: found["nv_trt_llm_request_metrics", name] for name in ("active", "waiting")}
        return requests(found).total() == ended and not any(state.values())

    return settled(server, done)


def grown(before: Scrape, after: Scrape) -> Scrape:
    return {key: after[key] - before[key] for key in after}


@contextmanager
def scraped(server: Server, threads: int) -> Iterator[list[str]]:
    """Scrape from several threads without a pause; gives what they got, filled when left."""
    texts: list[str] = []
    stop = threading.Event()

    def go_on() -> int:
        count = 0
        while not stop.is_set():
            texts.append(exposition(server))
            count += 1
        return count

    with ThreadPoolExecutor(threads) as pool:
        counts = [pool.submit(go_on) for _ in range(threads)]
        try:
            yield texts
        finally:
            stop.set()
    assert all(count.result() > 0 for count in counts)


def total(server: Server) -> int:
    """Requests that have ended, when no more are being counted: what came before may be a fifth of a second behind."""
    seen = -1
    while seen != (now := requests(samples(exposition(server))).total()):
        seen = now
        time.sleep(0.5)
    return now


def test_every_family_is_exported_with_its_type_help_and_labels(server: Server) -> None:
    families = {(f.name, f.type): f for f in text_string_to_metric_families(exposition(server))}
    for metric in METRICS:
        # the parser takes a counter's suffix off
        family = families[metric.name.removesuffix("_total") if metric.kind == "counter" else metric.name, metric.kind]
        assert family.documentation == metric.about
        assert all(set(s.labels) - {"le"} == set(metric.labels) for s in family.samples)
        assert {s.labels[metric.labels[-1]] for s in family.samples if metric.labels} == set(metric.values)
        if metric.kind == "histogram":
            bounds = [float(s.labels["le"]) for s in family.samples if s.name.endswith("_bucket")]
            assert bounds == [*metric.buckets, float("inf")]


def test_a_mixed_load_adds_up_to_what_the_clients_saw(server: Server, engine: Engine) -> None:
    """Answers of every kind at once, refusals among them, with scrapes from four threads all the while."""
    ended = total(server)
    before = at_rest(server, ended)
    first = engine.generate([[7, 8, 9]], max_tokens=1, ignore_eos=True, seed=0, **UNSURE)[0].token_ids[0]
    whole = {"max_tokens": 40, "ignore_eos": True}  # three canvases of 16
    answered: list[dict[str, Any]] = [
        {"input_ids": [7, 8, 9, *range(i)], "seed": i, "stream": stream, **whole, **kind}
        for i in range(3)
        for stream in (True, False)
        for kind in (SURE, UNSURE)
    ]
    answered += [{"input_ids": [7, 8, 9], "max_tokens": 9, "stop_token_ids": (first,), "seed": 0, **UNSURE}]
    refused: list[dict[str, Any]] = [{"prompt": "red", "beam_width": 2}, {"prompt": ""}, {"input_ids": [300]}] * 2

    def ask(inputs: dict[str, Any]) -> tuple[str, list[Response]]:
        try:
            responses = list(client.generate(**inputs))
        except GenerationError:
            return "refused", []
        return responses[-1].finish_reason or "none", responses

    # no more at once than may wait
    with BlockingClient(server.grpc_url) as client, ThreadPoolExecutor(QUEUE) as pool, scraped(server, 4) as texts:
        results = list(pool.map(ask, [*answered, *refused]))
    assert all(samples(text) for text in texts)
    found = grown(before, at_rest(server, ended + len(results)))

    seen = Counter(outcome for outcome, _ in results)
    assert seen == {"length": 12, "stop": 1, "refused": 6}
    assert requests(found) == seen
    answers = [responses for _, responses in results if responses]
    assert found["diffgemma_output_tokens_total", ""] == sum(a[-1].num_output_tokens or 0 for a in answers)
    assert found["diffgemma_input_tokens_total", ""] == sum(a[-1].num_input_tokens or 0 for a in answers)
    assert found["diffgemma_reused_tokens_total", ""] == 0
    steps = sum(sum(r.denoising_steps for r in a) for a in answers)
    assert found["diffgemma_denoising_steps_total", ""] == steps == 6 * 3 * 1 + 6 * 3 * 3 + 3
    assert found["diffgemma_canvases_total", "converged"] == 6 * 3
    assert found["diffgemma_canvases_total", "step_cap"] == 6 * 3 + 1
    assert found["diffgemma_denoising_steps_sum", ""] == steps
    assert found["diffgemma_denoising_steps_bucket", "2"] == 6 * 3
    assert found["diffgemma_denoising_steps_bucket", "3"] == found["diffgemma_denoising_steps_count", ""] == 6 * 6 + 1
    assert found["diffgemma_time_to_first_block_seconds_count", ""] == 13
    assert found["diffgemma_block_seconds_count", ""] == 12 * 2
    assert found["diffgemma_request_seconds_count", ""] == found["diffgemma_queue_seconds_count", ""] == 13
    here = [engine.generate([inputs.pop("input_ids")], **(inputs | {"stream": False})) for inputs in answered]
    accepted = sum(round(g.stats.accepted_per_step * g.stats.denoising_steps) for (g,) in here)
    assert found["diffgemma_accepted_tokens_total", ""] == accepted > 0
    # a request waits, or has a slot
    seconds = found["diffgemma_request_seconds_sum", ""]
    split = found["diffgemma_queue_seconds_total", ""] + found["diffgemma_compute_seconds_total", ""]
    assert split == pytest.approx(seconds, rel=0.05)
    assert found["diffgemma_queue_seconds_total", ""] == pytest.approx(found["diffgemma_queue_seconds_sum", ""])
    blocks = found["diffgemma_time_to_first_block_seconds_sum", ""] + found["diffgemma_block_seconds_sum", ""]
    assert 0 < blocks <= seconds


def test_a_full_server_is_seen_while_no_block_comes(server: Server) -> None:
    """Endless canvases in every slot, a full queue, one deadline; then the clients go away."""
    ended = total(server)
    before = at_rest(server, ended)
    once = Retry(attempts=1)
    running, waiting = (BlockingClient(server.grpc_url, retry=once) for _ in range(2))
    prompt = {"input_ids": [7, 8, 9]}

    def wait_for_ever(**inputs: Any) -> str:
        try:
            return list(waiting.generate(**prompt, **ENDLESS, **inputs))[-1].finish_reason or "none"
        except Exception as error:
            return type(error).__name__

    with ThreadPoolExecutor(QUEUE) as pool, scraped(server, 2) as texts:
        streams = [running.generate(**prompt, **ENDLESS) for _ in range(SLOTS)]
        assert all(next(stream).provisional for stream in streams)
        late = pool.submit(wait_for_ever, deadline=3.0)
        gone = [pool.submit(wait_for_ever) for _ in range(QUEUE - 1)]
        full = settled(server, lambda found: found["nv_trt_llm_request_metrics", "waiting"] == QUEUE)
        with pytest.raises(GenerationError, match=f"{QUEUE} requests wait already; the limit is {QUEUE}"):
            next(running.generate(**prompt, **ENDLESS))
        time.sleep(1.0)
        later = samples(exposition(server))
        assert late.result(60) == "deadline"
        waiting.close()
        assert all(future.result(60) != "none" for future in gone)
        settled(server, lambda found: found["nv_trt_llm_request_metrics", "waiting"] == 0)
        for stream in streams:
            stream.close()
    running.close()
    assert all(samples(text) for text in texts)
    found = grown(before, at_rest(server, ended + SLOTS + QUEUE + 1))

    state = {value: full["nv_trt_llm_request_metrics", value] for value in ("active", "context", "scheduled", "max")}
    assert state == {"active": SLOTS, "context": 0, "scheduled": SLOTS, "max": SLOTS}
    blocks = {
        value: full["nv_trt_llm_kv_cache_block_metrics", value]
        for value in ("max", "used", "free", "tokens_per", "fraction")
    }
    # 3 tokens of prompt and 13 canvases of 16 in blocks of 64; two slots have room for 256 + 16 tokens each
    assert blocks == {"max": 9, "used": SLOTS * 4, "free": 1, "tokens_per": 64, "fraction": pytest.approx(8 / 9)}
    # what goes on while no block comes
    moved = grown(full, later)
    assert moved["diffgemma_denoising_steps_total", ""] > 0
    assert moved["diffgemma_accepted_tokens_total", ""] >= 0
    for name, count in (("queue", QUEUE), ("compute", SLOTS)):
        assert count * 0.7 < moved[f"diffgemma_{name}_seconds_total", ""] < count * 10
    assert moved["diffgemma_output_tokens_total", ""] == 0

    assert requests(found) == Counter({"cancelled": SLOTS + QUEUE - 1, "deadline": 1, "unavailable": 1})
    assert found["diffgemma_queue_seconds_count", ""] == found["diffgemma_request_seconds_count", ""] == SLOTS + QUEUE
    assert found["diffgemma_input_tokens_total", ""] == SLOTS * 3
    for name in ("denoising_steps", "time_to_first_block_seconds", "block_seconds"):
        assert found[f"diffgemma_{name}_count", ""] == 0
    assert found["diffgemma_output_tokens_total", ""] == 0
    # waiting counts, also for those who never got a slot
    seconds = found["diffgemma_queue_seconds_sum", ""]
    assert seconds == pytest.approx(found["diffgemma_queue_seconds_total", ""], rel=0.05)
    assert seconds > 3.0
