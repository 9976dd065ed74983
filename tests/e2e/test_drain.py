"""SIGTERM while requests are in every state: those that were accepted are answered, nobody waits for the others."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from tests.e2e.harness import EngineRequest, ScriptedEngine, engine, gateway, post, run, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.e2e.harness import RunningGateway

CHAT = {"model": "m", "messages": []}
CALL = post("/v1/chat/completions", CHAT)


@contextlib.asynccontextmanager
async def one_at_a_time() -> AsyncIterator[tuple[RunningGateway, ScriptedEngine, asyncio.Event]]:
    """A gateway that sends one call at a time to an engine that answers when it is told to."""

    async def slow(request: EngineRequest) -> None:
        await proceed.wait()
        await request.answer(b"{}")

    proceed = asyncio.Event()
    async with engine(slow) as vllm, gateway(vllm, policy={"name": "fifo", "max_in_flight": 1}) as joulegate:
        yield joulegate, vllm, proceed


def test_calls_that_wait_are_refused_and_the_one_that_runs_is_answered() -> None:
    async def main() -> None:
        async with one_at_a_time() as (joulegate, vllm, proceed):
            running = asyncio.ensure_future(joulegate.request(CALL))
            await until(lambda: len(vllm.requests) == 1, "one call is at the engine")
            held = asyncio.ensure_future(joulegate.request(CALL))
            await until(lambda: joulegate.app.state()["calls_held"] == 1, "one call waits")
            joulegate.app.stop()
            refused = await held
            refused.assert_error(503, "draining")
            assert refused.header("retry-after") == "1"
            assert refused.header("connection") == "close"
            proceed.set()
            answer = await running
            assert (answer.status, answer.body) == (200, b"{}")
            assert len(vllm.requests) == 1

    run(main)


def test_the_next_of_pipelined_requests_is_told_to_go_elsewhere_and_the_connection_closes() -> None:
    async def main() -> None:
        async with one_at_a_time() as (joulegate, vllm, proceed):
            client = await joulegate.connect()
            await client.send(CALL * 3)
            await until(lambda: len(vllm.requests) == 1, "the first is at the engine")
            joulegate.app.stop()
            await until(lambda: joulegate.app.gateway.scheduler.draining, "it drains")
            proceed.set()
            assert (await client.answer()).status == 200
            refused = await client.answer()
            refused.assert_error(503, "draining")
            assert refused.header("connection") == "close"
            assert await client.closed() == b"", "what that says holds for the rest of them"
            assert len(vllm.requests) == 1

    run(main)


def test_a_request_of_which_half_has_come_is_refused_when_it_is_whole() -> None:
    async def main() -> None:
        async with one_at_a_time() as (joulegate, vllm, _):
            head, body = await joulegate.connect(), await joulegate.connect()
            await head.send(CALL[:40])
            await body.send(CALL[:-4])
            server = joulegate.app.gateway.server
            await until(lambda: server.buffered_bytes > 0, "the half body is there")
            joulegate.app.stop()
            await until(lambda: server.draining, "it drains")
            await body.send(CALL[-4:])
            (await body.answer()).assert_error(503, "draining")
            await head.send(CALL[40:])
            (await head.answer()).assert_error(503, "draining")
            assert await body.closed() == await head.closed() == b""
            assert not vllm.requests

    run(main)


def test_nobody_waits_for_a_request_that_never_comes_whole() -> None:
    async def main() -> None:
        async with engine(lambda request: request.answer(b"{}")) as vllm:
            timeouts = {"request_seconds": 0.3, "drain_seconds": 1000}
            async with gateway(vllm, timeouts=timeouts) as joulegate:
                client = await joulegate.connect()
                await client.send(CALL[:-4])
                await until(lambda: joulegate.app.gateway.server.buffered_bytes > 0, "the half body is there")
                joulegate.app.stop()
                (await client.answer()).assert_error(408, "request_timeout")
                assert await client.closed() == b""

    run(main)
