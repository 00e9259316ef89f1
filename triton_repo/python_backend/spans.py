"""OpenTelemetry spans of a request: queue, prefill, each canvas and its commit, under one that holds them all."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self

from nemo_diffgemma.errors import require

if TYPE_CHECKING:  # at run time they would bring torch into entries that have no use for it
    from opentelemetry.sdk.trace import TracerProvider

    from triton_repo.python_backend.record import Record
    from trtllm_build.runtime.request import Timeline

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_EXPORTER = "OTEL_TRACES_EXPORTER"
_HTTP = "http/protobuf"
# What is still to be sent must not hold up the server's end.
_SHUTDOWN_S = 2.0

Attributes = dict[str, str | int | bool]
Span = tuple[str, float, float, Attributes]


class Spans:
    """Makes and exports them, in the background and in batches; what a collector does not take in time is dropped.

    Args:
        provider: of the OpenTelemetry SDK.
    """

    def __init__(self, provider: TracerProvider):
        self._provider = provider
        self._tracer = provider.get_tracer("diffgemma")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self | None:
        """As OpenTelemetry's environment variables say; None when they name no endpoint and no exporter.

        Raises:
            FieldError: for an exporter or a protocol that is not there.
        """
        exporter = environment.get(_EXPORTER)
        if exporter == "none" or not (exporter or any(environment.get(name) for name in _ENDPOINTS)):
            return None
        require(
            exporter in (None, "", "otlp"),
            field=_EXPORTER,
            value=exporter,
            allowed="otlp or none",
            fix=f"set {_EXPORTER}=otlp",
        )
        for name in _PROTOCOLS:
            protocol = environment.get(name) or _HTTP
            require(
                protocol == _HTTP,
                field=name,
                value=protocol,
                allowed=_HTTP,
                fix=f"set {name}={_HTTP}, and the collector's port for it",
            )
        # a quarter of a second to import, and whoever does not export need not have them
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        named = bool(environment.get("OTEL_SERVICE_NAME")) or "service.name" in environment.get(
            "OTEL_RESOURCE_ATTRIBUTES", ""
        )
        resource = Resource.create({} if named else {"service.name": "diffgemma"})
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        return cls(provider)

    def emit(self, record: Record) -> str:
        """Hand over a request's spans to be exported. Returns the trace id, in hexadecimal."""
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier = {} if record.caller.traceparent is None else {"traceparent": record.caller.traceparent}
        root = self._tracer.start_span(
            "diffgemma.request",
            context=TraceContextTextMapPropagator().extract(carrier),
            kind=SpanKind.SERVER,
            start_time=record.wall_ns(record.opened),
            attributes=_attributes(record),
        )
        if record.outcome in ("error", "unavailable"):
            root.set_status(Status(StatusCode.ERROR, record.outcome))
        context = set_span_in_context(root)
        for name, start, end, attributes in _parts(record.stats.timeline if record.stats else None):
            span = self._tracer.start_span(
                f"diffgemma.{name}", context=context, start_time=record.wall_ns(start), attributes=attributes
            )
            span.end(record.wall_ns(end))
        root.end(record.wall_ns(record.ended))
        return f"{root.get_span_context().trace_id:032x}"

    def close(self) -> None:
        """Send what is left, for as long as it may take."""
        thread = threading.Thread(target=self._provider.shutdown, name="spans-close", daemon=True)
        thread.start()
        thread.join(_SHUTDOWN_S)


def trace_context(request: Any) -> str | None:
    """W3C trace context of tritonserver's own span of a ``request``, which continues the caller's.

    None unless tritonserver runs with ``--trace-config mode=opentelemetry``.
    """
    found = request.trace().get_context() if hasattr(request, "trace") else None
    return json.loads(found).get("traceparent") if found else None


def _attributes(record: Record) -> Attributes:
    """Never what was asked or answered."""
    attributes: Attributes = {"diffgemma.outcome": record.outcome, "gen_ai.usage.output_tokens": record.output_tokens}
    if record.caller.request_id:
        attributes["diffgemma.request_id"] = record.caller.name
    if record.stats is not None:
        attributes |= {
            "gen_ai.usage.input_tokens": record.stats.prompt_tokens,
            "diffgemma.reused_tokens": record.stats.reused_tokens,
            "diffgemma.canvases": record.stats.canvases,
            "diffgemma.denoising_steps": record.stats.denoising_steps,
        }
    return attributes


def _parts(timeline: Timeline | None) -> Iterator[Span]:
    """Name, start and end in seconds of :func:`time.monotonic`, and attributes, of each part of a request."""
    if timeline is None:
        return
    yield "queue", timeline.submitted, timeline.ended if timeline.admitted is None else timeline.admitted, {}
    if timeline.admitted is None:
        return
    yield "prefill", timeline.admitted, timeline.ended if timeline.prefilled is None else timeline.prefilled, {}
    for index, canvas in enumerate(timeline.canvases):
        attributes: Attributes = {
            "diffgemma.canvas_index": index,
            "diffgemma.denoising_steps": canvas.denoising_steps,
            "diffgemma.finished": canvas.finished,
            "diffgemma.converged": canvas.converged,
        }
        yield "canvas", canvas.started, canvas.ended, attributes
        if canvas.committed is not None:
            yield "commit", canvas.ended, canvas.committed, {"diffgemma.canvas_index": index}
