"""How is one card's limit changed so that it can always be put back? Blocking, and one call at a time.

Before the first change: the lock, the fence if there is one, what the card's limit is, all of that on the disk, and a
watchdog that has said it watches. Before each change: is the limit still what we set? After it: what does the driver
say?
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from backends.power.device import HeldElsewhere, PowerDevice, Unavailable
from backends.power.lease import Lease, LeaseFault, LeaseHeld, Record, new_record
from backends.power.restore import Restored, restore_lease, same

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from backends.power.watchdog import Watchdog

OutcomeState = Literal["applied", "observed", "yielded", "held_elsewhere", "failed"]


class Outcome(NamedTuple):
    """What became of a wish. What was asked for, what may be asked for and what the driver says are three numbers."""

    device: str
    state: OutcomeState
    requested_watts: float | None = None
    clamped_watts: float | None = None
    applied_watts: float | None = None
    """the driver's own word for what was asked of it, read back"""
    enforced_watts: float | None = None
    """the strictest limit of all, which may be the host's; a new limit takes a moment to settle"""
    detail: str = ""


class Fence(Protocol):
    """Whoever else must agree that we are the one writer. All raise LeaseFault."""

    def acquire(self) -> int:
        """Become it; returns the fencing token."""

    def check(self) -> None:
        """Still are it."""

    def renew(self) -> None:
        """Stay it."""

    def release(self) -> None:
        """Be it no more."""


