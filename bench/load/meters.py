"""What draws power while a real engine works? Its cards and this host, read beside the play; reads alone."""

from __future__ import annotations

import asyncio
import contextlib
import time
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from backends.power.device import Unavailable
from backends.power.opening import UnknownGpu, Where, open_device
from backends.power.rapl import RaplZone, zones
from backends.power.sample import Sample, take
from bench.load.engine import read_counters
from bench.load.playing import EnergyAbout
from bench.programs import BenchError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import aiohttp

    from backends.power.device import PowerDevice
    from bench.load.engine import Engine

READ_SECONDS = 1.0
"""NVML's counter moves every 100 ms: shorter windows would be of little use."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Reading(NamedTuple):
    """All meters and counters at one time. None: not known."""

    at: float
    gpu_joules: float | None
    cpu_joules: float | None
    dram_joules: float | None
    limit_watts: float | None
    sm_clock_mhz: float | None
    throttled: bool | None
    counters: dict[str, float]


class Meters:
    """Of one engine, for a whole command."""

    def __init__(self, session: aiohttp.ClientSession, engine: Engine, names: Sequence[str]) -> None:
        """BenchError for a name that means no card."""
        self._session = session
        self._engine = engine
        self._cards: dict[str, PowerDevice] = {}
        self._times = 1
        self._zones: list[RaplZone] = []
        source, detail = self._open(names)
        cpu = dram = "unavailable"
        here = urlsplit(engine.url).hostname in LOOPBACK and engine.twin_cards is None
        if here:
            try:
                self._zones = zones()
                cpu = "measured" if any(not zone.is_dram for zone in self._zones) else cpu
                dram = "measured" if any(zone.is_dram for zone in self._zones) else dram
            except Unavailable as unavailable:
                detail += f"; {unavailable}"
        self.energy = EnergyAbout(source, cpu, dram, detail)

    def _open(self, names: Sequence[str]) -> tuple[str, str]:
        """(source, in words which cards and why)."""
        engine, how = self._engine, "as named by --gpu"
        if not names and engine.twin_cards is not None:
            names, how, self._times = [f"twin:{engine.url}"], "the twin's own meter", engine.twin_cards
        elif not names and urlsplit(engine.url).hostname in LOOPBACK:
            with contextlib.suppress(Unavailable, ImportError):
                from backends.power.nvml import uuids

                if len(found := list(uuids())) == 1:
                    names, how = found, "this host's one GPU"
        if not names:
            return "unavailable", "no card is known to be the engine's: name it with --gpu"
        for name in names:
            try:
                self._cards[name] = open_device(name, Where())
            except UnknownGpu as error:
                raise BenchError(f"--gpu {error}") from None
        samples = [take(name, card) for name, card in self._cards.items()]
        if bad := [sample for sample in samples if sample.energy_joules is None]:
            why = bad[0].detail or bad[0].missing.get("energy_joules") or bad[0].state
            return "unavailable", f"{bad[0].device} has no energy counter: {why}"
        return samples[0].source, f"{', '.join(card.name for card in self._cards.values())}, {how}"

    async def read(self) -> Reading:
        """Now; the event loop goes on meanwhile."""
        at = monotonic()
        counters, (samples, host) = await asyncio.gather(
            read_counters(self._session, self._engine.url, self._engine.headers), asyncio.to_thread(self._take)
        )
        if samples:
            at = max(sample.at_seconds for sample in samples)
        limits = [sample.limits.enforced_watts if sample.limits is not None else None for sample in samples]
        clocks = [sample.sm_clock_mhz for sample in samples]
        known_clocks = [clock for clock in clocks if clock is not None]
        binding = [sample.binding for sample in samples]
        return Reading(
            at,
            self._sum([sample.energy_joules for sample in samples]),
            *host,
            self._sum(limits),
            min(known_clocks) if known_clocks else None,
            None if not binding or all(one is None for one in binding) else any(binding),
            counters,
        )

    def _take(self) -> tuple[list[Sample], tuple[float | None, float | None]]:
        host: dict[bool, float | None] = {}
        for dram in (False, True):
            values = []
            for zone in self._zones:
                if zone.is_dram is dram:
                    try:
                        values.append(zone.energy_joules())
                    except Unavailable:
                        values = []
                        break
            host[dram] = sum(values) if values else None
        return [take(name, card) for name, card in self._cards.items()], (host[False], host[True])

    def _sum(self, values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return self._times * sum(known) if known and len(known) == len(values) else None

    async def idle_watts(self, seconds: float) -> float | None:
        """With nothing running, over so long. None: unknown."""
        before = await self.read()
        await asyncio.sleep(seconds)
        after = await self.read()
        joules = _difference(before.gpu_joules, after.gpu_joules)
        return None if joules is None else joules / (after.at - before.at)


class Watch:
    """While it is entered, meters are read; `windows` are rows of a result, times since `began`."""

    def __init__(self, meters: Meters) -> None:
        self._meters = meters
        self._readings: list[Reading] = []
        self._task: asyncio.Task[None] | None = None
        self.began = 0.0
        self.started_unix_seconds = 0.0

    async def __aenter__(self) -> Watch:
        self._readings = [await self._meters.read()]
        self.began, self.started_unix_seconds = monotonic(), time.time()
        self._task = asyncio.create_task(self._again())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._readings.append(await self._meters.read())

    async def _again(self) -> None:
        while True:
            await asyncio.sleep(READ_SECONDS)
            self._readings.append(await self._meters.read())

    def windows(self) -> list[dict[str, Any]]:
        """From reading to reading."""
        source = self._meters.energy.gpu
        return [
            _window(self.began, before, after, source)
            for before, after in zip(self._readings, self._readings[1:], strict=False)
            if after.at > before.at
        ]


def _window(began: float, before: Reading, after: Reading, source: str) -> dict[str, Any]:
    counted = {
        name: _difference(before.counters.get(name), after.counters.get(name))
        for name in ("steps", "generated_tokens", "prompt_tokens", "cached_tokens")
    }
    prompt, cached = counted["prompt_tokens"], counted["cached_tokens"]
    gpu = _difference(before.gpu_joules, after.gpu_joules)
    return {
        "start_s": before.at - began,
        "ended_s": after.at - began,
        "energy_source": source if gpu is not None else "unavailable",
        "gpu_joules": gpu,
        "cpu_joules": _difference(before.cpu_joules, after.cpu_joules),
        "dram_joules": _difference(before.dram_joules, after.dram_joules),
        "gpu_watts": None if gpu is None else gpu / (after.at - before.at),
        "limit_watts": after.limit_watts,
        "sm_clock_mhz": after.sm_clock_mhz,
        "throttled": after.throttled,
        "steps": _whole(counted["steps"]),
        "generated_tokens": _whole(counted["generated_tokens"]),
        "prefilled_tokens": _whole(None if prompt is None or cached is None else max(0.0, prompt - cached)),
        **{name: after.counters.get(name) for name in ("running", "waiting", "kv_share")},
    }


def _difference(before: float | None, after: float | None) -> float | None:
    """Of a counter. None where it is not known, or began again."""
    return after - before if before is not None and after is not None and after >= before else None


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)
