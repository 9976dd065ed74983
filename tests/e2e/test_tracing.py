"""Traces, as an OTLP collector on a real socket receives them."""

from __future__ import annotations

import asyncio

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.e2e.harness import EngineRequest, engine, gateway, run

CHAT = {"model": "m", "messages": [], "max_tokens": 9}
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def attributes(span: Span) -> dict[str, object]:
    """Its attributes as plain values."""
    return {item.key: getattr(item.value, item.value.WhichOneof("value") or "string_value") for item in span.attributes}


def test_a_call_is_a_server_span_with_the_inference_in_it() -> None:
    received: list[Span] = []

    async def main() -> None:
        async def collect(request: web.Request) -> web.Response:
            export = ExportTraceServiceRequest.FromString(await request.read())
            received.extend(span for r in export.resource_spans for s in r.scope_spans for span in s.spans)
            return web.Response()

        async def respond(request: EngineRequest) -> None:
            await request.answer(b'{"usage":{"prompt_tokens":7,"completion_tokens":3}}')

        app = web.Application()
        app.router.add_post("/v1/traces", collect)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        endpoint = f"http://127.0.0.1:{runner.addresses[0][1]}"
        async with engine(respond) as vllm, gateway(vllm, tracing={"otlp_endpoint": endpoint}) as joulegate:
            await joulegate.post("/v1/chat/completions", CHAT, f"traceparent: {PARENT}\r\ntracestate: a=1\r\n")
            (got,) = vllm.requests
            assert got.header("tracestate") == "a=1"
            sent = got.header("traceparent") or ""
            (await joulegate.post("/v1/chat/completions", {"model": "z"})).assert_error(404)
        await asyncio.sleep(0)  # the gateway has exported on its way down
        await runner.cleanup()
        by_name = {span.name: span for span in received}
        client = by_name["chat m"]
        server = next(s for s in received if s.span_id == client.parent_span_id)
        assert server.name == "POST /v1/chat/completions"
        assert server.trace_id.hex() == client.trace_id.hex() == PARENT.split("-")[1]
        assert server.parent_span_id.hex() == PARENT.split("-")[2]
        assert sent.split("-")[1:3] == [client.trace_id.hex(), client.span_id.hex()]
        said = attributes(client)
        assert said["gen_ai.operation.name"] == "chat"
        assert (said["gen_ai.usage.input_tokens"], said["gen_ai.usage.output_tokens"]) == (7, 3)
        assert said["gen_ai.request.max_tokens"] == 9
        assert attributes(server)["http.response.status_code"] == 200
        assert attributes(by_name["chat z"])["error.type"] == "unknown_model"

    run(main)


def test_without_tracing_the_clients_traceparent_passes_unchanged() -> None:
    async def main() -> None:
        async def respond(request: EngineRequest) -> None:
            await request.answer(b"{}")

        async with engine(respond) as vllm, gateway(vllm) as joulegate:
            said = await joulegate.post("/v1/chat/completions", CHAT, f"traceparent: {PARENT}\r\n")
            assert vllm.requests[0].header("traceparent") == PARENT
            assert said.header("x-workflow-id") == PARENT.split("-")[1]

    run(main)
