"""OpenTelemetry traces of calls, with the GenAI conventions. Imported only where tracing is configured."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from proxy.call import Outcome

if TYPE_CHECKING:
    from opentelemetry.trace import Span
    from opentelemetry.util.types import AttributeValue

    from proxy.call import Call
    from proxy.config import TracingConfig

QUEUE_SPANS = 8192
"""Spans waiting for export; further ones are dropped by the SDK, which says so."""
_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}


class TracingFault(Exception):
    """Tracing cannot be started; the message says what is missing."""


class _Spans(NamedTuple):
    server: Span
    client: Span | None


class Tracing:
    """A SERVER span for each call, the child of the client's span if it sent a traceparent; in it, for calls of a model,
    a CLIENT span that covers the engine's work with all retries, and whose context the engine gets."""

    def __init__(self, config: TracingConfig) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        except ImportError:
            raise TracingFault("tracing.otlp_endpoint needs the exporter: pip install 'joulegate[otlp]'") from None
        endpoint = config.otlp_endpoint.rstrip("/")
        if not endpoint.endswith("/v1/traces"):
            endpoint += "/v1/traces"
        resource = Resource.create({"service.name": config.service_name})
        self._provider = TracerProvider(
            resource=resource, sampler=ParentBased(TraceIdRatioBased(config.sample_ratio)), shutdown_on_exit=False
        )
        exporter = OTLPSpanExporter(endpoint=endpoint)
        self._provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=QUEUE_SPANS))
        self._tracer = self._provider.get_tracer("joulegate")
        self._propagator = TraceContextTextMapPropagator()

    def start(self, call: Call, fields: dict[bytes, bytes]) -> bytes:
        """Open the call's spans; returns the header line with the engine's parent."""
        carrier = {
            name: fields[name.encode()].decode("latin-1")
            for name in ("traceparent", "tracestate")
            if name.encode() in fields
        }
        parent = self._propagator.extract(carrier)
        started_ns = int(call.arrived_unix_seconds * 1e9)
        attributes: dict[str, AttributeValue] = {
            "http.request.method": call.method,
            "url.path": call.path,
            "http.route": call.route,
        }
        server = self._tracer.start_span(
            f"{call.method} {call.route}", parent, SpanKind.SERVER, attributes, start_time=started_ns
        )
        client = None
        operation = _OPERATIONS.get(call.route)
        if operation is not None and call.model is not None:
            client = self._tracer.start_span(
                f"{operation} {call.model}",
                trace.set_span_in_context(server),
                SpanKind.CLIENT,
                {
                    "gen_ai.operation.name": operation,
                    "gen_ai.provider.name": "vllm",
                    "gen_ai.request.model": call.model,
                    "gen_ai.conversation.id": call.identity.workflow_id or call.id,
                },
            )
        call.trace = _Spans(server, client)
        carrier = {}
        self._propagator.inject(carrier, trace.set_span_in_context(client or server))
        return f"traceparent: {carrier['traceparent']}\r\n".encode("ascii")

    def finish(self, call: Call) -> None:
        """Close the call's spans."""
        spans = call.trace
        if not isinstance(spans, _Spans):
            return
        ended_ns = time.time_ns()
        if (client := spans.client) is not None:
            self._describe_inference(client, call)
            client.end(ended_ns)
        server = spans.server
        if call.status is not None:
            server.set_attribute("http.response.status_code", call.status)
        server.set_attribute("joulegate.outcome", str(call.outcome))
        server.set_attribute("joulegate.policy", call.policy)
        server.set_attribute("joulegate.workflow.source", call.identity.source)
        self._mark(server, call, from_status=500)
        server.end(ended_ns)

    def close(self) -> None:
        """Export what is left, waiting as long as the exporter's own timeout."""
        self._provider.shutdown()

    def _describe_inference(self, span: Span, call: Call) -> None:
        known: dict[str, AttributeValue | None] = {
            "server.address": call.engine,
            "gen_ai.request.max_tokens": call.max_output_tokens,
            "gen_ai.usage.input_tokens": call.prompt_tokens,
            "gen_ai.usage.output_tokens": call.output_tokens,
            "gen_ai.usage.cache_read.input_tokens": call.cached_tokens,
            "joulegate.attempts": call.attempts,
            "joulegate.held_seconds": call.held_seconds,
        }
        if call.stream:
            span.set_attribute("gen_ai.request.stream", True)
            if call.first_byte_at is not None:
                known["gen_ai.response.time_to_first_chunk"] = call.first_byte_at - call.arrived_at
        for name, value in known.items():
            if value is not None:  # not reported is not zero
                span.set_attribute(name, value)
        self._mark(span, call, from_status=400)

    @staticmethod
    def _mark(span: Span, call: Call, *, from_status: int) -> None:
        """An error, as the conventions see it: a server's from 500 on, a client's from 400 on, or no answer at all."""
        if call.outcome == Outcome.OK or (call.status or 0) < from_status and call.outcome == Outcome.ENGINE_4XX:
            return
        if call.outcome == Outcome.REFUSED and (call.status or 0) < from_status:
            return
        span.set_attribute("error.type", call.reason or "_OTHER")
        span.set_status(Status(StatusCode.ERROR, call.reason))
