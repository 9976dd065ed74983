"""OpenTelemetry traces of calls, with the GenAI conventions. Imported only where tracing is configured."""

from __future__ import annotations

from threading import Thread
from typing import TYPE_CHECKING, NamedTuple

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from proxy.call import Outcome
from proxy.config_file import ConfigError
from proxy.energy.answer import span_attributes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from urllib.parse import SplitResult

    from opentelemetry.util.types import AttributeValue

    from proxy.call import Call
    from proxy.config import TracingConfig
    from scheduler.energy.bill_calls import Estimate

QUEUE_SPANS = 8192
"""Spans waiting for export; further ones are dropped by the SDK, which says so."""
ATTRIBUTE_LENGTH_MAX = 512
MODEL_LENGTH_MAX = 128
"""Of its name in a span's name."""
CLOSE_SECONDS = 5.0
_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
_METHODS = frozenset(("CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"))
_PARENT_FIELDS = ("traceparent", "tracestate")


class TracingFault(ConfigError):
    """Tracing cannot be started; the message says what is missing."""


class _Open(NamedTuple):
    server: Span
    client_id: int
    """Of the span that will be made for the engine's work: the engine is told before the span's times are known."""


class _Ids(RandomIdGenerator):
    """Random ids, except that the next span can be given one."""

    def __init__(self) -> None:
        self.next_span_id: int | None = None

    def generate_span_id(self) -> int:
        given, self.next_span_id = self.next_span_id, None
        return super().generate_span_id() if given is None else given


class Tracing:
    """A SERVER span for each call, the child of the client's span if it sent a traceparent; in it, for calls that were
    given to an engine, a CLIENT span with all attempts, from the first one's start: its context the engine gets.

    `engine_url`: the address of an engine by its name; None = not known. `estimate`: what a call that ends has used;
    None = nothing is told of its engine. Raises TracingFault.
    """

    def __init__(
        self,
        config: TracingConfig,
        engine_url: Callable[[str], SplitResult | None] = lambda name: None,
        estimate: Callable[[Call], Estimate | None] = lambda call: None,
    ) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        except ImportError:
            raise TracingFault("tracing.otlp_endpoint needs the exporter: pip install 'joulegate[otlp]'") from None
        endpoint = config.otlp_endpoint.rstrip("/")
        if not endpoint.endswith("/v1/traces"):
            endpoint += "/v1/traces"
        self._engine_url = engine_url
        self._estimate = estimate
        self._ids = _Ids()
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": config.service_name}),
            sampler=ParentBased(TraceIdRatioBased(config.sample_ratio)),
            id_generator=self._ids,
            span_limits=SpanLimits(max_attribute_length=ATTRIBUTE_LENGTH_MAX),
            shutdown_on_exit=False,
        )
        self._exporter = OTLPSpanExporter(endpoint=endpoint)
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter, max_queue_size=QUEUE_SPANS))
        self._tracer = self._provider.get_tracer("joulegate")
        self._propagator = TraceContextTextMapPropagator()

    def start(self, call: Call, fields: Mapping[bytes, bytes]) -> bytes:
        """Open the call's span; returns the header line with the engine's parent. `fields` by lowercase name."""
        given = fields.get(b"traceparent")
        parent = Context()
        if given is not None:
            names = [name for name in _PARENT_FIELDS if name.encode() in fields]
            parent = self._propagator.extract({name: fields[name.encode()].decode("latin-1") for name in names}, parent)
        method = _method(call)
        server = self._tracer.start_span(
            f"{method} {call.route}",
            parent,
            SpanKind.SERVER,
            {"http.request.method": method, "http.route": call.route, "url.path": call.path, "url.scheme": "http"},
            start_time=_unix_ns(call, call.arrived_at),
        )
        context = server.get_span_context()
        if not server.is_recording() and parent and given is not None:
            # Its client decided against a trace: we add no span, so the engine's parent is the client.
            return b"traceparent: %b\r\n" % given
        if not context.is_valid:  # OTEL_SDK_DISABLED
            return b""
        client_id = self._ids.generate_span_id()
        call.trace = _Open(server, client_id)
        flags = context.trace_flags & 0xFF
        return b"traceparent: 00-%032x-%016x-%02x\r\n" % (context.trace_id, client_id, flags)

    def finish(self, call: Call) -> None:
        """Close the call's span, and make the engine's. The call's times and outcome are set."""
        opened = call.trace
        if not isinstance(opened, _Open) or not opened.server.is_recording() or call.finished_at is None:
            return
        ended_ns = _unix_ns(call, call.finished_at)
        if call.dispatched_at is not None:
            self._trace_engine(call, opened, call.dispatched_at, ended_ns)
        server = opened.server
        identity = call.identity
        _set(
            server,
            {
                "http.response.status_code": call.status,
                "gen_ai.conversation.id": identity.workflow_id or None,
                "joulegate.call_id": call.id,
                "joulegate.request_id": call.request_id,
                "joulegate.key": call.key_name,
                "joulegate.policy": call.policy,
                "joulegate.outcome": None if call.outcome is None else call.outcome.value,
                "joulegate.reason": call.reason,
                "joulegate.held_seconds": call.held_seconds,
                "joulegate.workflow.source": identity.source,
                "joulegate.workflow.node": identity.node,
            },
        )
        if call.dispatched_at is not None:
            _set(server, span_attributes(self._estimate(call)))
            server.add_event("joulegate.dispatched", timestamp=_unix_ns(call, call.dispatched_at))
        _mark_error(server, call, from_status=500)
        server.end(ended_ns)

    def close(self) -> None:
        """Export what is left; blocks, but not over CLOSE_SECONDS for a collector that does not answer."""
        closing = Thread(target=self._provider.shutdown, name="tracing-close", daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)
        if closing.is_alive():
            self._exporter.shutdown()  # type: ignore[no-untyped-call]  # ends its wait for a better time

    def _trace_engine(self, call: Call, opened: _Open, dispatched_at: float, ended_ns: int) -> None:
        operation = _OPERATIONS.get(call.route)
        name = opened.server.name if hasattr(opened.server, "name") else call.route
        attributes: dict[str, AttributeValue | None] = {
            "http.response.status_code": None if call.first_byte_at is None else call.status,
            "joulegate.engine": call.engine,
            "joulegate.attempts": call.attempts,
        }
        if call.engine is not None and (url := self._engine_url(call.engine)) is not None:
            attributes["server.address"] = url.hostname
            attributes["server.port"] = url.port or (443 if url.scheme == "https" else 80)
        if (operation := _OPERATIONS.get(call.route)) is not None:
            name = f"{operation} {call.model[:MODEL_LENGTH_MAX]}" if call.model else operation
            attributes |= _inference(call, operation, dispatched_at)
        self._ids.next_span_id = opened.client_id
        client = self._tracer.start_span(
            name,
            set_span_in_context(opened.server, Context()),
            SpanKind.CLIENT,
            start_time=_unix_ns(call, dispatched_at),
        )
        _set(client, attributes)
        if call.first_byte_at is not None:
            client.add_event("joulegate.first_byte", timestamp=_unix_ns(call, call.first_byte_at))
        _mark_error(client, call, from_status=400)
        client.end(ended_ns)


