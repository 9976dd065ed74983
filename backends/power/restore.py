"""How is a card put back as it was found? By the one who changed it, by its watchdog, or at the next start."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from backends.power.device import HeldElsewhere, Unavailable
from backends.power.lease import LeaseFault, LeaseHeld, leases
from backends.power.opening import reopen

if TYPE_CHECKING:
    from pathlib import Path

    from backends.power.device import PowerDevice
    from backends.power.lease import Lease, Record

SAME_WATTS = 1.0
ROUNDED_WATTS = 5.0
"""A driver may round what it is asked for, and who asked may have been killed before the answer was written down."""


class Restored(NamedTuple):
    """What became of a card."""

    device: str
    state: Literal["restored", "left_alone", "held", "failed"]
    """left_alone: somebody else has set the limit since, and it is theirs"""
    watts: float | None
    """the limit now"""
    detail: str


def restore(device: PowerDevice, record: Record) -> Restored:
    """Put it back, if what is found is ours. Unavailable or ValueError if it cannot be."""
    if record.clock_locked:
        device.unlock_sm_clock()
    watts = record.snapshot_watts
    if watts is None:
        return _let_go(device, Restored(record.label, "restored", None, "its limit was never changed"))
    now = device.limits().requested_watts
    if same(now, watts):
        return _let_go(device, Restored(record.label, "restored", now, "it was as it was found"))
    if not any(abs(now - ours) <= ROUNDED_WATTS for ours in record.ours_watts):
        detail = f"somebody else has set {now:g} W since; it was {watts:g} W when it was found"
        return _let_go(device, Restored(record.label, "left_alone", now, detail))
    device.set_limit_watts(watts)
    again = device.limits().requested_watts
    if not same(again, watts):
        raise Unavailable("set_limit", "no_data", f"asked for {watts:g} W, the driver says {again:g} W")
    return _let_go(device, Restored(record.label, "restored", again, f"from {now:g} W"))


def restore_lease(lease: Lease, device: PowerDevice | None = None) -> Restored:
    """Restore what stands in a lease whose lock is held, and remove it. `failed` leaves it where it lies."""
    label, opened = lease.device or lease.file.stem, device
    try:
        record = lease.read()
        if record is None:
            return Restored(label, "restored", None, "there is no lease")
        label = record.label
        if opened is None:
            opened = reopen(record.spec)
        done = restore(opened, record)
        lease.remove()
        return done
    except HeldElsewhere as held:
        lease.remove()
        return Restored(label, "left_alone", None, str(held))
    except (Unavailable, LeaseFault, ValueError, OSError) as error:
        return Restored(label, "failed", None, str(error))
    finally:
        if opened is not None and opened is not device:
            opened.close()


def device_of(lease: Lease) -> PowerDevice | None:
    """The card of a lease, opened; None if nobody can tell (then `restore_lease` says why)."""
    try:
        record = lease.read()
        return None if record is None else reopen(record.spec)
    except (LeaseFault, ValueError):
        return None


def restore_orphans(folder: Path) -> list[Restored]:
    """Every lease in the folder whose holder has ended without restoring. Those that are held are left, and said."""
    found = []
    for lease in leases(folder):
        try:
            lease.acquire()
        except LeaseHeld as held:
            found.append(Restored(lease.file.stem, "held", None, str(held)))
            continue
        except LeaseFault as fault:
            found.append(Restored(lease.file.stem, "failed", None, str(fault)))
            continue
        try:
            found.append(restore_lease(lease))
        finally:
            lease.release()
    return found


def same(one: float, other: float) -> bool:
    """Whether two readings of a limit mean one limit."""
    return abs(one - other) <= SAME_WATTS


def _let_go(device: PowerDevice, done: Restored) -> Restored:
    device.let_go()
    return done
