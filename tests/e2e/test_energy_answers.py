"""Where an answer says its joules: in its head, in a stream's usage, behind a stream's last chunk, and on its span."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING

import pytest
from aiohttp import web
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from backends.power.sample import Sample
from backends.twin.calibration import load
from backends.twin.prior import prior_of
from scheduler.events import EnergyPrior
from tests.e2e.harness import EngineRequest, RunningGateway, engine, gateway, post, run, until
from tests.e2e.test_tracing import collector, said

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ASK = {"model": "m", "messages": [], "max_tokens": 20}
USAGE = b'{"choices":[],"usage":{"prompt_tokens":700,"completion_tokens":20}}'
PRIOR = prior_of(load("h200-llama-3.1-8b"))


def believe(running: RunningGateway) -> None:
    """Something can be told of each engine's energy."""
    for name in running.app.gateway.engines:
        running.app.gateway.tell(EnergyPrior(name, PRIOR))


async def in_two_reads(request: EngineRequest) -> None:
    """The head and half of the body, and later the rest."""
    await request.send(
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(USAGE), USAGE[:20])
    )
    await request.gone_on.wait()  # type: ignore[attr-defined]
    await request.send(USAGE[20:])


def test_an_answer_in_several_reads_says_its_joules_in_its_head() -> None:
    seen = asyncio.Event()

    async def halves(request: EngineRequest) -> None:
        request.gone_on = seen  # type: ignore[attr-defined]
        await in_two_reads(request)

    async def main() -> None:
        async with engine(halves) as upstream, gateway(upstream) as running:
            believe(running)
            client = await running.connect()
            await client.send(post("/v1/chat/completions", ASK))
            exchanges = running.app.gateway.exchanges
            await until(lambda: any(one.call.response_bytes for one in exchanges.values()), "the first half")
            seen.set()
            answer = await client.answer()
            assert answer.body == USAGE
            assert float(answer.header("x-energy-joules") or "nan") > 0
            assert answer.header("x-energy-source") == "modelled"

    run(main)