def _method(call: Call) -> str:
    return call.method if call.method in _METHODS else "_OTHER"


def _inference(call: Call, operation: str, dispatched_at: float) -> dict[str, AttributeValue | None]:
    """The GenAI conventions' words for it. Here alone, so that nobody who sums tokens over spans counts them twice."""
    first_byte_at = call.first_byte_at
    return {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": call.model,
        "gen_ai.request.max_tokens": call.max_output_tokens,
        "gen_ai.request.stream": True if call.stream else None,
        "gen_ai.conversation.id": call.identity.workflow_id or None,
        "gen_ai.response.time_to_first_chunk": (
            first_byte_at - dispatched_at if call.stream and first_byte_at is not None else None
        ),
        "gen_ai.usage.input_tokens": call.prompt_tokens,
        "gen_ai.usage.output_tokens": call.output_tokens,
        "gen_ai.usage.cache_read.input_tokens": call.cached_tokens,
    }


def _set(span: Span, attributes: Mapping[str, AttributeValue | None]) -> None:
    """What is not known is left out: it is not zero."""
    for name, value in attributes.items():
        if value is not None:
            span.set_attribute(name, value)


def _mark_error(span: Span, call: Call, *, from_status: int) -> None:
    """An error as the conventions see it: a server's from 500 on, a client's from 400 on, or an answer that broke off.
    A client that left is no error of anybody's."""
    outcome, status = call.outcome, call.status or 0
    if outcome in (Outcome.OK, Outcome.CLIENT_GONE) or outcome is None:
        return
    answered = outcome in (Outcome.ENGINE_4XX, Outcome.ENGINE_5XX)
    if (answered or outcome is Outcome.REFUSED) and status < from_status:
        return
    span.set_attribute("error.type", str(status) if answered else call.reason or "_OTHER")
    span.set_status(Status(StatusCode.ERROR, call.reason))


def _unix_ns(call: Call, at: float) -> int:
    """A time of the monotonic clock as OpenTelemetry wants it."""
    return int((call.arrived_unix_seconds + (at - call.arrived_at)) * 1e9)
