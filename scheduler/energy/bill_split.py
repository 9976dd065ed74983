"""Who pays what of one window? The counter's joules, in whole microjoules, to the last one."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scheduler.energy.bill_accounts import COMPONENTS, CPU, CPU_IDLE, DRAM, DRAM_IDLE, IDLE, MARGINAL, UNCERTAINTY
from scheduler.energy.bill_limit import all_left_of
from scheduler.energy.bill_prices import MICRO

if TYPE_CHECKING:
    import numpy.typing as npt

    from scheduler.energy.bill_accounts import Source
    from scheduler.energy.bill_prices import Tariff
    from scheduler.energy.bill_scale import Idle
    from scheduler.energy.window import Shares, Window

    Microjoules = npt.NDArray[np.int64]
    Floats = npt.NDArray[np.float64]

SECONDS_LEAST = 1e-6
"""Less time than this at the engine is none."""


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
    rows: Microjoules
    """Of each of the window's calls, in the order of COMPONENTS: shape (calls, 10). Whole numbers: sums are exact."""

    def sums(self) -> list[int]:
        """Of all rows, in the order of COMPONENTS."""
        return self.rows.sum(axis=0).tolist()  # type: ignore[no-any-return]

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


def split(window: Window, tariff: Tariff | None, scale: float, idle: Idle) -> WindowBill:
    """Bill a window. `scale`: what the prices have to be multiplied with, see `Scale`; `idle`: see `IdleWatch`."""
    if tariff is None:
        return _unknown(window)
    calls, measured = window.calls, window.energy.gpu
    whole_idle = round((tariff.idle_watts if idle.gpu_watts is None else idle.gpu_watts) * window.seconds * MICRO)
    counter = 0
    if measured is not None:
        counter = round(measured * MICRO)
        whole_idle = min(whole_idle, counter)
    seconds = float(calls.engine_seconds.sum())
    seconds = seconds if seconds > SECONDS_LEAST else 0.0
    occupied = min(window.busy_seconds / window.seconds, 1.0) if seconds else 0.0
    rows = np.zeros((len(calls), len(COMPONENTS)), dtype=np.int64)
    _own(rows, calls, tariff, scale)
    rows[:, IDLE] = _by_time(calls, whole_idle * occupied, seconds)
    cpu = dram = None
    if window.energy.cpu is not None:
        cpu = _host(rows[:, CPU : CPU_IDLE + 1], window, window.energy.cpu, idle.cpu_watts, occupied, seconds)
    if window.energy.dram is not None:
        dram = _host(rows[:, DRAM : DRAM_IDLE + 1], window, window.energy.dram, idle.dram_watts, occupied, seconds)
    sums = rows.sum(axis=0).tolist()
    billed, shared_idle = sum(sums[place] for place in MARGINAL), sums[IDLE]
    if measured is None:
        counter = billed + whole_idle
    rest = counter - billed - whole_idle
    bypass = rest if rest > 0 and "bypass" in window.why else 0
    gpu = Side(counter, billed, shared_idle, whole_idle - shared_idle, rest - bypass, bypass)
    return WindowBill(window, _source(window), scale, gpu, cpu, dram, rows)


def _unknown(window: Window) -> WindowBill:
    """Without prices nobody can say whose joules these are."""
    rows = np.zeros((len(window.calls), len(COMPONENTS)), dtype=np.int64)
    sides = [None if joules is None else round(joules * MICRO) for joules in window.energy]
    gpu, cpu, dram = (None if joules is None else Side(joules, 0, 0, 0, joules) for joules in sides)
    return WindowBill(window, "unavailable", 1.0, gpu or Side(0, 0, 0, 0, 0), cpu, dram, rows)


def _source(window: Window) -> Source:
    if window.source == "simulated":
        return "simulated"
    return "measured" if window.energy.gpu is not None else "modelled"


def _own(rows: Microjoules, calls: Shares, tariff: Tariff, scale: float) -> None:
    """What each call caused, with what earlier windows were told wrong, into the first rows: `price` for all of them.

    A limit's share is by the step that its prompt was computed in, also where its tokens are put right.
    """
    work = calls.work + calls.correction
    others = MICRO * scale * tariff.decode_left
    own = MICRO * scale * (tariff.prefill_token * work[:, 4] + tariff.attention_pair * work[:, 5])
    if tariff.prefill_curve:
        own *= all_left_of(tariff, np.maximum(calls.step_tokens, work[:, 4]), calls.step_before)
    else:
        own *= tariff.prefill_left
    parts = rows[:, :4]
    parts[:, 0] = np.rint(own)
    parts[:, 1] = np.rint(others * tariff.decode_token * work[:, 1])
    parts[:, 2] = np.rint(others * (tariff.context_token * work[:, 2] + tariff.repeated_token * work[:, 3]))
    parts[:, 3] = np.rint(others * tariff.step * (work[:, 0] + calls.more_steps))
    rows[:, UNCERTAINTY] = tariff.relative_error * np.abs(parts.sum(axis=1))


def _by_time(calls: Shares, microjoules: float, seconds: float) -> Floats:
    """Split by the time at the engine, never more than there is: whole numbers, rounded down."""
    each = microjoules / seconds if seconds > 0 else 0.0
    return np.floor(each * calls.engine_seconds)


def _host(
    rows: Microjoules, window: Window, joules: float, idle_watts: float | None, occupied: float, seconds: float
) -> Side:
    """CPU or memory, into its two columns of rows: above its idle power by steps, which the host starts one by one; no
    model has prices for it."""
    counter = round(joules * MICRO)
    idle = counter if idle_watts is None else min(round(idle_watts * window.seconds * MICRO), counter)
    rows[:, 1] = _by_time(window.calls, idle * occupied, seconds)
    steps = window.calls.work[:, 0]
    whole = float(steps.sum()) if seconds > 0 else 0.0
    above = counter - idle
    if whole > 0:
        rows[:, 0] = np.floor(above * (steps / whole))
    own, idles = rows.sum(axis=0).tolist()
    return Side(counter, own, idles, idle - idles, above - own)
