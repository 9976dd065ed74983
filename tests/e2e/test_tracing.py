"""Traces, as an OTLP collector on a real socket receives them."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import threading
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from proxy import tracing as module
from proxy.call import Call, Outcome
from proxy.config import TracingConfig
from proxy.identity import Identity
from proxy.tracing import Tracing, TracingFault
from tests.e2e.harness import WAIT_SECONDS, EngineRequest, RunningGateway, engine, gateway, run, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CHAT = {"model": "m", "messages": [], "max_tokens": 9}
TRACE, CLIENTS_SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{CLIENTS_SPAN}-01"
UNSAMPLED = f"00-{TRACE}-{CLIENTS_SPAN}-00"


class Collector:
    """What an OTLP/HTTP receiver got."""

    def __init__(self) -> None:
        self.endpoint = ""
        self.spans: list[Span] = []
        self.services: set[str] = set()
        self.asked = 0
        self.answers = asyncio.Event()
        self.answers.set()

    async def take(self, request: web.Request) -> web.Response:
        """POST /v1/traces."""
        self.asked += 1
        await self.answers.wait()
        export = ExportTraceServiceRequest.FromString(await request.read())
        for of_resource in export.resource_spans:
            self.services |= {a.value.string_value for a in of_resource.resource.attributes if a.key == "service.name"}
            for of_scope in of_resource.scope_spans:
                self.spans += of_scope.spans
        return web.Response()

    def span(self, kind: Span.SpanKind.ValueType) -> Span:
        """The one span of this kind."""
        (span,) = [span for span in self.spans if span.kind == kind]
        return span

    @property
    def server(self) -> Span:
        """The call's own span."""
        return self.span(Span.SPAN_KIND_SERVER)

    @property
    def client(self) -> Span:
        """The span of the engine's work."""
        return self.span(Span.SPAN_KIND_CLIENT)


@contextlib.asynccontextmanager
async def collector() -> AsyncIterator[Collector]:
    """A running receiver."""
    receiver = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", receiver.take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    receiver.endpoint = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield receiver
    finally:
        await runner.cleanup()


async def respond(request: EngineRequest) -> None:
    """A plain answer with usage."""
    details = b'"prompt_tokens_details":{"cached_tokens":4}'
    await request.answer(b'{"usage":{"prompt_tokens":7,"completion_tokens":3,%b}}' % details)


def said(span: Span) -> dict[str, object]:
    """A span's attributes as plain values."""
    return {item.key: getattr(item.value, item.value.WhichOneof("value") or "string_value") for item in span.attributes}


def finished(**changes: object) -> Call:
    """A stream that was held for 1 s, began after 2 s and took 5 s."""
    identity = Identity("run-1", "joulegate-header", "plan")
    made = Call("jg-1", "r-1", "POST", "/v1/completions", "/v1/completions", 100.0, 1_790_000_000.0, identity, "fifo")
    made.key_name, made.model, made.engine, made.attempts, made.stream = "team", "m", "gpu0", 1, True
    made.dispatched_at, made.sent_at, made.first_byte_at, made.finished_at = 101.0, 101.0, 102.0, 105.0
    made.status, made.outcome = 200, Outcome.OK
    for name, value in changes.items():
        assert hasattr(made, name)
        setattr(made, name, value)
    return made


async def trace_one(receiver: Collector, call: Call, fields: dict[bytes, bytes] | None = None) -> bytes:
    """Trace one call and export it; what the engine is told."""
    tracing = Tracing(
        TracingConfig(otlp_endpoint=receiver.endpoint), lambda name: urlsplit(f"http://{name}.example:8000")
    )
    told = tracing.start(call, fields or {})
    tracing.finish(call)
    await asyncio.to_thread(tracing.close)
    return told


