"""Who moves the limits of many cards, off the event loop, and puts all of them back at the end?

`observe` touches nothing, at no time: a wish is answered with what would have been asked for. `actuate` takes each
card's lease at its first change. It is the hands alone: which limit is good is decided elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from backends.power.cap import Cap, Outcome
from backends.power.device import Unavailable
from backends.power.lease import LeaseFault, leases, open_folder
from backends.power.restore import Restored, restore_orphans
from backends.power.threads import DeviceThread
from backends.power.watchdog import Watchdog

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence
    from pathlib import Path

    from backends.power.cap import Fence
    from backends.power.device import PowerDevice
    from backends.power.sample import Sample

Mode = Literal["observe", "actuate"]
SET_SECONDS = 12.0
"""A change, with its lease and a watchdog's start; then it counts as hanging. It may still happen."""
RENEW_SECONDS = 3.0
RESTORE_SECONDS = 5.0


def new_holder() -> str:
    """A name for this process that nothing else has ever had."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(8)}"


class Actuator:
    """The limits of these cards, and of no others."""

    def __init__(
        self,
        devices: Mapping[str, PowerDevice],
        mode: Mode,
        folder: Path,
        say: Callable[[str], None],
        *,
        watchdog: bool = True,
        redis_url: str = "",
        holder: str = "",
    ) -> None:
        self.mode: Mode = mode
        self._devices = dict(devices)
        self._folder = folder
        self._say = say
        self._watchdog = Watchdog() if watchdog and mode == "actuate" else None
        self._redis_url = redis_url
        self._holder = holder or new_holder()
        self._fence_of: Callable[[str], Fence] | None = None
        self._started = False
        self._caps: dict[str, Cap] = {}
        self._threads: dict[str, DeviceThread] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._renewing: asyncio.Task[None] | None = None

    async def start(self) -> list[Restored]:
        """Restore what earlier processes left (in `observe`, only say it). LeaseFault if leases cannot be kept."""
        if self.mode == "observe":
            if left := self._orphans():
                self._say(
                    f"an ended process has left the limits of {', '.join(left)[:200]} changed: mode observe touches"
                    " nothing, `joulegate power restore` puts them back"
                )
            return []
        open_folder(self._folder)
        client = None
        if self._redis_url:
            from backends.power import redis_fence

            client = redis_fence.connect(self._redis_url)
        restored = await self._restore_orphans()
        for done in restored:
            self._say(f"{done.device}: left by an earlier process: {done.state.replace('_', ' ')}: {done.detail}")
        if client is not None:
            self._fence_of = partial(redis_fence.RedisFence, client, holder=self._holder)
        self._started = True
        for label, device in self._devices.items():
            self._add_cap(label, device)
        self._renewing = asyncio.ensure_future(self._renew())
        return restored

    def add(self, label: str, device: PowerDevice) -> None:
        """One more card. One of that label that is there already stays."""
        if label not in self._devices:
            self._devices[label] = device
            if self._started:
                self._add_cap(label, device)

    def _add_cap(self, label: str, device: PowerDevice) -> None:
        self._caps[label] = Cap(label, device, self._folder, self._watchdog, self._fence_of)

    async def set_limit_watts(self, label: str, watts: float) -> Outcome:
        """Move one card's limit. Never raises for what a card or a lease does: the outcome says it."""
        if (cap := self._caps.get(label)) is None:
            return await self._observed(label, watts)
        return await self._do(cap, lambda: cap.set_limit_watts(watts), watts)

    async def set_together(self, labels: Sequence[str], watts: float) -> list[Outcome]:
        """The limit of each of several cards that work in step, at once."""
        return list(await asyncio.gather(*(self.set_limit_watts(label, watts) for label in labels)))

    async def lock_sm_clock_mhz(self, label: str, bounds: tuple[float, float] | None) -> Outcome:
        """Hold one card's clock within bounds, or (None) let it run free."""
        if (cap := self._caps.get(label)) is None:
            return Outcome(label, "observed", detail=f"would lock the clock to {bounds}" if bounds else "would free it")
        return await self._do(cap, lambda: cap.lock_sm_clock_mhz(bounds), None)

    async def restore(self, label: str) -> Restored | None:
        """Put one card back now. None if it was never changed."""
        if (cap := self._caps.get(label)) is None:
            return None
        try:
            return await self._thread(label).call("restore", cap.restore, RESTORE_SECONDS)
        except Unavailable as hanging:
            return Restored(label, "failed", None, hanging.detail)

    def see(self, sample: Sample) -> None:
        """A reading of the card: has somebody else moved its limit? Costs a comparison."""
        cap = self._caps.get(sample.device)
        if cap is None or cap.applied_watts is None or sample.limits is None:
            return
        requested, at = sample.limits.requested_watts, sample.at_seconds
        if abs(requested - cap.applied_watts) > 1.0 and at > cap.set_seconds:
            self._spawn(self._look(cap, requested, at))

    def resume(self, label: str) -> None:
        """Set a card's limit again after a yield."""
        self._caps[label].resume()

    def state(self) -> dict[str, dict[str, object]]:
        """Of each card: what is ours of it."""
        return {
            label: {
                "applied_watts": cap.applied_watts,
                "snapshot_watts": cap.snapshot_watts,
                "token": cap.token,
                "yielded": cap.yielded,
            }
            for label, cap in self._caps.items()
        }

    async def close(self) -> list[Restored]:
        """Put every card back as it was found. What cannot be is left to the watchdog, or to the next start."""
        for task in (*self._tasks, *([self._renewing] if self._renewing else [])):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        done = [one for one in await asyncio.gather(*map(self.restore, self._caps)) if one is not None]
        for one in done:
            self._say(f"{one.device}: {one.state.replace('_', ' ')}: {one.detail}")
        for thread in self._threads.values():
            thread.close()
        if self._watchdog is not None:
            await asyncio.to_thread(self._watchdog.close)
        return done

    # --- within ---

    def _orphans(self) -> list[str]:
        found = []
        for lease in leases(self._folder):
            with contextlib.suppress(LeaseFault):  # of an account that we may not look at
                if not lease.is_locked():
                    found.append(lease.file.stem)
        return found

    async def _restore_orphans(self) -> list[Restored]:
        thread = DeviceThread("orphans")  # one that hangs must not keep a gateway from starting
        try:
            return await thread.call("restore", lambda: restore_orphans(self._folder), SET_SECONDS)
        except Unavailable as hanging:
            return [Restored("orphans", "failed", None, hanging.detail)]
        finally:
            thread.close()

    async def _do(self, cap: Cap, change: Callable[[], Outcome], watts: float | None) -> Outcome:
        try:
            outcome = await self._thread(cap.label).call("set_limit", change, SET_SECONDS)
        except Unavailable as hanging:
            outcome = Outcome(cap.label, "failed", watts, detail=str(hanging))
        if outcome.state != "applied":
            self._say(f"{cap.label}: {outcome.state.replace('_', ' ')}: {outcome.detail}")
        return outcome

    async def _observed(self, label: str, watts: float) -> Outcome:
        """What would have been asked for."""
        device = self._devices[label]
        try:
            limits = await self._thread(label).call("limits", device.limits, SET_SECONDS)
        except Unavailable as unavailable:
            return Outcome(label, "observed", watts, detail=f"nothing was touched; {unavailable}")
        clamped = limits.clamp(watts)
        return Outcome(
            label, "observed", watts, clamped, limits.requested_watts, limits.enforced_watts, "nothing was touched"
        )

    def _thread(self, label: str) -> DeviceThread:
        thread = self._threads.get(label)
        if thread is None:
            thread = self._threads[label] = DeviceThread(label)
        return thread

    async def _look(self, cap: Cap, requested: float, at: float) -> None:
        with contextlib.suppress(Unavailable):
            found = await self._thread(cap.label).call("limits", lambda: cap.look(requested, at), SET_SECONDS)
            if found is not None:
                self._say(f"{cap.label}: yielded: {found.detail}")

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            for cap in self._caps.values():
                if cap.token is not None and not self._thread(cap.label).busy_seconds:
                    self._spawn(self._renew_one(cap))

    async def _renew_one(self, cap: Cap) -> None:
        with contextlib.suppress(Unavailable):  # it hangs; what must be renewed expires, and says so
            lost = await self._thread(cap.label).call("renew", cap.renew, SET_SECONDS)
            if lost is not None:
                self._say(f"{cap.label}: {lost.detail}")

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
