"""OpenTelemetry spans as a collector gets them: whose they are, when they were, and what they do not say."""

from __future__ import annotations

import json
import shlex
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from nemo_diffgemma.errors import FieldError
from triton_repo.client.blocking import BlockingClient
from triton_repo.client.failures import GenerationError
from triton_repo.launcher.server import Server
from triton_repo.launcher.tritonserver import BINARY_VARIABLE, Installation
from triton_repo.python_backend.spans import Spans

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SECRET = "lamp"
WHOLE: dict[str, Any] = {
    "prompt": f"red {SECRET}",
    "max_tokens": 40,  # three canvases of 16
    "ignore_eos": True,
    "confidence_threshold": 0.0,
    "max_denoising_steps": 3,
}


@dataclass(frozen=True)
class Span:
    service: str
    name: str
    trace: str
    id: str
    parent: str
    start: int
    end: int
    failed: bool
    attributes: dict[str, Any]


@dataclass
class Collector:
    """An OTLP collector over HTTP."""

    spans: list[Span] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    answers: threading.Event = field(default_factory=threading.Event)
    port: int = 0

    def take(self, body: bytes, kind: str) -> None:
        if kind == "application/json":  # tritonserver's own
            for resource in json.loads(body)["resourceSpans"]:
                for s in (s for scope in resource["scopeSpans"] for s in scope["spans"]):
                    ids = s["traceId"], s["spanId"], s.get("parentSpanId", "")
                    times = int(s["startTimeUnixNano"]), int(s["endTimeUnixNano"])
                    self.spans.append(Span("tritonserver", s["name"], *ids, *times, False, {}))
            return
        self.bodies.append(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = _values(resource.resource.attributes).get("service.name", "")
            for scope in resource.scope_spans:
                for s in scope.spans:
                    ids = s.trace_id.hex(), s.span_id.hex(), s.parent_span_id.hex()
                    times = s.start_time_unix_nano, s.end_time_unix_nano
                    self.spans.append(Span(service, s.name, *ids, *times, s.status.code == 2, _values(s.attributes)))

    def request(self, request_id: str) -> list[Span]:
        """The spans that we sent of a request, the one that holds the others first."""
        deadline = time.monotonic() + 30
        while True:
            spans = list(self.spans)
            roots = [s for s in spans if s.attributes.get("diffgemma.request_id") == request_id]
            if roots:
                assert len(roots) == 1
                return [roots[0], *(s for s in spans if s.parent == roots[0].id)]
            assert time.monotonic() < deadline, request_id
            time.sleep(0.05)


def _values(attributes: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in attributes}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    found = Collector()
    found.answers.set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            found.take(self.rfile.read(int(self.headers["Content-Length"])), self.headers["Content-Type"])
            found.answers.wait()
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        found.port = http.server_port
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield found
        found.answers.set()
        http.shutdown()


@pytest.fixture(scope="module")
def server(demo_bundle: Path, collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One that sends its spans to the collector, as does the tritonserver under it, and logs prompts."""
    real = Installation.find().binary
    folder = tmp_path_factory.mktemp("traced")
    for name in ("backends", "python_backend_stubs", "caches"):
        if (real.parent.parent / name).exists():
            (folder / name).symlink_to(real.parent.parent / name)
    url = f"http://127.0.0.1:{collector.port}"
    options = ["mode=opentelemetry", "rate=1", "level=TIMESTAMPS", f"opentelemetry,url={url}/v1/traces"]
    options += ["opentelemetry,bsp_schedule_delay=100"]
    script = folder / "bin" / "tritonserver"
    script.parent.mkdir()
    traced = " ".join(f"--trace-config={shlex.quote(option)}" for option in options)
    script.write_text(f'#!/bin/sh\nexec {shlex.quote(str(real))} "$@" {traced}\n')
    script.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(BINARY_VARIABLE, str(script))
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        patch.setenv("DIFFGEMMA_LOG_PROMPTS", "1")
        with Server(demo_bundle, http_port=0, grpc_port=0, metrics_port=0) as running:
            yield running


@pytest.fixture
def record(server: Server) -> Callable[[str], dict[str, Any]]:
    """The log's record of a request."""

    def wait(request_id: str) -> dict[str, Any]:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            lines = [line for line in server.log_path.read_text().splitlines() if line.startswith('{"time"')]
            for found in map(json.loads, lines):
                if found["request_id"] == request_id:
                    return dict(found)
            time.sleep(0.05)
        raise AssertionError(request_id)

    return wait


@pytest.mark.server
def test_a_request_is_one_span_with_its_parts_in_order(
    client: BlockingClient, collector: Collector, record: Callable[[str], dict[str, Any]]
) -> None:
    before = time.time_ns()
    traceparent = f"00-{TRACE}-{PARENT}-01"
    responses = list(client.generate(**WHOLE, request_id="whole", traceparent=traceparent))
    after = time.time_ns()
    root, *parts = collector.request("whole")
    assert (root.service, root.name, root.trace, root.parent, root.failed) == (
        "diffgemma",
        "diffgemma.request",
        TRACE,
        PARENT,
        False,
    )
    assert {s.trace for s in parts} == {TRACE}
    assert before <= root.start < root.end
    assert root.attributes == {
        "diffgemma.request_id": "whole",
        "diffgemma.outcome": "length",
        "diffgemma.canvases": 3,
        "diffgemma.denoising_steps": 9,
        "diffgemma.reused_tokens": 0,
        "gen_ai.usage.input_tokens": responses[-1].num_input_tokens,
        "gen_ai.usage.output_tokens": 40,
    }
    names = [s.name.removeprefix("diffgemma.") for s in sorted(parts, key=lambda s: (s.start, s.end))]
    assert names == ["queue", "prefill", "canvas", "commit", "canvas", "commit", "canvas"]
    edges = [edge for s in sorted(parts, key=lambda s: (s.start, s.end)) for edge in (s.start, s.end)]
    assert [root.start, *edges, root.end] == sorted([root.start, *edges, root.end])
    assert edges[-1] <= after
    canvases = sorted((s for s in parts if s.name == "diffgemma.canvas"), key=lambda s: s.start)
    assert [s.attributes for s in canvases] == [
        {
            "diffgemma.canvas_index": i,
            "diffgemma.denoising_steps": 3,
            "diffgemma.finished": True,
            "diffgemma.converged": False,
        }
        for i in range(3)
    ]
    assert record("whole")["trace_id"] == TRACE


@pytest.mark.server
def test_requests_that_do_not_end_well_have_spans_that_say_so(client: BlockingClient, collector: Collector) -> None:
    with pytest.raises(GenerationError):
        list(client.generate(f"red {SECRET}", beam_width=2, request_id="refused"))
    (refused,) = collector.request("refused")
    assert refused.attributes == {
        "diffgemma.request_id": "refused",
        "diffgemma.outcome": "refused",
        "gen_ai.usage.output_tokens": 0,
    }
    assert not refused.failed  # the client did

    stream = client.generate(**(WHOLE | {"max_denoising_steps": 1024}), drafts=True, request_id="left")
    next(stream)
    stream.close()
    root, *parts = collector.request("left")
    assert root.attributes["diffgemma.outcome"] == "cancelled"
    assert [s.name for s in parts] == ["diffgemma.queue", "diffgemma.prefill", "diffgemma.canvas"]
    assert parts[-1].attributes["diffgemma.finished"] is False
    assert parts[-1].end <= root.end


@pytest.mark.server
def test_a_trace_that_comes_by_http_goes_on_through_tritonserver(server: Server, collector: Collector) -> None:
    """As its own span's child, which is the caller's; the same through an entry that passes on."""
    trace = "1" * 32
    for model in ("diffgemma", "diffgemma_unary"):
        body = json.dumps({"text_input": "red", "max_tokens": 2, "ignore_eos": True}).encode()
        asked = urllib.request.Request(
            f"{server.http_url}/v2/models/{model}/generate",
            body,
            {"traceparent": f"00-{trace}-{PARENT}-01", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(asked, timeout=60) as answer:
            assert answer.status == 200
    deadline = time.monotonic() + 30
    while True:
        found = [s for s in list(collector.spans) if s.trace == trace]
        ids, ours = {s.id for s in found}, [s for s in found if s.name == "diffgemma.request"]
        if len(ours) == 2 and all(s.parent in ids for s in ours):
            break
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    assert any(s.parent == PARENT for s in found)
    assert {s.service for s in found if s.id in {o.parent for o in ours}} == {"tritonserver"}


@pytest.mark.server
def test_prompts_are_logged_where_that_was_asked_for_and_never_in_a_span(
    client: BlockingClient, collector: Collector, record: Callable[[str], dict[str, Any]]
) -> None:
    (response,) = client.generate(f"blue {SECRET}", max_tokens=8, ignore_eos=True, stream=False, request_id="logged")
    collector.request("logged")
    assert json.loads(record("logged")["prompt"]) == {"text_input": [f"blue {SECRET}"]}
    assert not any(SECRET.encode() in body for body in collector.bodies)
    assert not any(response.text.encode() in body for body in collector.bodies)


@pytest.mark.server
@pytest.mark.parametrize(
    "value",
    [
        f"00-{TRACE}-{PARENT}",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-0\n",
        "",
    ],
)
def test_a_trace_context_that_is_none_is_refused(client: BlockingClient, value: str) -> None:
    with pytest.raises(GenerationError) as error:
        list(client.generate("red", max_tokens=1, traceparent=value))
    assert str(error.value).startswith(f"traceparent: {value!r} cannot be used; allowed: 00-TRACE ID-PARENT ID-FLAGS ")


@pytest.mark.server
def test_a_long_trace_context_is_refused_unread(client: BlockingClient) -> None:
    with pytest.raises(GenerationError, match="traceparent: '56 bytes' cannot be used; allowed: at most 55 bytes"):
        list(client.generate("red", max_tokens=1, traceparent=f"00-{TRACE}-{PARENT}-011"))


@pytest.mark.server
def test_a_collector_that_hangs_holds_up_nobody(client: BlockingClient, collector: Collector) -> None:
    collector.answers.clear()
    seen = len(collector.bodies)
    outcomes = Counter(
        list(client.generate("red", max_tokens=2, ignore_eos=True, request_id=f"while it hangs {i}"))[-1].finish_reason
        for i in range(20)
    )
    assert outcomes == {"length": 20}
    collector.answers.set()
    collector.request("while it hangs 0")
    collector.request("while it hangs 19")
    assert len(collector.bodies) > seen


def test_which_exporter_the_environment_asks_for() -> None:
    assert Spans.from_environment({}) is None
    assert Spans.from_environment({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}) is None
    for name, value, allowed in (
        ("OTEL_TRACES_EXPORTER", "zipkin", "otlp or none"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "http/protobuf"),
    ):
        with pytest.raises(FieldError) as error:
            Spans.from_environment({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", name: value})
        assert str(error.value).startswith(f"{name}: {value!r} cannot be used; allowed: {allowed}; ")
