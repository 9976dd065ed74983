"""Clients that leave, engines that die, times that run out: who is told what, and what is freed."""

from __future__ import annotations

import asyncio
import json
import socket

import pytest

from tests.e2e.harness import EngineRequest, engine, gateway, post, run, until

CHAT = {"model": "m", "messages": []}
TOKEN = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'


def closed_port() -> int:
    """A port where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("streaming", [True, False])
def test_a_client_that_leaves_frees_the_engine_and_no_other_call(streaming: bool) -> None:
    async def main() -> None:
        async def respond(request: EngineRequest) -> None:
            if request.json.get("who") == "other":
                await proceed.wait()
                await request.answer(b"{}")
                return
            if streaming:
                await request.begin_stream()
                await request.chunk(TOKEN)
            await request.gone.wait()

        proceed = asyncio.Event()
        async with engine(respond) as vllm, gateway(vllm) as joulegate:
            other = asyncio.ensure_future(joulegate.post("/v1/completions", {"model": "m", "who": "other"}))
            client = await joulegate.connect()
            await client.send(post("/v1/chat/completions", {**CHAT, "stream": streaming}))
            await until(lambda: len(vllm.requests) == 2, "both calls at the engine")
            if streaming:
                await client.head()
                await client.chunk()
            client.close()
            leaver = next(request for request in vllm.requests if request.json.get("who") != "other")
            await asyncio.wait_for(leaver.gone.wait(), 5)
            proceed.set()
            assert (await other).status == 200

    run(main)


def test_a_queued_call_that_is_cancelled_never_reaches_the_engine() -> None:
    """The opposite fault: cancelling a queued call must not kill the running one."""

    async def main() -> None:
        async def respond(request: EngineRequest) -> None:
            await proceed.wait()
            await request.answer(b"{}")

        proceed = asyncio.Event()
        fifo = {"name": "fifo", "max_in_flight": 1}
        async with engine(respond) as vllm, gateway(vllm, policy=fifo) as joulegate:
            running = asyncio.ensure_future(joulegate.post("/v1/completions", {"model": "m", "n": 1}))
            await until(lambda: len(vllm.requests) == 1, "the first call runs")
            client = await joulegate.connect()
            await client.send(post("/v1/completions", {"model": "m", "n": 2}))
            await until(lambda: joulegate.app.state()["calls_held"] == 1, "the second call is held")
            client.abort()
            await until(lambda: joulegate.app.state()["calls_held"] == 0, "the second call is forgotten")
            proceed.set()
            assert (await running).status == 200
            assert len(vllm.requests) == 1
            metrics = joulegate.app.metrics_text()
            assert 'outcome="client_gone"' in metrics

    run(main)


def test_a_connect_error_is_retried_on_another_engine_and_one_dead_engine_slows_nobody() -> None:
    async def main() -> None:
        async def respond(request: EngineRequest) -> None:
            await request.answer(b"{}")

        dead = f"http://127.0.0.1:{closed_port()}"
        async with engine(respond) as vllm, gateway(dead, vllm) as joulegate:
            for _ in range(10):
                assert (await joulegate.post("/v1/chat/completions", CHAT)).status == 200
            assert len(vllm.requests) == 10

    run(main)


def test_all_engines_dead_is_a_503_with_a_way_out() -> None:
    async def main() -> None:
        async with gateway(f"http://127.0.0.1:{closed_port()}") as joulegate:
            (state,) = joulegate.app.gateway.scheduler.engines.values()
            await until(lambda: state.breaker.state == "open", "the breaker opens")
            said = await joulegate.post("/v1/chat/completions", CHAT)
            said.assert_error(503, "no_engine")
            assert int(said.header("retry-after") or "") >= 1
            ready, reasons = joulegate.app.ready()
            assert not ready
            assert "refused" in reasons[0]

    run(main)


@pytest.mark.parametrize("times", [1, 2])
def test_a_reset_before_the_first_byte_is_retried_once(times: int) -> None:
    async def main() -> None:
        async def respond(request: EngineRequest) -> None:
            if len(vllm.requests) <= times:
                request.reset()
                return
            await request.answer(b'{"fine":true}')

        async with engine(respond) as vllm, gateway(vllm) as joulegate:
            said = await joulegate.post("/v1/chat/completions", CHAT)
            assert len(vllm.requests) == 2
            assert len({request.body for request in vllm.requests}) == 1
            if times == 1:
                assert said.json == {"fine": True}
            else:
                said.assert_error(502, "engine_reset")

    run(main)


def test_a_reset_mid_stream_is_an_error_event_and_never_a_false_end() -> None:
    async def main() -> None:
        async def respond(request: EngineRequest) -> None:
            if not request.json.get("stream"):
                await request.answer(b"{}")
                return
            await request.begin_stream()
            await request.chunk(TOKEN)
            await request.send(b"ff\r\ndata: {cut off")
            await seen.wait()
            request.reset()

        seen = asyncio.Event()
        async with engine(respond) as vllm, gateway(vllm) as joulegate:
            client = await joulegate.connect()
            await client.send(post("/v1/chat/completions", {**CHAT, "stream": True}))
            await client.head()
            assert await client.chunk() == TOKEN
            seen.set()
            event = await client.chunk()
            error = json.loads(event.removeprefix(b"data: "))["error"]
            assert (error["code"], event[-2:]) == ("engine_reset", b"\n\n")
            assert await client.chunk() == b"", "the answer's framing is whole, and its connection stays"
            assert len(vllm.requests) == 1, "an answer that began is never retried"
            await client.send(post("/v1/chat/completions", CHAT))
            assert (await client.answer()).status == 200

    run(main)


def test_a_plain_answer_cut_short_is_not_made_to_look_whole() -> None:
    async def main() -> None:
        async def respond(request: EngineRequest) -> None:
            await request.send(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{")
            await request.writer.drain()
            await seen.wait()
            request.reset()

        seen = asyncio.Event()
        async with engine(respond) as vllm, gateway(vllm) as joulegate:
            client = await joulegate.connect()
            await client.send(post("/v1/chat/completions", CHAT))
            assert (await client.head()).status == 200
            seen.set()
            assert await client.closed() in (b"{", b"")

    run(main)


@pytest.mark.parametrize(
    "answer",
    [
        b"this is not HTTP\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 300_000,
    ],
)
def test_an_answer_that_is_not_http_is_a_502(answer: bytes) -> None:
    async def main() -> None:
        async def respond(request: EngineRequest) -> None:
            await request.send(answer)
            await request.gone.wait()

        async with engine(respond) as vllm, gateway(vllm) as joulegate:
            (await joulegate.post("/v1/chat/completions", CHAT)).assert_error(502, "engine_protocol")

    run(main)


def test_bytes_after_an_answer_never_reach_the_next_client() -> None:
    async def main() -> None:
        async def respond(request: EngineRequest) -> None:
            stray = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nwrong" if len(vllm.requests) == 1 else b""
            await request.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}" + stray)

        async with engine(respond) as vllm, gateway(vllm) as joulegate:
            client = await joulegate.connect()
            for _ in range(3):
                await client.send(post("/v1/chat/completions", CHAT))
                said = await client.answer()
                assert said.body == b"{}" or said.status == 502

    run(main)


@pytest.mark.parametrize(
    ("timeouts", "reason", "begins"),
    [
        ({"first_byte_seconds": 0.2}, "first_byte_timeout", False),
        ({"total_seconds": 0.2}, "total_timeout", False),
        ({"idle_seconds": 0.2}, "idle_timeout", True),
        ({"total_seconds": 0.2}, "total_timeout", True),
    ],
)
def test_each_timeout_has_its_own_code(timeouts: dict[str, float], reason: str, begins: bool) -> None:
    async def main() -> None:
        async def respond(request: EngineRequest) -> None:
            if begins:
                await request.begin_stream()
                await request.chunk(TOKEN)
            await request.gone.wait()

        async with engine(respond) as vllm, gateway(vllm, timeouts=timeouts) as joulegate:
            said = await joulegate.post("/v1/chat/completions", {**CHAT, "stream": begins})
            if begins:
                error = json.loads(said.body.removeprefix(TOKEN).removeprefix(b"data: "))["error"]
                assert error["code"] == reason
            else:
                said.assert_error(504, reason)
            await asyncio.wait_for(vllm.requests[0].gone.wait(), 5)

    run(main)


def test_a_connect_timeout_has_its_own_code() -> None:
    async def main() -> None:
        # A socket that listens and never accepts, its queue full: connecting hangs.
        with socket.socket() as deaf:
            deaf.bind(("127.0.0.1", 0))
            deaf.listen(0)
            fill = [socket.socket() for _ in range(4)]
            for one in fill:
                one.setblocking(False)
                one.connect_ex(deaf.getsockname())
            url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
            health = {"failures_to_open": 1000, "probe_seconds": 1000}
            async with gateway(url, timeouts={"connect_seconds": 0.2}, health=health) as joulegate:
                (await joulegate.post("/v1/chat/completions", CHAT)).assert_error(502, "connect_timeout")
            for one in fill:
                one.close()

    run(main)


def test_a_client_that_stops_reading_is_cut_off() -> None:
    async def main() -> None:
        async def respond(request: EngineRequest) -> None:
            await request.begin_stream("application/octet-stream")
            while not request.gone.is_set():
                await request.chunk(bytes(65536))

        async with engine(respond) as vllm, gateway(vllm, timeouts={"idle_seconds": 0.3}) as joulegate:
            client = await joulegate.connect()
            await client.send(b"GET /endless HTTP/1.1\r\nhost: x\r\n\r\n")
            await client.head()
            await asyncio.wait_for(vllm.requests[0].gone.wait(), 10)
            assert 'reason="client_stalled"' in joulegate.app.metrics_text()

    run(main)


def test_a_stale_keep_alive_connection_costs_nobody_a_call() -> None:
    """The engine closes an idle connection just as it is used again (uvicorn does so after 5 s)."""

    async def main() -> None:
        async def respond(request: EngineRequest) -> None:
            await request.answer(b"{}")
            if len(vllm.requests) % 2:
                request.writer.close()  # without having said so

        async with engine(respond) as vllm, gateway(vllm) as joulegate:
            client = await joulegate.connect()
            for _ in range(10):
                await client.send(post("/v1/chat/completions", CHAT))
                assert (await client.answer()).status == 200

    run(main)


def test_a_killed_engine_comes_back_without_a_restart_of_the_gateway() -> None:
    async def main() -> None:
        async def respond(request: EngineRequest) -> None:
            await request.answer(b"{}")

        async with engine(respond) as vllm, gateway(vllm) as joulegate:
            assert (await joulegate.post("/v1/chat/completions", CHAT)).status == 200
            await vllm.kill()
            (state,) = joulegate.app.gateway.scheduler.engines.values()
            await until(lambda: state.breaker.state == "open", "the breaker opens")
            (await joulegate.post("/v1/chat/completions", CHAT)).assert_error(503, "no_engine")
            await vllm.start()
            await until(lambda: joulegate.app.ready()[0], "the engine is back")
            assert (await joulegate.post("/v1/chat/completions", CHAT)).status == 200

    run(main)


def test_an_unhealthy_engine_that_still_listens_is_left_out() -> None:
    async def main() -> None:
        async def respond(request: EngineRequest) -> None:
            await request.answer(b"{}")

        async with engine(respond) as sick, engine(respond) as well, gateway(sick, well) as joulegate:
            sick.healthy = False
            state = joulegate.app.gateway.scheduler.engines[f"127.0.0.1:{sick.port}"]
            await until(lambda: state.breaker.state == "open", "the breaker opens")
            before = len(sick.requests)
            for _ in range(4):
                assert (await joulegate.post("/v1/chat/completions", CHAT)).status == 200
            assert len(sick.requests) == before

    run(main)


def test_a_full_queue_says_when_to_come_back() -> None:
    async def main() -> None:
        async def respond(request: EngineRequest) -> None:
            await proceed.wait()
            await request.answer(b"{}")

        proceed = asyncio.Event()
        fifo = {"name": "fifo", "max_in_flight": 1}
        async with engine(respond) as vllm, gateway(vllm, policy=fifo, limits={"queue_calls": 1}) as joulegate:
            calls = [asyncio.ensure_future(joulegate.post("/v1/chat/completions", CHAT)) for _ in range(2)]
            await until(lambda: joulegate.app.state()["calls_held"] == 1, "one call is held")
            said = await joulegate.post("/v1/chat/completions", CHAT)
            said.assert_error(503, "queue_full")
            assert said.header("retry-after") == "1"
            proceed.set()
            assert [(await call).status for call in calls] == [200, 200]
            assert len(vllm.requests) == 2

    run(main)
