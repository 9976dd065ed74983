"""Small requests of the gateway's own to an engine: is it well, which models has it, how busy is it?"""

from __future__ import annotations

import asyncio
import math
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from backends.vllm.pool import NOT_THE_ENGINES
from scheduler.energy.window import Counters

if TYPE_CHECKING:
    from backends.vllm.connection import EngineConnection
    from backends.vllm.pool import EnginePool

ANSWER_BYTES_MAX = 8 << 20
"""vLLM's /metrics has about 65 KB."""


class FetchFailed(Exception):
    """No answer; the message says why. `engine_fault`: it says something about the engine, not about this process."""

    def __init__(self, detail: str, *, engine_fault: bool = True) -> None:
        super().__init__(detail)
        self.engine_fault = engine_fault


class _Fetch:
    """Collects one answer (the pool's Opening and the connection's Answer)."""

    def __init__(self, request: bytes) -> None:
        self.done: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()
        self.connection: EngineConnection | None = None
        self._request = request
        self._parts: list[bytes] = []
        self._bytes = 0

    def opened(self, connection: EngineConnection) -> None:
        if self.done.done():  # timed out meanwhile
            connection.abort()
            return
        self.connection = connection
        connection.send(self, self._request, b"")

    def open_failed(self, reason: str, detail: str) -> None:
        self._fail(detail, engine_fault=reason not in NOT_THE_ENGINES)

    def received(self, connection: EngineConnection, body: bytes, ended: bool) -> None:
        self._parts.append(body)
        self._bytes += len(body)
        if self._bytes > ANSWER_BYTES_MAX:
            if not ended:
                connection.abort()
            self._fail(f"the answer is over {ANSWER_BYTES_MAX} bytes")
        elif ended and not self.done.done():
            self.done.set_result((connection.status, b"".join(self._parts)))

    def lost(self, reason: str, detail: str) -> None:
        self._fail(detail)

    def _fail(self, detail: str, *, engine_fault: bool = True) -> None:
        if not self.done.done():
            self.done.set_exception(FetchFailed(detail, engine_fault=engine_fault))


async def fetch(
    pool: EnginePool, path: str, fields: bytes, timeout_seconds: float, method: str = "GET"
) -> tuple[int, bytes]:
    """GET a path of the engine (or POST nothing to it): (status, body). `fields`: further header lines. Raises
    FetchFailed."""
    if method != "GET":
        fields += b"content-length: 0\r\n"
    request = b"%b %b HTTP/1.1\r\nhost: %b\r\nuser-agent: joulegate\r\n%b\r\n" % (
        method.encode("ascii"),
        path.encode("ascii"),
        pool.authority,
        fields,
    )
    collected = _Fetch(request)
    opening = None
    try:
        async with asyncio.timeout(timeout_seconds):
            if (connection := pool.take()) is not None:
                collected.opened(connection)
            else:
                opening = pool.open(collected)
            return await collected.done
    except TimeoutError:
        raise FetchFailed(f"no answer to {method} {path} within {timeout_seconds:g} s") from None
    finally:
        if not collected.done.done() or collected.done.cancelled():
            if opening is not None:
                opening.cancel()
            if collected.connection is not None:
                collected.connection.abort()


class Load(NamedTuple):
    """What vLLM's /metrics says of its load, summed over its engine cores; None = not there."""

    running: int | None
    waiting: int | None
    kv_cache_usage: float | None


_RUNNING = re.compile(rb"^vllm:num_requests_running(?:\{[^\n]*\})? (\S+)", re.MULTILINE)
_WAITING = re.compile(rb"^vllm:num_requests_waiting(?:\{[^\n]*\})? (\S+)", re.MULTILINE)
_KV_USAGE = re.compile(rb"^vllm:(?:kv|gpu)_cache_usage_perc(?:\{[^\n]*\})? (\S+)", re.MULTILINE)


def parse_load(metrics: bytes) -> Load:
    """The gauges of a scrape (Prometheus text). With data parallelism there is one of each per engine core."""
    running, waiting, usage = (_numbers(pattern, metrics) for pattern in (_RUNNING, _WAITING, _KV_USAGE))
    return Load(
        int(sum(running)) if running else None,
        int(sum(waiting)) if waiting else None,
        max(usage) if usage else None,
    )


_COUNTERS = {
    "steps": re.compile(rb"^vllm:iteration_tokens_total_count(?:\{[^\n]*\})? (\S+)", re.MULTILINE),
    "prompt_tokens": re.compile(rb"^vllm:prompt_tokens_total(?:\{[^\n]*\})? (\S+)", re.MULTILINE),
    "cached_tokens": re.compile(rb"^vllm:prompt_tokens_cached_total(?:\{[^\n]*\})? (\S+)", re.MULTILINE),
    "generation_tokens": re.compile(rb"^vllm:generation_tokens_total(?:\{[^\n]*\})? (\S+)", re.MULTILINE),
    "running": _RUNNING,
    "waiting": _WAITING,
}
_CACHE_HITS = re.compile(rb"^vllm:prefix_cache_hits_total(?:\{[^\n]*\})? (\S+)", re.MULTILINE)


def parse_counters(metrics: bytes, at: float) -> Counters:
    """The counters of a scrape at that time, summed over vLLM's engine cores; None = not there."""
    found = {name: numbers for name, pattern in _COUNTERS.items() if (numbers := _numbers(pattern, metrics))}
    if "cached_tokens" not in found and (hits := _numbers(_CACHE_HITS, metrics)):
        found["cached_tokens"] = hits
    return Counters(at, **{name: sum(numbers) for name, numbers in found.items()})


def _numbers(pattern: re.Pattern[bytes], metrics: bytes) -> list[float]:
    """The values that are numbers: a gauge may be NaN, and what an engine writes is no reason to stop watching it."""
    numbers = []
    for value in pattern.findall(metrics):
        try:
            number = float(value)
        except ValueError:
            continue
        if math.isfinite(number):
            numbers.append(number)
    return numbers


def parse_models(body: bytes) -> list[dict[str, Any]] | None:
    """The entries of a /v1/models answer, as they are; None if it is not one."""
    try:
        data = orjson.loads(body)["data"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None
    if not isinstance(data, list):
        return None
    return [entry for entry in data if isinstance(entry, dict) and isinstance(entry.get("id"), str)]