class Cap:
    """One card, while this process may set its limit."""

    def __init__(
        self,
        label: str,
        device: PowerDevice,
        folder: Path,
        watchdog: Watchdog | None,
        fence_of: Callable[[str], Fence] | None = None,
    ) -> None:
        self.label = label
        self.device = device
        self._folder = folder
        self._watchdog = watchdog
        self._fence_of = fence_of
        self._fence: Fence | None = None
        self._lock = threading.RLock()
        self._lease: Lease | None = None
        self._record: Record | None = None
        self._generation = 0
        self._ours: tuple[float, ...] = ()
        """what the limit may be: one value, or two after a change that was cut off in the middle"""
        self.applied_watts: float | None = None
        """what the limit is if nobody else has moved it"""
        self.set_seconds = 0.0
        """when it was set, by the monotonic clock"""
        self.yielded = ""
        """why it is not set any more; empty = it is"""

    @property
    def token(self) -> int | None:
        """The fencing token, while the lease is held."""
        return None if self._lease is None else self._lease.token

    @property
    def snapshot_watts(self) -> float | None:
        """What was found before the first change."""
        return None if self._record is None else self._record.snapshot_watts

    def set_limit_watts(self, watts: float) -> Outcome:
        """Have the limit moved there, or as near as the card allows."""
        return self._do(lambda: self._set(watts), watts)

    def lock_sm_clock_mhz(self, bounds: tuple[float, float] | None) -> Outcome:
        """Hold the clock within bounds, or (None) let it run free."""

        def move() -> Outcome:
            record = self._take()
            if bounds is not None:
                self._write(record._replace(clock_locked=True))
                try:
                    self.device.lock_sm_clock_mhz(*bounds)
                except Unavailable as refused:
                    if refused.why in ("no_permission", "not_supported"):  # so nothing was locked
                        self._write(record)
                    raise
            elif record.clock_locked:
                self.device.unlock_sm_clock()
                self._write(record._replace(clock_locked=False))
            return Outcome(self.label, "applied", detail=f"clock {bounds}" if bounds else "clock free")

        return self._do(move, None)

    def look(self, requested_watts: float, at_seconds: float) -> Outcome | None:
        """A limit that was read at that time. If it is not ours any more: yield."""
        with self._lock:
            applied = self.applied_watts
            if applied is None or at_seconds <= self.set_seconds or self._is_ours(requested_watts):
                return None
            if self.device.generation != self._generation:
                return None  # the driver was reloaded and dropped it; the next change sets it again
            return self._yield(requested_watts)

    def renew(self) -> Outcome | None:
        """Stay the writer. If that fails, restore while we still may; the next change begins from nothing."""
        with self._lock:
            if self._lease is None:
                return None
            try:
                if self._fence is not None:
                    self._fence.renew()
                self.device.renew()
            except (LeaseFault, Unavailable) as fault:
                done = self.restore()
                what = "" if done is None else f"; {done.state.replace('_', ' ')}: {done.detail}"
                return Outcome(self.label, "failed", detail=f"the lease was lost: {fault}{what}")
            return None

    def restore(self) -> Restored | None:
        """Put the card back and give the lease up. None if it was never taken. A failure leaves it to the watchdog."""
        with self._lock:
            lease = self._lease
            if lease is None:
                return None
            done = restore_lease(lease, self.device)
            if done.state != "failed":
                self._give_up()
            return done

    def resume(self) -> None:
        """Set it again after a yield: somebody has said that we may."""
        self.yielded = ""

    # --- within ---

    def _do(self, change: Callable[[], Outcome], watts: float | None) -> Outcome:
        with self._lock:
            if self.yielded:
                return Outcome(self.label, "yielded", watts, detail=self.yielded)
            try:
                return change()
            except (LeaseHeld, HeldElsewhere) as held:
                return Outcome(self.label, "held_elsewhere", watts, detail=str(held))
            except (Unavailable, LeaseFault, ValueError) as fault:
                self._abandon_if_untouched()
                return Outcome(self.label, "failed", watts, detail=str(fault))

    def _set(self, watts: float) -> Outcome:
        record = self._take()
        now = self.device.limits()
        said = ""
        if record.snapshot_watts is None:
            record = record._replace(snapshot_watts=now.requested_watts, at=time.time())
        elif self.applied_watts is not None and not self._is_ours(now.requested_watts):
            if self.device.generation == self._generation:
                return self._yield(now.requested_watts, watts)
            said = f"the driver or its agent was started again and dropped the limit of {self.applied_watts:g} W"
        clamped = now.clamp(watts)
        before = now.requested_watts if self.applied_watts is None else self.applied_watts
        self._ours = before, clamped
        self._write(record._replace(ours_watts=self._ours))
        self.device.set_limit_watts(clamped)
        self.applied_watts, self.set_seconds = clamped, time.monotonic()
        after = self.device.limits()
        self.set_seconds = time.monotonic()
        self.applied_watts, self._generation = after.requested_watts, self.device.generation
        self._ours = (after.requested_watts,)
        if not same(after.requested_watts, clamped):
            self._write(record._replace(ours_watts=(before, clamped, after.requested_watts)))
            said = said or f"the driver made {after.requested_watts:g} W of {clamped:g} W"
        return Outcome(self.label, "applied", watts, clamped, after.requested_watts, after.enforced_watts, said)

    def _is_ours(self, watts: float) -> bool:
        return any(same(watts, ours) for ours in self._ours)

    def _take(self) -> Record:
        """Become the one writer. LeaseFault."""
        if self._lease is not None and self._record is not None:
            if self._fence is not None:
                self._fence.check()
            if self._watchdog is not None:
                self._watchdog.ensure()
            return self._record
        identity = self._identity()
        lease = Lease(self._folder, identity)
        lease.acquire()
        try:
            if self._fence_of is not None:
                self._fence = self._fence_of(identity)
                self._fence.acquire()
            if (left := restore_lease(lease, self.device)).state == "failed":  # an orphan that nobody could restore yet
                raise LeaseFault(f"what another process left of it cannot be restored: {left.detail}")
            record = new_record(identity, self.label, dict(self.device.spec), lease.token)
            lease.write(record)
            if self._watchdog is not None:
                self._watchdog.hold(lease)
        except BaseException:
            self._let_go(lease)
            raise
        self._lease, self._record = lease, record
        return record

    def _identity(self) -> str:
        self.device.limits()  # a card must have been seen to be known by the same name to all
        return self.device.identity

    def _write(self, record: Record) -> None:
        assert self._lease is not None
        self._lease.write(record)
        self._record = record

    def _yield(self, found_watts: float, watts: float | None = None) -> Outcome:
        applied = self.applied_watts
        self.yielded = (
            f"somebody else set {found_watts:g} W where {applied:g} W was ours:"
            " the limit is theirs until we are told to resume"
        )
        lease, record = self._lease, self._record
        if lease is not None:
            if record is not None and record.clock_locked:
                restore_lease(lease, self.device)  # (leaves the limit alone, as it is not ours)
            lease.remove()
            self._give_up()
        return Outcome(self.label, "yielded", watts, applied_watts=found_watts, detail=self.yielded)

    def _abandon_if_untouched(self) -> None:
        if self._lease is not None and self.applied_watts is None:
            self.restore()  # as a set may have failed half-way

    def _give_up(self) -> None:
        lease = self._lease
        self._lease = self._record = self.applied_watts = None
        if lease is not None:
            self._let_go(lease)

    def _let_go(self, lease: Lease) -> None:
        if self._watchdog is not None:
            self._watchdog.drop(lease)
        if self._fence is not None:
            self._fence.release()
            self._fence = None
        record = _quietly(lease)
        if record is not None and record.snapshot_watts is None and not record.clock_locked:
            lease.remove()  # nothing was changed
        lease.release()


def _quietly(lease: Lease) -> Record | None:
    try:
        return lease.read()
    except LeaseFault:
        return None
