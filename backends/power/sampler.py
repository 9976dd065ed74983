"""How are many devices read many times a second without an event loop noticing?

One thread reads all devices of this host in turn; one that waits for another process has a thread of its own. A device
that does not come back keeps the thread that reads it, the others go on in a new one, and from then on it stays apart:
it can hold the others up once in its life, for `HANG_SECONDS`.
"""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from backends.power.sample import Sample, failed, take

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from backends.power.device import PowerDevice

FASTEST_SECONDS, SLOWEST_SECONDS = 0.1, 1.0
HANG_SECONDS = 0.5
DEVICES_MAX = 256
END_SECONDS = 1.5


class _Reading(NamedTuple):
    label: str
    since: float


class _Lane:
    """One thread and what it reads."""

    def __init__(self, sampler: Sampler, devices: tuple[tuple[str, PowerDevice], ...]) -> None:
        self.devices = devices
        """replaced as a whole by the sampler, when it takes the others away"""
        self.reading: _Reading | None = None
        self.shown_hanging = 0.0
        self._sampler = sampler
        self._last: dict[str, float] = {}
        self.thread = threading.Thread(target=self._run, name=f"power {devices[0][0]}", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        sampler = self._sampler
        due = time.monotonic()
        while not sampler.stopped.is_set():
            sampler.deliver(self._read(self.devices))
            now = time.monotonic()
            # On a fixed grid: what was missed is left out, and a late read does not shift those after it.
            due += sampler.period_seconds * max(1, -int((due - now) // sampler.period_seconds))
            sampler.stopped.wait(due - now)

    def _read(self, devices: tuple[tuple[str, PowerDevice], ...]) -> list[Sample]:
        found = []
        for label, device in devices:
            self.reading = _Reading(label, time.monotonic())
            try:
                sample = take(label, device)
            except Exception as error:  # noqa: BLE001  (one device's fault is not the others')
                sample = failed(label, device.source, "no_data", repr(error))
            self.reading = None
            found.append(self._noticed(sample))
            if self.devices is not devices:  # the others were taken away meanwhile
                break
        return found

    def _noticed(self, sample: Sample) -> Sample:
        """A counter that went back has begun again: differences across that mean nothing."""
        joules = sample.energy_joules
        if joules is None:
            return sample
        before = self._last.get(sample.device)
        self._last[sample.device] = joules
        if before is not None and joules < before:
            detail = f"the counter went from {before:.0f} J to {joules:.0f} J"
            return sample._replace(state="reset", detail=detail)
        return sample


class Sampler:
    """Reads devices and hands what they say to a callback on the loop that started it."""

    def __init__(
        self,
        devices: Mapping[str, PowerDevice],
        period_seconds: float,
        callback: Callable[[list[Sample]], None],
        hang_seconds: float = HANG_SECONDS,
    ) -> None:
        if not FASTEST_SECONDS <= period_seconds <= SLOWEST_SECONDS:
            raise ValueError(f"a sample each {period_seconds:g} s: must be {FASTEST_SECONDS} to {SLOWEST_SECONDS:g} s")
        if len(devices) > DEVICES_MAX:
            raise ValueError(f"{len(devices)} devices are more than {DEVICES_MAX}")
        self.devices = dict(devices)
        self.period_seconds = period_seconds
        self.stopped = threading.Event()
        self._callback = callback
        self._hang_seconds = hang_seconds
        self._lanes: list[_Lane] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watch: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin, on the running loop."""
        self._loop = asyncio.get_running_loop()
        near = tuple(pair for pair in self.devices.items() if not pair[1].over_network)
        far = [(pair,) for pair in self.devices.items() if pair[1].over_network]
        self._lanes = [_Lane(self, devices) for devices in (near, *far) if devices]
        self._look_after()

    async def close(self) -> None:
        """End its threads, but for those that hang; they are daemons. Devices are their owner's to close."""
        self.stopped.set()
        if self._watch is not None:
            self._watch.cancel()
        loop = asyncio.get_running_loop()
        until = loop.time() + END_SECONDS
        for lane in self._lanes:
            while lane.thread.is_alive() and loop.time() < until:  # noqa: ASYNC110  (a thread's end has no event)
                await asyncio.sleep(0.005)

    @property
    def threads(self) -> int:
        """How many threads read."""
        return len(self._lanes)

    def deliver(self, samples: list[Sample]) -> None:
        """From a reading thread."""
        if samples and self._loop is not None and not self.stopped.is_set():
            try:
                self._loop.call_soon_threadsafe(self._hand_over, samples)
            except RuntimeError:  # the loop was closed before us
                self.stopped.set()

    def _hand_over(self, samples: list[Sample]) -> None:
        if not self.stopped.is_set():
            self._callback(samples)

    def _look_after(self) -> None:
        """Is a thread stuck in a device? Say so once a second, and have the others read by another."""
        assert self._loop is not None
        self._watch = self._loop.call_later(min(0.25, self._hang_seconds / 2), self._look_after)
        now = time.monotonic()
        for lane in list(self._lanes):
            reading = lane.reading
            if reading is None or now - reading.since < self._hang_seconds:
                continue
            others = tuple(pair for pair in lane.devices if pair[0] != reading.label)
            if others:
                lane.devices = tuple(pair for pair in lane.devices if pair[0] == reading.label)
                self._lanes.append(_Lane(self, others))
            if now - lane.shown_hanging >= 1.0:
                lane.shown_hanging = now
                detail = f"a reading has not come back for {now - reading.since:.1f} s"
                self._callback([failed(reading.label, self.devices[reading.label].source, "hanging", detail)])
