"""What a card and an engine say of themselves while they work: NVML's counters and /metrics, sampled with their times.

Reads and changes nothing of the card.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from typing import TYPE_CHECKING, Any, Protocol

import aiohttp

from bench.programs import BenchError

if TYPE_CHECKING:
    from bench.twin.wire import Wire

CARD_COLUMNS = ("at_s", "joules", "power_w", "instant_w", "sm_mhz", "throttle", "celsius")
INSTANT_WATTS_FIELD = 186  # NVML_FI_DEV_POWER_INSTANT
METRICS = {
    "iterations": "vllm:iteration_tokens_total_count",
    "iteration_tokens": "vllm:iteration_tokens_total_sum",
    "generation_tokens": "vllm:generation_tokens_total",
    "prompt_tokens": "vllm:prompt_tokens_total",
    "prefix_hits": "vllm:prefix_cache_hits_total",
    "running": "vllm:num_requests_running",
    "waiting": "vllm:num_requests_waiting",
    "kv_usage": "vllm:kv_cache_usage_perc",
    "preemptions": "vllm:num_preemptions_total",
    "ttft_count": "vllm:time_to_first_token_seconds_count",
    "ttft_sum": "vllm:time_to_first_token_seconds_sum",
    "queue_sum": "vllm:request_queue_time_seconds_sum",
    "prefill_sum": "vllm:request_prefill_time_seconds_sum",
    "decode_sum": "vllm:request_decode_time_seconds_sum",
    "inference_sum": "vllm:request_inference_time_seconds_sum",
    "itl_sum": "vllm:inter_token_latency_seconds_sum",
    "itl_count": "vllm:inter_token_latency_seconds_count",
}
"""Short name → vLLM's; summed over labels."""
_SAMPLE = re.compile(r"^([a-zA-Z_:]+)(?:\{([^}]*)\})? ([^ ]+)$", re.MULTILINE)


class Card(Protocol):
    """A source of energy and power readings."""

    about: dict[str, Any]

    async def joules(self) -> float:
        """Since some start."""

    async def sample(self) -> list[float | None]:
        """All of CARD_COLUMNS but the time."""


class NvmlCard:
    """NVML's counters of one card, read off the event loop because a read takes milliseconds."""

    def __init__(self, index: int) -> None:
        import pynvml

        self._nvml = pynvml
        try:
            pynvml.nvmlInit()
            self._handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        except pynvml.NVMLError as error:
            raise BenchError(f"--gpu {index}: NVML says {error}") from None
        self.about = {
            "name": pynvml.nvmlDeviceGetName(self._handle),
            "driver": pynvml.nvmlSystemGetDriverVersion(),
            "enforced_limit_watts": pynvml.nvmlDeviceGetEnforcedPowerLimit(self._handle) / 1e3,
        }

    async def joules(self) -> float:
        return await asyncio.to_thread(self._joules)

    async def sample(self) -> list[float | None]:
        return await asyncio.to_thread(self._sample)

    def _joules(self) -> float:
        return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1e3

    def _sample(self) -> list[float | None]:
        nvml, handle = self._nvml, self._handle

        def instant() -> float:
            value = nvml.nvmlDeviceGetFieldValues(handle, [INSTANT_WATTS_FIELD])[0]
            if value.nvmlReturn:
                raise nvml.NVMLError(value.nvmlReturn)
            return float(value.value.uiVal) / 1e3

        reads = (
            self._joules,
            lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
            instant,
            lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle),
            lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
        )
        found: list[float | None] = []
        for read in reads:
            try:
                found.append(round(float(read()), 3))
            except (nvml.NVMLError, AttributeError, IndexError):
                found.append(None)  # this card or this NVML does not tell
        return found


class TwinCard:
    """The simulated card of `joulegate twin`, so that a measurement can be rehearsed without a GPU."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url
        self.about: dict[str, Any] = {"name": "joulegate twin (simulated)"}

    async def joules(self) -> float:
        return float((await self._read())["energy_joules"])

    async def sample(self) -> list[float | None]:
        power = await self._read()
        names = ("energy_joules", "power_watts", "instant_power_watts", "sm_clock_mhz")
        return [*(power[name] for name in names), float(len(power["throttle_reasons"])), None]

    async def _read(self) -> dict[str, Any]:
        async with self._session.get(f"{self._url}/power") as answer:
            found: dict[str, Any] = await answer.json()
            return found


class Watch:
    """While it is entered: the card and the engine's metrics, read again and again. `document` is what was seen."""

    def __init__(self, wire: Wire, card: Card, card_seconds: float, metrics_seconds: float) -> None:
        self._wire = wire
        self._card = card
        self._periods = (card_seconds, metrics_seconds)
        self._card_rows: list[list[float | None]] = []
        self._metrics_rows: list[list[float]] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._started_at = 0.0

    async def __aenter__(self) -> Watch:
        self._started_at = self._wire.loop.time()
        await self._read_metrics()
        readers = (self._read_card, self._read_metrics)
        self._tasks = [
            asyncio.create_task(self._again(read, period)) for read, period in zip(readers, self._periods, strict=True)
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await self._read_metrics()
        await self._read_card()

    def document(self) -> dict[str, Any]:
        """Columns and rows; times are seconds since `started_at`, which is the event loop's."""
        return {
            "started_at": self._started_at,
            "card": {"columns": CARD_COLUMNS, "rows": self._card_rows},
            "metrics": {"columns": ["at_s", *METRICS], "rows": self._metrics_rows},
        }

    async def _again(self, read: Any, period: float) -> None:
        while True:
            started_at = self._wire.loop.time()
            await read()
            await asyncio.sleep(max(0.0, started_at + period - self._wire.loop.time()))

    async def _read_card(self) -> None:
        sample = await self._card.sample()
        self._card_rows.append([round(self._wire.loop.time() - self._started_at, 4), *sample])

    async def _read_metrics(self) -> None:
        at = self._wire.loop.time() - self._started_at
        try:
            values = await read_metrics(self._wire)
        except aiohttp.ClientError:
            return  # a connection that the engine closed: the next reading will do
        self._metrics_rows.append([round(at, 4), *(values[name] for name in METRICS)])


async def read_metrics(wire: Wire) -> dict[str, float]:
    """METRICS, now."""
    async with wire.session.get(f"{wire.url}/metrics") as answer:
        text = await answer.text()
    wanted = {name: short for short, name in METRICS.items()}
    found = dict.fromkeys(METRICS, 0.0)
    for name, _, value in _SAMPLE.findall(text):
        if name in wanted:
            found[wanted[name]] += float(value)
    return found


def unix_seconds() -> float:
    """For the head of a file."""
    return time.time()
