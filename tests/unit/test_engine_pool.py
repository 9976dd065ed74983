"""Opening connections to an engine: whatever goes wrong, who waits hears of it, with a word for it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
import uvloop

from backends.vllm.fetch import FetchFailed, Load, fetch, parse_load
from backends.vllm.pool import EnginePool

if TYPE_CHECKING:
    from backends.vllm.connection import EngineConnection


class Waiter:
    """Waits for a connection, and breaks when it comes if `breaks`."""

    def __init__(self, *, breaks: bool = False) -> None:
        self.breaks = breaks
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def opened(self, connection: EngineConnection) -> None:
        if self.breaks:
            raise ZeroDivisionError
        self.ended.set_result("opened")
        connection.abort()

    def open_failed(self, reason: str, detail: str) -> None:
        assert detail
        self.ended.set_result(reason)


async def opened(pool: EnginePool, *, breaks: bool = False) -> str:
    """How opening a connection ends."""
    waiter = Waiter(breaks=breaks)
    task = pool.open(waiter)
    async with asyncio.timeout(20):
        ended = await waiter.ended
    await asyncio.wait([task])
    error = task.exception()
    assert isinstance(error, ZeroDivisionError) if breaks else error is None
    return ended


def test_each_way_not_to_connect_has_its_word() -> None:
    async def main() -> None:
        server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        for url, reason in (
            (f"http://127.0.0.1:{port}", "opened"),
            (f"https://127.0.0.1:{port}", "connect_failed"),
            (f"http://a..b:{port}", "bad_host_name"),
            (f"http://{'a' * 64}.example:{port}", "bad_host_name"),
        ):
            pool = EnginePool(url, connect_seconds=10, idle_seconds=1)
            assert await opened(pool) == reason, url
            pool.close()
        pool = EnginePool(f"http://127.0.0.1:{port}", connect_seconds=10, idle_seconds=1)
        assert await opened(pool, breaks=True) == "gateway_fault"
        pool.tls = "nonsense"  # type: ignore[assignment]
        assert await opened(pool) == "gateway_fault"
        pool.close()
        server.close()
        await server.wait_closed()
        pool = EnginePool(f"http://127.0.0.1:{port}", connect_seconds=10, idle_seconds=1)
        assert await opened(pool) == "connect_refused"
        pool.close()

    uvloop.run(main())


def test_a_probe_tells_a_fault_of_the_engines_from_one_of_ours() -> None:
    async def main() -> None:
        pool = EnginePool("http://a..b:1", connect_seconds=10, idle_seconds=1)
        with pytest.raises(FetchFailed, match=r"a\.\.b") as failed:
            await fetch(pool, "/health", b"", 10)
        assert failed.value.engine_fault
        server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
        pool = EnginePool(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", connect_seconds=10, idle_seconds=1)
        pool.tls = "nonsense"  # type: ignore[assignment]
        with pytest.raises(FetchFailed) as failed:
            await fetch(pool, "/health", b"", 10)
        assert not failed.value.engine_fault
        server.close()

    uvloop.run(main())


@pytest.mark.parametrize(
    ("metrics", "load"),
    [
        (b"", Load(None, None, None)),
        (b"vllm:num_requests_running NaN\n", Load(None, None, None)),
        (b'vllm:num_requests_running{engine="0"} +Inf\nvllm:num_requests_waiting 2\n', Load(None, 2, None)),
        (b'vllm:num_requests_running 1.0\nvllm:num_requests_running{a="1"} x\n', Load(1, None, None)),
        (b"vllm:kv_cache_usage_perc nan\nvllm:kv_cache_usage_perc 0.5\n", Load(None, None, 0.5)),
        (b"vllm:num_requests_waiting 1e400\nvllm:num_requests_waiting \xff\n", Load(None, None, None)),
    ],
)
def test_gauges_that_are_no_numbers_are_passed_over(metrics: bytes, load: Load) -> None:
    assert parse_load(metrics) == load
