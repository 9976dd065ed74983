"""Who pays what of one window? The counter's joules, in whole microjoules, to the last one."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from scheduler.energy.bill_accounts import MARGINAL, UNCERTAINTY
from scheduler.energy.bill_prices import MICRO
from scheduler.energy.work import NOTHING

if TYPE_CHECKING:
    from scheduler.energy.bill_accounts import Source
    from scheduler.energy.bill_prices import Tariff
    from scheduler.energy.window import CallShare, Window


class Side(NamedTuple):
    """One device's window in microjoules: counter = billed + shared_idle + unused + residual + bypass, exactly."""

    counter: int
    """What the meter said; without a meter, what the model says: the rest of the sum."""
    billed: int
    """To calls: what they caused."""
    shared_idle: int
    """To calls: idle power of the time in which some were there."""
    unused: int
    """Idle power of the time in which none was there: nobody's."""
    residual: int
    """What the prices do not explain. It can be negative, and is 0 in the long run (design.md: scaled)."""
    bypass: int = 0
    """What work that did not come through the gateway took."""

    def validate(self) -> None:
        """AssertionError if a microjoule is missing."""
        assert self.counter == self.billed + self.shared_idle + self.unused + self.residual + self.bypass, self


class ShareBill(NamedTuple):
    """A call's part of a window."""

    share: CallShare
    microjoules: tuple[int, ...]
    """In the order of COMPONENTS."""


class WindowBill(NamedTuple):
    """All of a window. `cpu` and `dram` are None where they are not metered."""

    window: Window
    source: Source
    """`unavailable`: the calls' figures are not known, and what was metered is residual."""
    scale: float
    gpu: Side
    cpu: Side | None
    dram: Side | None
    shares: tuple[ShareBill, ...]

    def validate(self) -> None:
        """Conservation, to the microjoule. AssertionError otherwise."""
        sums = [sum(column) for column in zip(*(bill.microjoules for bill in self.shares), strict=True)] or [0] * 10
        self.gpu.validate()
        assert sum(sums[place] for place in MARGINAL) == self.gpu.billed
        assert sums[4] == self.gpu.shared_idle
        for side, place in ((self.cpu, 5), (self.dram, 7)):
            if side is None:
                assert sums[place] == sums[place + 1] == 0
            else:
                side.validate()
                assert (sums[place], sums[place + 1]) == (side.billed, side.shared_idle)
        assert sums[UNCERTAINTY] >= 0


class Idle(NamedTuple):
    """Watts that an engine's devices draw while nothing is done; None = not known."""

    gpu_watts: float | None = None
    cpu_watts: float | None = None
    dram_watts: float | None = None


def split(window: Window, tariff: Tariff | None, scale: float, idle: Idle) -> WindowBill:
    """Bill a window. `scale`: what the prices have to be multiplied with, see `Scale`; `idle`: see `IdleWatch`."""
    calls, measured = window.calls, window.energy.gpu
    if tariff is None:
        rows = [(0, 0, 0, 0)] * len(calls)
        source: Source = "unavailable"
        idle_joules = half = 0.0
    else:
        rows = _rows(calls, tariff, scale)
        source = _source(window)
        idle_joules = (tariff.idle_watts if idle.gpu_watts is None else idle.gpu_watts) * window.seconds
        half = tariff.relative_error
    billed = sum(map(sum, rows))
    whole_idle = round(idle_joules * MICRO)
    if measured is None:
        counter = billed + whole_idle
    else:
        counter = round(measured * MICRO)
        whole_idle = min(whole_idle, counter)
    seconds = sum(share.engine_seconds for share in calls) if tariff is not None else 0.0
    occupied = min(window.busy_seconds / window.seconds, 1.0) if calls else 0.0
    idles = _by_time(calls, whole_idle * occupied, seconds)
    shared_idle = sum(idles)
    rest = counter - billed - whole_idle
    bypass = rest if rest > 0 and "bypass" in window.why else 0
    gpu = Side(counter, billed, shared_idle, whole_idle - shared_idle, rest - bypass, bypass)
    cpu, cpu_rows = _host(window, window.energy.cpu, idle.cpu_watts, occupied, seconds)
    dram, dram_rows = _host(window, window.energy.dram, idle.dram_watts, occupied, seconds)
    bills = tuple(
        ShareBill(share, (*row, own_idle, *of_cpu, *of_dram, int(half * abs(sum(row)))))
        for share, row, own_idle, of_cpu, of_dram in zip(calls, rows, idles, cpu_rows, dram_rows, strict=True)
    )
    return WindowBill(window, source, scale, gpu, cpu, dram, bills)


def _source(window: Window) -> Source:
    if window.source == "simulated":
        return "simulated"
    return "measured" if window.energy.gpu is not None else "modelled"


def _rows(calls: tuple[CallShare, ...], tariff: Tariff, scale: float) -> list[tuple[int, int, int, int]]:
    """(prefill, decode, context, step) of each, with what earlier windows were told wrong: `price`, written out."""
    others, of_prefill = MICRO * scale * tariff.decode_left, MICRO * scale * tariff.prefill_left
    step, decode, context, repeated, prefill, pair = tariff[:6]
    step, decode, context, repeated = step * others, decode * others, context * others, repeated * others
    prefill, pair = prefill * of_prefill, pair * of_prefill
    rows = []
    for share in calls:
        work = share.work
        if share.correction is not NOTHING:
            work += share.correction
        rows.append(
            (
                round(prefill * work[4] + pair * work[5]),
                round(decode * work[1]),
                round(context * work[2] + repeated * work[3]),
                round(step * work[0]),
            )
        )
    return rows


def _by_time(calls: tuple[CallShare, ...], microjoules: float, seconds: float) -> list[int]:
    """Split by the time at the engine, never more than there is."""
    if seconds <= 0:
        return [0] * len(calls)
    each = microjoules / seconds
    return [int(each * share.engine_seconds) for share in calls]


def _host(
    window: Window, joules: float | None, idle_watts: float | None, occupied: float, seconds: float
) -> tuple[Side | None, list[tuple[int, int]]]:
    """CPU or memory: above its idle power by steps, which the host starts one by one; no model has prices for it."""
    if joules is None:
        return None, [(0, 0)] * len(window.calls)
    counter = round(joules * MICRO)
    idle = counter if idle_watts is None else min(round(idle_watts * window.seconds * MICRO), counter)
    idles = _by_time(window.calls, idle * occupied, seconds)
    steps = sum(share.work.steps for share in window.calls) if seconds > 0 else 0.0
    above = counter - idle
    own = [int(above * (share.work.steps / steps)) if steps > 0 else 0 for share in window.calls]
    side = Side(counter, sum(own), sum(idles), idle - sum(idles), above - sum(own))
    return side, list(zip(own, idles, strict=True))
