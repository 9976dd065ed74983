"""Engines that neither answer nor die, retries that wait, and what this process lacks itself: nobody hangs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
from time import monotonic
from typing import TYPE_CHECKING

import pytest

from scheduler.events import PolicyChanged
from tests.e2e.harness import EngineRequest, engine, gateway, post, run, until

if TYPE_CHECKING:
    from collections.abc import Iterator

CHAT = {"model": "m", "messages": []}
FIFO = {"name": "fifo", "max_in_flight": 1}
TOKEN = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
HASTY = {"probe_seconds": 0.2, "probe_timeout_seconds": 0.1, "open_seconds": 1000}
NEVER = {"probe_seconds": 1000, "probe_timeout_seconds": 0.1, "failures_to_open": 1000}


@contextlib.contextmanager
def hole(*, accepts: bool) -> Iterator[str]:
    """The URL of an engine that accepts connections and says nothing, or that does not even accept."""
    with contextlib.ExitStack() as stack:
        deaf = stack.enter_context(socket.socket())
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(100 if accepts else 0)
        for _ in range(0 if accepts else 4):
            fill = stack.enter_context(socket.socket())
            fill.setblocking(False)
            fill.connect_ex(deaf.getsockname())
        yield f"http://127.0.0.1:{deaf.getsockname()[1]}"


@contextlib.contextmanager
def no_more_files() -> Iterator[None]:
    """This process can open nothing."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            socket.socket()
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("accepts", [True, False])
def test_calls_at_an_engine_that_probes_give_up_go_elsewhere(accepts: bool) -> None:
    async def main() -> None:
        async def respond(request: EngineRequest) -> None:
            await request.answer(b"{}")

        timeouts = {"connect_seconds": 1000}
        with hole(accepts=accepts) as url:
            async with engine(respond) as vllm, gateway(vllm, url, health=HASTY, timeouts=timeouts) as joulegate:
                calls = [asyncio.ensure_future(joulegate.post("/v1/chat/completions", CHAT)) for _ in range(8)]
                assert [(await call).status for call in calls] == [200] * 8
                assert len(vllm.requests) == 8

    run(main)


def test_an_answer_that_has_begun_is_left_to_an_engine_that_probes_give_up() -> None:
    async def main() -> None:
        async def respond(request: EngineRequest) -> None:
            what = request.json.get("user")
            if what == "stream":
                await request.begin_stream()
                await request.chunk(TOKEN)
            elif what == "head":
                await request.send(b"HTTP/1.1 200 OK\r\ncontent-")
            await proceed.wait()
            if what == "silent":
                await request.answer(b"{}")
            elif what == "stream":
                await request.end_stream()
            elif what == "head":
                await request.send(b"length: 2\r\n\r\n{}")

        proceed = asyncio.Event()
        async with engine(respond) as vllm, gateway(vllm, health=HASTY) as joulegate:
            stream, head, silent = [
                asyncio.ensure_future(joulegate.post("/v1/chat/completions", {**CHAT, "user": what}))
                for what in ("stream", "head", "silent")
            ]
            await until(lambda: len(vllm.requests) == 3, "all calls are at the engine")
            exchanges = joulegate.app.gateway.exchanges.values()
            await until(lambda: any(one.call.first_byte_at for one in exchanges), "the stream has begun")
            await until(
                lambda: sum(not one._upstream.silent for one in exchanges if one._upstream) == 2, "the head too"
            )
            vllm.healthy = False
            (state,) = joulegate.app.gateway.scheduler.engines.values()
            await until(lambda: state.breaker.state == "open", "its probes have given it up")
            (await joulegate.post("/v1/chat/completions", CHAT)).assert_error(503, "no_engine")
            proceed.set()
            assert (await silent).status == 200  # there was no other engine: a stall may end
            assert (await head).body == b"{}"
            said = await stream
            assert (said.complete, said.body) == (True, TOKEN)

    run(main)