def test_a_call_is_a_server_span_with_the_engines_work_in_it() -> None:
    async def main() -> None:
        async with collector() as receiver:
            tracing = {"otlp_endpoint": receiver.endpoint, "service_name": "door"}
            async with engine(respond) as vllm, gateway(vllm, tracing=tracing) as joulegate:
                headers = f"traceparent: {PARENT}\r\ntracestate: a=1\r\nx-workflow-id: run-1\r\n"
                assert (await joulegate.post("/v1/chat/completions", CHAT, headers)).status == 200
                (got,) = vllm.requests
            # The gateway has exported on its way down.
            server, client = receiver.server, receiver.client
            assert receiver.services == {"door"}
            assert (server.name, client.name) == ("POST /v1/chat/completions", "chat m")
            assert server.trace_id.hex() == client.trace_id.hex() == TRACE
            assert server.parent_span_id.hex() == CLIENTS_SPAN
            assert client.parent_span_id == server.span_id
            version, trace_id, span_id, flags = (got.header("traceparent") or "").split("-")
            assert (version, trace_id, span_id) == ("00", TRACE, client.span_id.hex())
            assert int(flags, 16) & 1, "sampled"
            assert got.header("tracestate") == "a=1"
            assert {
                "gen_ai.operation.name": "chat",
                "gen_ai.provider.name": "vllm",
                "gen_ai.request.model": "m",
                "gen_ai.request.max_tokens": 9,
                "gen_ai.conversation.id": "run-1",
                "gen_ai.usage.input_tokens": 7,
                "gen_ai.usage.output_tokens": 3,
                "gen_ai.usage.cache_read.input_tokens": 4,
                "joulegate.attempts": 1,
            }.items() <= said(client).items()
            assert {
                "http.request.method": "POST",
                "http.route": "/v1/chat/completions",
                "url.path": "/v1/chat/completions",
                "url.scheme": "http",
                "http.response.status_code": 200,
                "joulegate.outcome": "ok",
                "joulegate.workflow.source": "joulegate-header",
            }.items() <= said(server).items()
            assert not [name for name in said(server) if name.startswith("gen_ai.usage")], "not counted twice"
            assert server.start_time_unix_nano <= client.start_time_unix_nano
            assert client.end_time_unix_nano <= server.end_time_unix_nano
            assert server.status.code == client.status.code == Status.STATUS_CODE_UNSET

    run(main)


def test_times_are_the_calls_own_and_holding_is_not_the_engines_work() -> None:
    async def main() -> None:
        async with collector() as receiver:
            await trace_one(receiver, finished(prompt_tokens=7))
            server, client = receiver.server, receiver.client

            def seconds(nanoseconds: int) -> float:
                return round(nanoseconds / 1e9 - 1_790_000_000, 3)

            assert seconds(server.start_time_unix_nano) == 0
            assert seconds(client.start_time_unix_nano) == 1
            assert seconds(server.end_time_unix_nano) == seconds(client.end_time_unix_nano) == 5
            assert [(e.name, seconds(e.time_unix_nano)) for e in server.events] == [("joulegate.dispatched", 1)]
            assert [(e.name, seconds(e.time_unix_nano)) for e in client.events] == [("joulegate.first_byte", 2)]
            assert said(server)["joulegate.held_seconds"] == 1
            about = said(client)
            assert about["gen_ai.operation.name"] == "text_completion"
            assert about["gen_ai.response.time_to_first_chunk"] == 1
            assert about["gen_ai.request.stream"] is True
            assert (about["server.address"], about["server.port"]) == ("gpu0.example", 8000)
            assert "gen_ai.usage.output_tokens" not in about, "not reported is not zero"

    run(main)


@pytest.mark.parametrize(
    ("outcome", "status", "reason", "server_error", "client_error"),
    [
        (Outcome.OK, 200, None, None, None),
        (Outcome.ENGINE_4XX, 404, "engine_4xx", None, "404"),
        (Outcome.ENGINE_5XX, 500, "engine_5xx", "500", "500"),
        (Outcome.ENGINE_LOST, 200, "engine_reset", "engine_reset", "engine_reset"),
        (Outcome.TIMEOUT, 504, "first_byte_timeout", "first_byte_timeout", "first_byte_timeout"),
        (Outcome.CLIENT_GONE, 200, "client_gone", None, None),
    ],
)
def test_errors_are_whose_they_are(
    outcome: Outcome, status: int, reason: str | None, server_error: str | None, client_error: str | None
) -> None:
    async def main() -> None:
        async with collector() as receiver:
            await trace_one(receiver, finished(outcome=outcome, status=status, reason=reason))
            for span, error in ((receiver.server, server_error), (receiver.client, client_error)):
                assert said(span).get("error.type") == error, span.name
                assert (span.status.code == Status.STATUS_CODE_ERROR) == (error is not None)
            assert said(receiver.server).get("joulegate.reason") == reason

    run(main)


def test_a_call_that_no_engine_had_has_no_span_of_one() -> None:
    async def main() -> None:
        async with collector() as receiver:
            async with (
                engine(respond) as vllm,
                gateway(vllm, tracing={"otlp_endpoint": receiver.endpoint}) as joulegate,
            ):
                answer = await joulegate.post("/v1/chat/completions", {"model": "z"}, f"traceparent: {PARENT}\r\n")
                answer.assert_error(404, "unknown_model")
            (server,) = receiver.spans
            assert server.kind == Span.SPAN_KIND_SERVER
            assert server.parent_span_id.hex() == CLIENTS_SPAN
            assert {"joulegate.reason": "unknown_model", "http.response.status_code": 404}.items() <= said(
                server
            ).items()
            assert server.status.code == Status.STATUS_CODE_UNSET, "a 4xx is the client's, not this server's"

    run(main)


def test_other_paths_are_traced_without_words_about_inference() -> None:
    async def main() -> None:
        async with collector() as receiver:
            await trace_one(receiver, finished(route="other", path="/metrics", method="BREW", model=None))
            assert receiver.client.name == receiver.server.name == "_OTHER other"
            assert not [name for name in said(receiver.client) if name.startswith("gen_ai.")]

    run(main)


