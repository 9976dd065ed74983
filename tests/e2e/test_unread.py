"""Clients that do not read what they asked for: they keep nobody else waiting, and no place for ever."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from tests.e2e.harness import EngineRequest, RunningGateway, engine, gateway, post, run, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from proxy.http.connection import ClientConnection

STEP_BYTES = 4096
LIMIT_BYTES = 4 * STEP_BYTES
CHAT = {"model": "m", "messages": []}


@asynccontextmanager
async def unread(joulegate: RunningGateway, request: bytes) -> AsyncIterator[tuple[socket.socket, ClientConnection]]:
    """A client that sends a request and reads nothing of its own accord, and its connection in the gateway."""
    before = set(joulegate.app.gateway.server.connections)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, ("127.0.0.1", joulegate.port))
        await until(lambda: len(joulegate.app.gateway.server.connections) > len(before), "it is connected")
        (connection,) = set(joulegate.app.gateway.server.connections) - before
        assert connection.transport is not None
        connection.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        await loop.sock_sendall(client, request)
        yield client, connection


def unsent(connection: ClientConnection) -> int:
    """Bytes that the kernel does not take any more, since the client does not read."""
    return connection.transport.get_write_buffer_size() if connection.transport is not None else 0


async def stuff(joulegate: RunningGateway, connection: ClientConnection, request: EngineRequest) -> None:
    """Answer until the kernel's buffers are full and something stays with the gateway, below its limit."""
    (exchange,) = joulegate.app.gateway.exchanges.values()
    await request.begin_stream("application/octet-stream")
    for steps in range(1, 10_000):
        await request.chunk(bytes(STEP_BYTES))
        await until(lambda steps=steps: exchange.call.response_bytes == steps * STEP_BYTES, "relayed")  # type: ignore[misc]
        await asyncio.sleep(0)  # the kernel is given what was written at the end of the loop's round
        await asyncio.sleep(0)
        if unsent(connection):
            break
    assert not connection.write_paused


def test_an_engine_connection_that_was_paused_by_its_last_read_serves_the_next_call() -> None:
    async def main() -> None:
        async def respond(request: EngineRequest) -> None:
            if request.target != "/unread":
                await request.answer(b"{}")
                return
            await stuff(joulegate, connection, request)
            # The rest in one segment: the read that ends the answer is the one that goes over the limit.
            await request.send(b"%x\r\n%b\r\n0\r\n\r\n" % (2 * LIMIT_BYTES, bytes(2 * LIMIT_BYTES)))

        tables = {
            "limits": {"response_buffer_bytes": LIMIT_BYTES},
            "health": {"probe_seconds": 1000},
            "timeouts": {"engine_keep_alive_seconds": 1000, "first_byte_seconds": 2},
        }
        async with (
            engine(respond) as vllm,
            gateway(vllm, **tables) as joulegate,
            unread(joulegate, b"GET /unread HTTP/1.1\r\nhost: x\r\n\r\n") as (_, connection),
        ):
            await until(lambda: len(vllm.requests) == 1, "the call is at the engine")
            await until(lambda: not joulegate.app.gateway.exchanges, "its answer is whole")
            assert connection.write_paused, "its last read was too much"
            assert vllm.connections == 1
            said = await joulegate.post("/v1/chat/completions", CHAT)
            assert (said.status, said.body) == (200, b"{}")
            assert vllm.connections == 1, "over the same connection"

    run(main)


def test_a_client_that_does_not_read_its_last_answer_is_left_in_the_end() -> None:
    async def main() -> None:
        async def respond(request: EngineRequest) -> None:
            await stuff(joulegate, connection, request)
            await request.end_stream()

        async with (
            engine(respond) as vllm,
            gateway(vllm, timeouts={"idle_seconds": 0.3}) as joulegate,
            unread(joulegate, b"GET /x HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n") as (_, connection),
        ):
            await until(lambda: len(vllm.requests) == 1, "the call is at the engine")
            await until(lambda: not joulegate.app.gateway.exchanges, "its answer is whole")
            await until(lambda: not joulegate.app.gateway.server.connections, "its connection is broken off")

    run(main)


@pytest.mark.parametrize("last", [b"connection: close\r\n", b""])
def test_a_client_that_reads_its_last_answer_slowly_gets_all_of_it(last: bytes) -> None:
    """Whether it said that it was the last, or the connection has been idle for too long since."""

    async def main() -> None:
        async def respond(request: EngineRequest) -> None:
            await stuff(joulegate, connection, request)
            await request.chunk(bytes(200_000))
            await request.end_stream()

        async with (
            engine(respond) as vllm,
            gateway(vllm, timeouts={"idle_seconds": 1000, "keep_alive_seconds": 1000}) as joulegate,
            unread(joulegate, b"GET /x HTTP/1.1\r\nhost: x\r\n%b\r\n" % last) as (client, connection),
        ):
            loop, server = asyncio.get_running_loop(), joulegate.app.gateway.server
            await until(lambda: len(vllm.requests) == 1, "the call is at the engine")
            await until(lambda: not joulegate.app.gateway.exchanges, "its answer is whole")
            now = server.time()
            if not last:
                connection.check_time(now + 1001, server.timeouts)
            left, got = unsent(connection), b""
            while unsent(connection) >= left > 0:
                got += await loop.sock_recv(client, 1024)
            connection.check_time(now + 999, server.timeouts)  # it has read something: its time begins again
            connection.check_time(now + 1998, server.timeouts)
            while data := await loop.sock_recv(client, 65536):
                got += data
            assert got.endswith(b"\r\n0\r\n\r\n")

    run(main)


def test_a_client_that_stopped_reading_is_not_kept_by_calls_of_its_own_that_follow() -> None:
    async def main() -> None:
        async def respond(request: EngineRequest) -> None:
            await request.begin_stream("application/octet-stream")
            while not request.gone.is_set():
                await request.chunk(bytes(65536))

        async with (
            engine(respond) as vllm,
            gateway(vllm, timeouts={"idle_seconds": 0.3}) as joulegate,
            unread(joulegate, post("/v1/chat/completions", CHAT) * 2),
        ):
            await until(lambda: len(vllm.requests) == 1, "the first call is at the engine")
            await until(lambda: not joulegate.app.gateway.server.connections, "its connection is broken off")
            await until(joulegate.idle, "no call is left")

    run(main)
