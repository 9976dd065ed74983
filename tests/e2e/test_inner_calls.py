"""Calls that the gateway makes itself: the same way as a client's, without a socket."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from proxy.errors import RequestFault
from proxy.identity import Identity
from tests.e2e.harness import RunningGateway, engine, gateway, run, until

if TYPE_CHECKING:
    from proxy.inner import InnerAnswer, InnerCall
    from tests.e2e.harness import EngineRequest

BODY = b'{"model": "m", "messages": []}'
PLACE = Identity("w-1", "joulegate-native", "n")


class Started:
    """One inner call and what it says."""

    def __init__(self, running: RunningGateway, body: bytes = BODY) -> None:
        self.pieces: list[bytes] = []
        self.done: asyncio.Future[InnerAnswer] = asyncio.get_running_loop().create_future()
        self.call: InnerCall = running.app.gateway.inner.start(
            "-", "/v1/chat/completions", body, PLACE, on_done=self.done.set_result, on_body=self.pieces.append
        )


async def plain(request: EngineRequest) -> None:
    await request.answer(b'{"id": "x", "usage": {"prompt_tokens": 3, "completion_tokens": 2}}')


async def stream(request: EngineRequest) -> None:
    await request.begin_stream()
    await request.chunk(b'data: {"n": 1}\n\n')
    await request.chunk(b"data: [DONE]\n\n")
    await request.end_stream()


def test_an_answer_and_its_pieces() -> None:
    async def main() -> None:
        async with engine(plain) as upstream, gateway(upstream) as running:
            started = Started(running)
            answer = await started.done
            assert answer.ok and answer.status == 200 and answer.fault_reason is None
            assert b"".join(started.pieces).startswith(b'{"id": "x"')
            assert answer.call is not None and answer.call.output_tokens == 2
            assert answer.headers[b"x-workflow-id"] == b"w-1"
            request = upstream.requests[0]
            assert request.body == BODY and request.header("x-request-id") == answer.call.request_id
            upstream.answer = stream
            started = Started(running)
            assert (await started.done).ok
            assert b"".join(started.pieces) == b'data: {"n": 1}\n\ndata: [DONE]\n\n'

    run(main)


def test_errors_say_what_happened() -> None:
    async def main() -> None:
        async def refuses(request: EngineRequest) -> None:
            await request.answer(b'{"error": {"message": "too long"}}', status="400 Bad Request")

        async def breaks_off(request: EngineRequest) -> None:
            await request.send(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{")
            request.reset()

        async with engine(refuses) as upstream, gateway(upstream) as running:
            answer = await Started(running).done
            assert (answer.status, answer.fault_reason, answer.ok) == (400, "engine_4xx", False)
            assert answer.body == b'{"error": {"message": "too long"}}'
            upstream.answer = breaks_off
            answer = await Started(running).done
            assert (answer.ok, answer.fault_reason) == (False, "engine_reset")
            answer = await Started(running, b'{"model": 7}').done
            assert (answer.status, answer.fault_reason) == (400, "invalid_model")

    run(main)


def test_cancelling_frees_the_engine() -> None:
    async def main() -> None:
        async def waits(request: EngineRequest) -> None:
            await request.gone.wait()

        async with engine(waits) as upstream, gateway(upstream) as running:
            started = Started(running)
            await until(lambda: bool(upstream.requests), "the call at the engine")
            started.call.cancel()
            await upstream.requests[0].gone.wait()
            await until(running.idle, "nothing left")
            assert not started.done.done() and not running.app.gateway.inner.running

    run(main)


def test_bodies_count_as_clients_do() -> None:
    async def main() -> None:
        limits = {"body_bytes": 100, "buffered_bytes": 120, "inner_answer_bytes": 10}

        async def waits(request: EngineRequest) -> None:
            await request.answer(b'"' + b"x" * 100 + b'"')

        async with engine(waits) as upstream, gateway(upstream, limits=limits) as running:
            with pytest.raises(RequestFault) as refused:
                Started(running, b'{"a":"' + b"x" * 100 + b'"}')
            assert refused.value.status == 413
            done: asyncio.Future[InnerAnswer] = asyncio.get_running_loop().create_future()
            inner = running.app.gateway.inner
            inner.start("-", "/v1/completions", b'{"a":"' + b"x" * 80 + b'"}', PLACE, on_done=done.set_result)
            with pytest.raises(RequestFault) as refused:
                inner.start("-", "/v1/completions", b'{"a":"' + b"x" * 80 + b'"}', PLACE, on_done=done.set_result)
            assert (refused.value.status, refused.value.reason) == (503, "buffers_full")
            answer = await done
            assert (answer.ok, answer.fault_reason, answer.body) == (False, "answer_too_large", b"")

    run(main)