def test_a_client_that_decided_against_a_trace_stays_the_engines_parent() -> None:
    async def main() -> None:
        async with collector() as receiver:
            told = await trace_one(receiver, finished(), {b"traceparent": UNSAMPLED.encode()})
            assert told == f"traceparent: {UNSAMPLED}\r\n".encode()
            assert receiver.spans == []

    run(main)


def test_the_ratio_holds_for_traces_that_begin_here_alone() -> None:
    async def main() -> None:
        async with collector() as receiver:
            never = {"otlp_endpoint": receiver.endpoint, "sample_ratio": 0.0}
            async with engine(respond) as vllm, gateway(vllm, tracing=never) as joulegate:
                await joulegate.post("/v1/chat/completions", CHAT)
                await joulegate.post("/v1/chat/completions", CHAT, f"traceparent: {PARENT}\r\n")
                fresh, followed = [request.header("traceparent") or "" for request in vllm.requests]
            assert int(fresh.split("-")[3], 16) & 1 == 0, "the engine is told not to trace it either"
            assert {span.trace_id.hex() for span in receiver.spans} == {TRACE} == {followed.split("-")[1]}

    run(main)


@pytest.mark.parametrize("broken", [b"", b"hello", b"00-" + b"0" * 32 + b"-00f067aa0ba902b7-01", b"\xff" * 55])
def test_a_broken_traceparent_begins_a_trace_of_our_own(broken: bytes) -> None:
    async def main() -> None:
        async with collector() as receiver:
            told = await trace_one(receiver, finished(), {b"traceparent": broken, b"tracestate": b"a=1"})
            server, client = receiver.server, receiver.client
            assert server.parent_span_id == b""
            assert told.startswith(f"traceparent: 00-{server.trace_id.hex()}-{client.span_id.hex()}-".encode())

    run(main)


def test_long_values_are_cut() -> None:
    async def main() -> None:
        async with collector() as receiver:
            await trace_one(receiver, finished(model="x" * 100_000, path="/" + "y" * 100_000))
            assert len(receiver.client.name) < 200
            assert len(str(said(receiver.client)["gen_ai.request.model"])) == module.ATTRIBUTE_LENGTH_MAX
            assert len(str(said(receiver.server)["url.path"])) == module.ATTRIBUTE_LENGTH_MAX

    run(main)


def test_a_collector_that_is_gone_costs_no_call_and_does_not_keep_the_gateway(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "CLOSE_SECONDS", 0.05)

    async def main() -> None:
        async with collector() as receiver:
            endpoint = receiver.endpoint
        async with engine(respond) as vllm, gateway(vllm, tracing={"otlp_endpoint": endpoint}) as joulegate:
            for _ in range(3):
                assert (await joulegate.post("/v1/chat/completions", CHAT)).status == 200
        await until(lambda: not exporting(joulegate).is_alive(), "the export has given up")

    run(main)


def test_a_collector_that_does_not_answer_does_not_keep_the_gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CLOSE_SECONDS", 0.05)

    async def main() -> None:
        async with collector() as receiver:
            receiver.answers.clear()
            tracing = {"otlp_endpoint": receiver.endpoint}
            async with engine(respond) as vllm, gateway(vllm, tracing=tracing) as joulegate:
                assert (await joulegate.post("/v1/chat/completions", CHAT)).status == 200
            assert exporting(joulegate).is_alive(), "it still waits; the gateway has ended"
            await until(lambda: receiver.asked == 1, "the export has begun")
            receiver.answers.set()
            await until(lambda: not exporting(joulegate).is_alive(), "the export has ended")
            assert len(receiver.spans) == 2

    run(main)


def exporting(joulegate: RunningGateway) -> threading.Thread:
    """The SDK's own thread."""
    tracing = joulegate.app.gateway.tracing
    assert tracing is not None
    thread = tracing._provider._active_span_processor._span_processors[0]._batch_processor._worker_thread
    assert isinstance(thread, threading.Thread)
    return thread


def test_without_tracing_the_clients_traceparent_passes_unchanged() -> None:
    async def main() -> None:
        async with engine(respond) as vllm, gateway(vllm) as joulegate:
            headers = f"traceparent: {PARENT}\r\ntracestate: a=1\r\n"
            answer = await joulegate.post("/v1/chat/completions", CHAT, headers)
            assert vllm.requests[0].header("traceparent") == PARENT
            assert vllm.requests[0].header("tracestate") == "a=1"
            assert answer.header("x-workflow-id") == TRACE

    run(main)


def test_without_tracing_its_libraries_are_not_loaded() -> None:
    program = "import sys, proxy.app; sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=WAIT_SECONDS).returncode == 0


def test_a_missing_exporter_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(TracingFault, match=r"pip install 'joulegate\[otlp\]'"):
        Tracing(TracingConfig(otlp_endpoint="http://127.0.0.1:4318"))