def test_a_client_that_leaves_while_its_engine_is_connected_to_leaves_nothing_behind() -> None:
    async def main() -> None:
        with hole(accepts=False) as url:
            async with gateway(url, health=NEVER, timeouts={"connect_seconds": 1000}) as joulegate:
                pool = joulegate.app.gateway.engines[url.removeprefix("http://")].pool
                await until(
                    lambda: joulegate.app.gateway.engines[url.removeprefix("http://")].healthy is False, "probed"
                )
                client = await joulegate.connect()
                await client.send(post("/v1/chat/completions", CHAT))
                await until(lambda: pool.busy_count == 1, "it is connecting")
                assert joulegate.app.state()["calls_running"] == 1
                client.abort()
                await until(lambda: joulegate.app.state()["calls_running"] == 0, "the scheduler has forgotten it")
                await until(lambda: pool.busy_count == 0, "nobody connects any more")

    run(main)


@pytest.mark.parametrize("state", ["streaming", "waiting", "held"])
def test_a_client_that_leaves_is_noticed_by_no_timer(state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slot is free at once, not at the next look: looking once a second is too slow (production-stack 867)."""
    monkeypatch.setattr("proxy.http.server.SWEEP_SECONDS", 1000.0)
    monkeypatch.setattr("proxy.gateway.SWEEP_SECONDS", 1000.0)

    async def main() -> None:
        async def respond(request: EngineRequest) -> None:
            if state == "streaming":
                await request.begin_stream()
                await request.chunk(TOKEN)
            await request.gone.wait()

        async with engine(respond) as vllm, gateway(vllm, health=NEVER, policy=FIFO) as joulegate:
            leaver = await joulegate.connect()
            await leaver.send(post("/v1/chat/completions", CHAT))
            await until(lambda: len(vllm.requests) == 1, "the call is at the engine")
            if state == "streaming":
                await leaver.head()
                await leaver.chunk()
            held = await joulegate.connect()
            await held.send(post("/v1/chat/completions", CHAT))
            await until(lambda: joulegate.app.state()["calls_held"] == 1, "another waits for its slot")
            if state == "held":
                held.abort()
                await until(lambda: joulegate.app.state()["calls_held"] == 0, "it is forgotten")
                assert not vllm.requests[0].gone.is_set()
            leaver.abort()
            await asyncio.wait_for(vllm.requests[0].gone.wait(), 10)
            await until(lambda: len(vllm.requests) == (1 if state == "held" else 2), "its slot is the next one's")
            held.abort()

    run(main)


@pytest.mark.parametrize("connecting", [True, False])
def test_the_total_time_holds_before_a_call_is_sent(connecting: bool) -> None:
    async def main() -> None:
        async def respond(request: EngineRequest) -> None:
            await proceed.wait()
            await request.answer(b"{}")

        proceed = asyncio.Event()
        timeouts = {"total_seconds": 0.5, "connect_seconds": 1000}
        if connecting:
            with hole(accepts=False) as url:
                async with gateway(url, timeouts=timeouts, health=NEVER) as joulegate:
                    (await joulegate.post("/v1/chat/completions", CHAT)).assert_error(504, "total_timeout")
            return
        async with engine(respond) as vllm, gateway(vllm, timeouts=timeouts, policy=FIFO) as joulegate:
            first = asyncio.ensure_future(joulegate.post("/v1/chat/completions", CHAT))
            await until(lambda: len(vllm.requests) == 1, "the first call is at the engine")
            (exchange,) = joulegate.app.gateway.exchanges.values()
            exchange.call.arrived_at += 1000  # it has more time
            (await joulegate.post("/v1/chat/completions", CHAT)).assert_error(504, "total_timeout")
            assert joulegate.app.state()["calls_held"] == 0
            joulegate.app.gateway.scheduler.validate()
            proceed.set()
            assert (await first).status == 200
            assert len(vllm.requests) == 1

    run(main)


@pytest.mark.parametrize("in_time", [True, False])
def test_a_retry_that_waits_has_the_total_time_and_no_other(in_time: bool) -> None:
    """It is not at any engine now: no engine's or client's slowness counts, and the scheduler forgets it."""

    async def main() -> None:
        async def respond(request: EngineRequest) -> None:
            who = request.json["user"]
            await (reset if who == "retried" and not reset.is_set() else proceed).wait()
            if not proceed.is_set():
                request.reset()
                return
            await request.answer(b"{}")

        reset, proceed = asyncio.Event(), asyncio.Event()
        timeouts = {"first_byte_seconds": 500, "idle_seconds": 500, "total_seconds": 5000}
        async with engine(respond) as vllm, gateway(vllm, timeouts=timeouts, health=NEVER) as joulegate:
            retried, other = [
                asyncio.ensure_future(joulegate.post("/v1/chat/completions", {**CHAT, "user": user}))
                for user in ("retried", "other")
            ]
            await until(lambda: len(vllm.requests) == 2, "both calls are at the engine")
            exchange = next(one for one in joulegate.app.gateway.exchanges.values() if b"retried" in one.request.body)
            joulegate.app.gateway.tell(PolicyChanged("fifo", (("max_in_flight", 1),)))
            reset.set()
            await until(lambda: joulegate.app.state()["calls_held"] == 1, "the retry waits")
            exchange.pause()  # its client does not read the answer before this one
            exchange.check_time(monotonic() + 1000)
            assert not retried.done()
            if not in_time:
                exchange.check_time(monotonic() + 6000)
                (await retried).assert_error(504, "total_timeout")
                assert len(joulegate.app.gateway.scheduler.calls) == 1
                joulegate.app.gateway.scheduler.validate()
            proceed.set()
            assert (await other).status == 200
            if in_time:
                assert (await retried).status == 200

    run(main)


def test_a_process_without_descriptors_blames_no_engine() -> None:
    async def main() -> None:
        async def respond(request: EngineRequest) -> None:
            await proceed.wait()
            await request.answer(b"{}")

        proceed = asyncio.Event()
        health = {"probe_seconds": 1000, "failures_to_open": 1}
        async with engine(respond) as vllm, gateway(vllm, health=health) as joulegate:
            name = f"127.0.0.1:{vllm.port}"
            held = asyncio.ensure_future(joulegate.post("/v1/chat/completions", CHAT))  # has the idle connection
            await until(lambda: len(vllm.requests) == 1, "the first call is at the engine")
            client = await joulegate.connect()
            await until(lambda: len(joulegate.app.gateway.server.connections) == 2, "the second client is connected")
            with no_more_files():
                await client.send(post("/v1/chat/completions", CHAT))
                said = await client.answer()
                await joulegate.app._watches[name]._probe()
            said.assert_error(503, "no_file_descriptors")
            assert said.header("retry-after") == "1"
            state = joulegate.app.gateway.scheduler.engines[name]
            assert (state.breaker.state, state.breaker.failures) == ("closed", 0)
            assert joulegate.app.ready() == (True, [])
            proceed.set()
            await client.send(post("/v1/chat/completions", CHAT))
            assert (await client.answer()).status == 200
            assert (await held).status == 200

    run(main)


def test_a_fault_of_ours_in_connecting_fails_the_call_and_blames_no_engine() -> None:
    async def main() -> None:
        async def respond(request: EngineRequest) -> None:
            await request.answer(b"{}")

        health = {"probe_seconds": 1000, "failures_to_open": 1}
        async with engine(respond) as vllm, gateway(vllm, health=health) as joulegate:
            name = f"127.0.0.1:{vllm.port}"
            pool = joulegate.app.gateway.engines[name].pool
            for idle in list(pool.open_connections):
                idle.abort()
            await until(lambda: not pool.open_connections, "no connection is there")
            pool.tls = "nonsense"  # type: ignore[assignment]  # no error of the operating system's
            (await joulegate.post("/v1/chat/completions", CHAT)).assert_error(500, "gateway_fault")
            pool.tls = None
            assert joulegate.app.gateway.scheduler.engines[name].breaker.state == "closed"
            assert (await joulegate.post("/v1/chat/completions", CHAT)).status == 200

    run(main)
