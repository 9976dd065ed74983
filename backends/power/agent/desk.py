"""What does the agent do with its cards? Reads them for whoever asks; sets them for one holder at a time.

A holder that is not heard of for `LEASE_SECONDS` has lost its lease, and the card is put back. The agent's own lease
and watchdog, on its host, do the rest.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from backends.power.device import Unavailable
from backends.power.sample import Sample, failed, take, to_json
from backends.power.threads import DeviceThread

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from backends.power.actuator import Actuator
    from backends.power.cap import Outcome
    from backends.power.device import PowerDevice

LEASE_SECONDS = 10.0
READ_SECONDS = 0.8
"""Less than a gateway waits, so that it hears of a card that hangs from us."""


class Refused(Exception):
    """The answer is an error: an HTTP status, a code for programs, a message for people."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class _Holder(NamedTuple):
    name: str
    until: float


class Desk:
    """The agent without its HTTP."""

    def __init__(
        self,
        devices: Mapping[str, PowerDevice],
        actuator: Actuator,
        lease_seconds: float = LEASE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._devices = dict(devices)
        self._actuator = actuator
        self._lease_seconds = lease_seconds
        self._clock = clock
        self._threads = {label: DeviceThread(label) for label in self._devices}
        self._reading: dict[str, asyncio.Task[Sample]] = {}
        self._holders: dict[str, _Holder] = {}
        self._restores = dict.fromkeys(self._devices, 0)
        self._instance = secrets.token_hex(8)

    def devices(self) -> list[dict[str, Any]]:
        """What there is. Nothing is asked of a card."""
        return [
            {"id": label, "identity": device.identity, "source": device.source, **self._able(device)}
            for label, device in self._devices.items()
        ]

    async def sample(self, label: str) -> dict[str, Any]:
        """One look. Those who ask while a card is being read get that reading."""
        self._known(label)
        task = self._reading.get(label)
        if task is None:
            task = self._reading[label] = asyncio.ensure_future(self._read(label))
            task.add_done_callback(lambda _: self._reading.pop(label, None))
        found = await asyncio.shield(task)
        self._actuator.see(found)
        return {
            **to_json(found, time.monotonic()),
            **self._able(self._devices[label]),
            "generation": f"{self._instance}:{self._restores[label]}",
        }

    async def hold(self, label: str, holder: str) -> dict[str, Any]:
        """Take the card, or go on holding it. Refused if it is another's."""
        self._may_set(label)
        now = self._clock()
        before = self._holders.get(label)
        if before is not None and before.name != holder and now < before.until:
            raise Refused(409, "lease_held", f"{before.name} sets the limit of {label}")
        self._holders[label] = _Holder(holder, now + self._lease_seconds)
        if before is not None and before.name != holder:
            await self._put_back(label)
        return {"holder": holder, "lease_seconds": self._lease_seconds}

    async def limit(self, label: str, holder: str, watts: float) -> dict[str, Any]:
        """Set the limit, as near as the card allows."""
        await self.hold(label, holder)
        return self._said(await self._actuator.set_limit_watts(label, watts))

    async def clock(self, label: str, holder: str, bounds: tuple[float, float] | None) -> dict[str, Any]:
        """Lock the clock, or free it."""
        await self.hold(label, holder)
        return self._said(await self._actuator.lock_sm_clock_mhz(label, bounds))

    async def let_go(self, label: str, holder: str) -> dict[str, Any]:
        """Put the card back, for its holder."""
        self._may_set(label)
        before = self._holders.get(label)
        if before is None:
            return {"state": "restored", "watts": None, "detail": "nobody held it"}
        if before.name != holder:
            raise Refused(409, "lease_held", f"{before.name} sets the limit of {label}")
        del self._holders[label]
        done = await self._put_back(label)
        return {"state": "restored", "watts": None, "detail": "nothing was changed"} if done is None else done._asdict()

    async def expire(self) -> None:
        """Put back what belongs to holders that are not heard of any more."""
        now = self._clock()
        for label, holder in list(self._holders.items()):
            if now >= holder.until:
                self._holders.pop(label, None)
                await self._put_back(label)

    def close(self) -> None:
        """End the reading threads."""
        for thread in self._threads.values():
            thread.close()

    def _able(self, device: PowerDevice) -> dict[str, Any]:
        acts = self._actuator.mode == "actuate"
        return {
            "name": device.name,
            "capabilities": sorted(device.capabilities),
            "can_set_limit": device.can_set_limit and acts,
            "can_lock_clocks": device.can_lock_clocks and acts,
        }

    async def _put_back(self, label: str) -> Any:
        self._restores[label] += 1
        return await self._actuator.restore(label)

    async def _read(self, label: str) -> Sample:
        device = self._devices[label]
        try:
            return await self._threads[label].call("sample", lambda: take(label, device), READ_SECONDS)
        except Unavailable as hanging:
            return failed(label, device.source, hanging.why, hanging.detail)

    def _said(self, outcome: Outcome) -> dict[str, Any]:
        if outcome.state == "applied":
            return outcome._asdict()
        if outcome.state == "failed":
            raise Refused(503, "no_permission" if "no_permission" in outcome.detail else "no_data", outcome.detail)
        raise Refused(409, outcome.state, outcome.detail)

    def _known(self, label: str) -> None:
        if label not in self._devices:
            raise Refused(404, "absent", f"this agent serves {', '.join(self._devices) or 'no device'}")

    def _may_set(self, label: str) -> None:
        self._known(label)
        if self._actuator.mode != "actuate":
            raise Refused(403, "no_permission", "this agent only reads: start it with --actuate and --gpus")
