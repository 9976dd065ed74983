"""Requests that a client sends before it has the answer to the last one: in their order, bounded, in nobody's way."""

from __future__ import annotations

import asyncio

from scheduler.events import CallArrived, CallFailed, Event
from tests.e2e.harness import Client, EngineRequest, RunningGateway, ScriptedEngine, engine, gateway, post, run, until

SLOW = b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n"
NEXT = b"GET /next HTTP/1.1\r\nhost: x\r\n\r\n"
INVALID = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n"


async def behind_a_slow_call(joulegate: RunningGateway, vllm: ScriptedEngine, more: bytes) -> Client:
    """A client whose first call is at the engine, with `more` sent right behind it in one write."""
    client = await joulegate.connect()
    await client.send(SLOW + more)
    await until(lambda: len(vllm.requests) > 0, "the first call at the engine")
    return client


def test_requests_that_are_answered_at_once_do_not_recurse() -> None:
    async def main() -> None:
        async def respond(request: EngineRequest) -> None:
            await proceed.wait()
            await request.answer(b"{}")

        proceed = asyncio.Event()
        async with engine(respond) as vllm, gateway(vllm, limits={"pipelined_requests": 5000}) as joulegate:
            client = await behind_a_slow_call(joulegate, vllm, (INVALID + b"\r\n{") * 2000)
            proceed.set()
            assert (await client.answer()).status == 200
            for _ in range(2000):
                (await client.answer()).assert_error(400, "invalid_json")

    run(main)


def test_upgrades_in_a_row_do_not_recurse() -> None:
    async def main() -> None:
        async def respond(request: EngineRequest) -> None:
            await request.answer(b"{}")

        async with engine(respond) as vllm, gateway(vllm) as joulegate:
            client = await joulegate.connect()
            await client.send((INVALID + b"connection: upgrade\r\nupgrade: x\r\n\r\n{") * 1500)
            for _ in range(1500):
                (await client.answer()).assert_error(400, "invalid_json")

    run(main)


def test_what_is_pipelined_over_the_limit_is_refused_in_its_order() -> None:
    """In one read: nothing stops a client from sending thousands of small requests at once."""

    async def main() -> None:
        async def respond(request: EngineRequest) -> None:
            await proceed.wait()
            await request.answer(request.target.encode(), kind="text/plain")

        proceed = asyncio.Event()
        async with engine(respond) as vllm, gateway(vllm, limits={"pipelined_requests": 4}) as joulegate:
            client = await behind_a_slow_call(joulegate, vllm, b"".join(NEXT for _ in range(1000)))
            proceed.set()
            assert [(await client.answer()).body for _ in range(5)] == [b"/slow", *[b"/next"] * 4]
            said = await client.answer()
            said.assert_error(429, "pipeline_full")
            assert said.header("retry-after") == "1"
            assert said.header("connection") == "close"
            assert await client.closed() == b""
            assert len(vllm.requests) == 5

    run(main)


def test_a_client_that_pipelines_up_to_and_over_the_limit_is_seen_to_leave() -> None:
    async def main() -> None:
        async def respond(request: EngineRequest) -> None:
            await request.gone.wait()

        for count in (4, 100):
            async with engine(respond) as vllm, gateway(vllm, limits={"pipelined_requests": 4}) as joulegate:
                client = await behind_a_slow_call(joulegate, vllm, NEXT * count)
                client.abort()
                await asyncio.wait_for(vllm.requests[0].gone.wait(), 10)
                await until(joulegate.idle, "nothing is left of it")
                assert len(vllm.requests) == 1

    run(main)


def test_a_head_behind_another_request_has_the_same_limit() -> None:
    async def main() -> None:
        async def respond(request: EngineRequest) -> None:
            await request.answer(b"{}")

        async with engine(respond) as vllm, gateway(vllm, limits={"header_bytes": 2048}) as joulegate:
            for size, status in ((1500, 200), (3000, 431)):
                client = await joulegate.connect()
                large = post("/v1/completions", {"model": "m", "prompt": "x" * 5000})
                await client.send(large + b"GET /x HTTP/1.1\r\nhost: x\r\nx: " + b"a" * size + b"\r\n\r\n")
                assert [(await client.answer()).status for _ in range(2)] == [200, status]

    run(main)


def test_a_continue_that_is_asked_for_behind_a_call_is_given_when_its_turn_comes() -> None:
    async def main() -> None:
        async def respond(request: EngineRequest) -> None:
            if request.target == "/slow":
                await proceed.wait()
            await request.answer(b'{"fine":true}')

        proceed = asyncio.Event()
        async with engine(respond) as vllm, gateway(vllm, timeouts={"request_seconds": 5}) as joulegate:
            expecting = b"POST /x HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 2\r\n"
            for more in (b"", b"connection: upgrade\r\nupgrade: x\r\n"):
                proceed.clear()
                vllm.requests.clear()
                client = await behind_a_slow_call(joulegate, vllm, expecting + more + b"\r\n")
                (connection,) = [one for one in joulegate.app.gateway.server.connections if one.exchange is not None]
                connection._started_at -= 1000.0  # the call before it takes long: that is not this request's time
                proceed.set()
                assert (await client.answer()).status == 200
                assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
                connection.check_time(joulegate.app.gateway.server.time(), joulegate.app.gateway.timeouts)
                await client.send(b"{}")
                raw = await client.reader.readuntil(b"\r\n\r\n")
                assert raw.startswith(b"HTTP/1.1 200 OK\r\n"), "one 100 is enough"
                client.close()

    run(main)


def test_a_failed_call_is_over_before_the_next_one_begins() -> None:
    async def main() -> None:
        async def respond(request: EngineRequest) -> None:
            if request.target == "/next":
                await request.answer(b"{}")
                return
            await request.begin_stream()
            await request.chunk(b"data: {}\n\n")
            await proceed.wait()
            request.reset()

        proceed = asyncio.Event()
        async with engine(respond) as vllm, gateway(vllm) as joulegate:
            told: list[type[Event]] = []
            tell = joulegate.app.gateway.tell

            def listen(event: Event) -> None:
                told.append(type(event))
                tell(event)

            joulegate.app.gateway.tell = listen  # type: ignore[method-assign]
            client = await behind_a_slow_call(joulegate, vllm, NEXT)
            await client.head()
            proceed.set()
            assert await client.chunk() == b"data: {}\n\n"
            assert b"engine_reset" in await client.chunk()
            assert await client.chunk() == b""
            assert (await client.answer()).status == 200
            lives = [kind for kind in told if kind in (CallArrived, CallFailed)]
            assert lives == [CallArrived, CallFailed, CallArrived]

    run(main)