def test_an_answer_that_breaks_off_before_its_head_went_out_is_an_error_and_no_torso() -> None:
    async def cut(request: EngineRequest) -> None:
        await request.send(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{")
        request.reset()

    async def main() -> None:
        async with engine(cut) as upstream, gateway(upstream) as running:
            believe(running)
            answer = await running.post("/v1/chat/completions", ASK)
            answer.assert_error(502, "engine_reset")

    run(main)


def test_a_long_answer_goes_out_as_it_comes() -> None:
    body = b'{"text":"' + b"x" * 200_000 + b'"}'

    async def long(request: EngineRequest) -> None:
        await request.answer(body)

    async def main() -> None:
        async with engine(long) as upstream, gateway(upstream) as running:
            believe(running)
            answer = await running.post("/v1/chat/completions", ASK)
            assert answer.body == body and answer.status == 200

    run(main)


def test_a_stream_says_its_joules_behind_its_last_chunk_to_those_who_look_there() -> None:
    async def main() -> None:
        head_is_read = asyncio.Event()

        async def streamed(request: EngineRequest) -> None:
            await request.begin_stream()
            await request.chunk(b'data: {"choices":[{"delta":{"content":"hi"}}]}\n\n')
            await head_is_read.wait()
            await request.chunk(b"data: %b\n\ndata: [DONE]\n\n" % USAGE)
            await request.end_stream()

        async with engine(streamed) as upstream, gateway(upstream) as running:
            believe(running)
            ask = {**ASK, "stream": True, "stream_options": {"include_usage": True}}
            client = await running.connect()
            await client.send(post("/v1/chat/completions", ask, "te: trailers\r\nconnection: te, close\r\n"))
            head = await client.head()
            assert head.header("trailer") == "x-energy-joules, x-energy-source, x-energy-interval"
            assert head.header("x-energy-joules") is None, "a stream is not held up for it"
            head_is_read.set()
            rest = await client.closed()
            trailers = rest.partition(b"\r\n0\r\n")[2]
            assert trailers.startswith(b"x-energy-joules: ") and trailers.endswith(b"\r\n\r\n")
            assert b"x-energy-source: modelled\r\n" in trailers
            assert b'"energy_joules"' in rest, "and in the usage that was asked for"

            client = await running.connect()
            await client.send(post("/v1/chat/completions", ask, "connection: close\r\n"))
            plain = await client.closed()
            assert b"trailer" not in plain and plain.endswith(b"0\r\n\r\n")

    run(main)


WHOLE = b'{"input_tokens":700,"input_tokens_details":{"cached_tokens":0},"output_tokens":20}'
RESPONSES = (
    b'data: {"type":"response.created","response":{"id":"r","usage":null}}\n\n',
    b'data: {"type":"response.completed","response":{"id":"r","usage":%b}}\n\n' % WHOLE,
)
MESSAGES = (
    b'data: {"type":"message_start","message":{"usage":{"input_tokens":700,"output_tokens":1}}}\n\n',
    b'data: {"type":"message_delta","delta":{},"usage":{"output_tokens":20}}\n\n',
)


@pytest.mark.parametrize(("path", "events"), [("/v1/responses", RESPONSES), ("/v1/messages", MESSAGES)])
def test_other_apis_streams_say_their_joules_in_their_last_usage(path: str, events: tuple[bytes, bytes]) -> None:
    async def main() -> None:
        async def streamed(request: EngineRequest) -> None:
            await request.begin_stream()
            for event in events:
                await request.chunk(event)
            await request.end_stream()

        async with engine(streamed) as upstream, gateway(upstream) as running:
            believe(running)
            answer = await running.post(path, {**ASK, "input": "hi", "stream": True})
            said = [json.loads(line[6:]) for line in answer.body.split(b"\n") if line.startswith(b"data: ")]
            usage = said[-1].get("usage") or said[-1]["response"]["usage"]
            assert usage["output_tokens"] == 20
            assert usage["energy_joules"] > 0 and usage["energy_source"] == "modelled"
            assert answer.body.count(b"energy_joules") == 1

    run(main)


def test_a_span_says_the_joules_of_its_call() -> None:
    async def whole(request: EngineRequest) -> None:
        await request.answer(USAGE)

    async def main() -> None:
        async with collector() as receiver:
            tracing = {"otlp_endpoint": receiver.endpoint, "metrics_seconds": 0.0}
            async with engine(whole) as upstream, gateway(upstream, tracing=tracing) as running:
                believe(running)
                answer = await running.post("/v1/chat/completions", ASK)
            attributes = said(receiver.server)
            assert attributes["joulegate.energy.source"] == "modelled"
            joules = float(answer.header("x-energy-joules") or "nan")
            assert abs(float(str(attributes["joulegate.energy.joules"])) - joules) < 1e-3
            assert float(str(attributes["joulegate.energy.low_joules"])) <= joules

    run(main)


@contextlib.asynccontextmanager
async def metrics_receiver() -> AsyncIterator[tuple[str, dict[str, list[tuple[dict, float]]]]]:
    """(its address, metric → (attributes, value) as they come)."""
    found: dict[str, list[tuple[dict, float]]] = {}

    async def take(request: web.Request) -> web.Response:
        export = ExportMetricsServiceRequest.FromString(await request.read())
        for of_resource in export.resource_metrics:
            for of_scope in of_resource.scope_metrics:
                for metric in of_scope.metrics:
                    points = (metric.sum if metric.HasField("sum") else metric.gauge).data_points
                    for point in points:
                        names = {one.key: one.value.string_value for one in point.attributes}
                        found.setdefault(f"{metric.name} {metric.unit}", []).append((names, point.as_double))
        return web.Response()

    app = web.Application()
    app.router.add_post("/v1/metrics", take)
    app.router.add_post("/v1/traces", take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", found
    finally:
        await runner.cleanup()


def test_devices_are_exported_by_opentelemetrys_names_and_unknown_is_left_out() -> None:
    async def main() -> None:
        async with metrics_receiver() as (endpoint, found):
            async with gateway("http://127.0.0.1:9", tracing={"otlp_endpoint": endpoint}) as running:
                latest = running.app.energy.metering.latest
                latest["GPU-1"] = Sample("GPU-1", 1.0, "measured", "ok", energy_joules=1234.5, power_watts=300.0)
                latest["GPU-2"] = Sample("GPU-2", 1.0, "measured", "not_supported")
            [(attributes, joules)] = found["hw.energy J"]
            assert joules == 1234.5
            assert attributes["hw.id"] == "GPU-1" and attributes["hw.type"] == "gpu"
            assert [value for _, value in found["hw.power W"]] == [300.0]

    run(main)
