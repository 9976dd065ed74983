"""Who pays what of one window? The counter's joules, in whole microjoules, to the last one."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from scheduler.energy.bill_accounts import COMPONENTS, CPU, CPU_IDLE, DRAM, DRAM_IDLE, IDLE, MARGINAL, UNCERTAINTY
from scheduler.energy.bill_limit import left_of
from scheduler.energy.bill_prices import MICRO
from scheduler.energy.work import NOTHING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scheduler.energy.bill_accounts import Source
    from scheduler.energy.bill_prices import Tariff
    from scheduler.energy.window import CallShare, Window


SECONDS_LEAST = 1e-6
"""Less time than this at the engine is none."""
Row = tuple[int, ...]
"""A call's microjoules of a window, in the order of COMPONENTS."""


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


class WindowBill(NamedTuple):
    """All of a window. `cpu` and `dram` are None where they are not metered."""

    window: Window
    source: Source
    """`unavailable`: the calls' figures are not known, and what was metered is residual."""
    scale: float
    gpu: Side
    cpu: Side | None
    dram: Side | None
    rows: list[Row]
    """Of each of the window's calls."""

    def sums(self) -> list[int]:
        """Of all rows, in the order of COMPONENTS."""
        return [sum(column) for column in zip(*self.rows, strict=True)] or [0] * len(COMPONENTS)

    def validate(self) -> None:
        """Conservation, to the microjoule. AssertionError otherwise."""
        sums = self.sums()
        self.gpu.validate()
        assert sum(sums[place] for place in MARGINAL) == self.gpu.billed
        assert sums[IDLE] == self.gpu.shared_idle
        for side, own, idle in ((self.cpu, CPU, CPU_IDLE), (self.dram, DRAM, DRAM_IDLE)):
            if side is None:
                assert sums[own] == sums[idle] == 0
            else:
                side.validate()
                assert (sums[own], sums[idle]) == (side.billed, side.shared_idle)
        assert sums[UNCERTAINTY] >= 0


class Idle(NamedTuple):
    """Watts that an engine's devices draw while nothing is done; None = not known."""

    gpu_watts: float | None = None
    cpu_watts: float | None = None
    dram_watts: float | None = None


class AtEnd(NamedTuple):
    """What is known of a call once it has ended."""

    more_steps: float
    """That it shared in, beyond what windows have told."""
    prompt_tokens: float
    """Of its prompt that were computed: a limit's share is by all of them, also where they are put right."""


NONE_KNOWN: Mapping[int, AtEnd] = {}


def split(
    window: Window, tariff: Tariff | None, scale: float, idle: Idle, at_end: Mapping[int, AtEnd] = NONE_KNOWN
) -> WindowBill:
    """Bill a window.

    `scale`: what the prices have to be multiplied with, see `Scale`; `idle`: see `IdleWatch`; `at_end`: by the place
    among the window's calls, of those that have ended.
    """
    if tariff is None:
        return _unknown(window)
    calls, measured = window.calls, window.energy.gpu
    whole_idle = round((tariff.idle_watts if idle.gpu_watts is None else idle.gpu_watts) * window.seconds * MICRO)
    counter = 0
    if measured is not None:
        counter = round(measured * MICRO)
        whole_idle = min(whole_idle, counter)
    seconds = sum([share.engine_seconds for share in calls])
    seconds = seconds if seconds > SECONDS_LEAST else 0.0
    occupied = min(window.busy_seconds / window.seconds, 1.0) if seconds else 0.0
    each = whole_idle * occupied / seconds if seconds else 0.0
    rows = _rows(window, tariff, scale, each, at_end)
    cpu = dram = None
    if window.energy.cpu is not None or window.energy.dram is not None:
        cpu, cpu_rows = _host(window, window.energy.cpu, idle.cpu_watts, occupied, seconds)
        dram, dram_rows = _host(window, window.energy.dram, idle.dram_watts, occupied, seconds)
        rows = [
            (*row[:CPU], *of_cpu, *of_dram, row[UNCERTAINTY])
            for row, of_cpu, of_dram in zip(rows, cpu_rows, dram_rows, strict=True)
        ]
    billed = sum([row[0] + row[1] + row[2] + row[3] for row in rows])
    shared_idle = sum([row[IDLE] for row in rows])
    if measured is None:
        counter = billed + whole_idle
    rest = counter - billed - whole_idle
    bypass = rest if rest > 0 and "bypass" in window.why else 0
    gpu = Side(counter, billed, shared_idle, whole_idle - shared_idle, rest - bypass, bypass)
    return WindowBill(window, _source(window), scale, gpu, cpu, dram, rows)


def _unknown(window: Window) -> WindowBill:
    """Without prices nobody can say whose joules these are."""
    rows: list[Row] = [(0,) * len(COMPONENTS)] * len(window.calls)
    sides = [None if joules is None else round(joules * MICRO) for joules in window.energy]
    gpu, cpu, dram = (None if joules is None else Side(joules, 0, 0, 0, joules) for joules in sides)
    return WindowBill(window, "unavailable", 1.0, gpu or Side(0, 0, 0, 0, 0), cpu, dram, rows)


def _source(window: Window) -> Source:
    if window.source == "simulated":
        return "simulated"
    return "measured" if window.energy.gpu is not None else "modelled"


def _rows(
    window: Window, tariff: Tariff, scale: float, idle_each_second: float, at_end: Mapping[int, AtEnd]
) -> list[Row]:
    """Of each call, with what earlier windows were told wrong: `price`, written out, since it runs for each share."""
    others, of_prefill, curve = MICRO * scale * tariff.decode_left, MICRO * scale, tariff.prefill_curve
    if not curve:
        of_prefill *= tariff.prefill_left
    step, decode, context, repeated, prefill, pair = tariff[:6]
    step, decode, context, repeated = step * others, decode * others, context * others, repeated * others
    prefill, pair, half = prefill * of_prefill, pair * of_prefill, tariff.relative_error
    rows: list[Row] = []
    for _, work, correction, seconds, _ in window.calls:
        steps, decoded, read, again, computed, pairs, _ = work
        if correction is not NOTHING:
            steps += correction[0]
            decoded += correction[1]
            read += correction[2]
            again += correction[3]
            computed += correction[4]
            pairs += correction[5]
        own, tokens = prefill * computed + pair * pairs, computed
        if at_end and (known := at_end.get(len(rows))) is not None:
            more, tokens = known
            steps += more
        if curve and own:
            own *= left_of(tariff, tokens)
        for_prefill, for_decode = round(own), round(decode * decoded)
        for_context, for_step = round(context * read + repeated * again), round(step * steps)
        doubt = int(half * abs(for_prefill + for_decode + for_context + for_step))
        idle = int(idle_each_second * seconds)
        rows.append((for_prefill, for_decode, for_context, for_step, idle, 0, 0, 0, 0, doubt))
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
