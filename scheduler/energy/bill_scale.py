"""How far are the prices from what the meter says? And what do the devices draw while nothing is done?"""

from __future__ import annotations

from math import exp
from typing import TYPE_CHECKING, NamedTuple

from scheduler.energy.bill_prices import price, unlimited
from scheduler.energy.work import NOTHING

if TYPE_CHECKING:
    from scheduler.energy.bill_prices import Tariff
    from scheduler.energy.window import Window

HORIZON_SECONDS = 60.0
"""What an edge cuts off a window is in the next one: over a minute such errors are gone, so that no call pays them."""
BELIEF_SECONDS = 0.5
"""The prices are believed as much as so many seconds of idle power's joules: of weight while little is known."""
LOWEST, HIGHEST = 0.2, 5.0
OWED_MOST = 0.05
IDLE_HORIZON_SECONDS = 600.0
IDLE_SECONDS_MIN = 0.5


class Idle(NamedTuple):
    """Watts that an engine's devices draw while nothing is done; None = not known."""

    gpu_watts: float | None = None
    cpu_watts: float | None = None
    dram_watts: float | None = None


class Scale:
    """Measured joules above idle over priced joules, of an engine's last minute.

    Not of a window alone: a window's energy is off by what the counter's 100 ms and a prefill across the edge make of
    it, which would be put on the calls that happen to be there. The difference is that window's residual instead, and
    comes back in the next. What does not come back is made up for over the next minute, so that the residual is 0 in
    the long run; but no more of it than calls can be blamed for.
    """

    def __init__(self) -> None:
        self._work = NOTHING
        self._joules = self._seconds = self._owed = 0.0

    def booked(self, window: Window, residual_joules: float) -> None:
        """What was left of the window when it had been split."""
        if window.energy.gpu is not None and not window.why:
            self._owed += residual_joules

    def saw(self, window: Window, tariff: Tariff, more_steps: float = 0.0) -> None:
        """A window that has closed; one that is not whole says nothing. `tariff`: with what the limit left in it;
        `more_steps`: beyond those that it tells."""
        joules = window.energy.gpu
        if joules is None or window.why:
            return
        kept = exp(-window.seconds / HORIZON_SECONDS)
        work = window.work + window.correction
        work = work._replace(steps=work.steps + more_steps)
        self._work = self._work * kept + unlimited(tariff, work)
        self._joules = self._joules * kept + joules
        self._seconds = self._seconds * kept + window.seconds
        self._owed *= kept

    def at(self, tariff: Tariff, idle_watts: float) -> float:
        """What these prices have to be multiplied with."""
        belief = BELIEF_SECONDS * idle_watts
        priced = price(tariff._replace(decode_left=1.0, prefill_left=1.0), self._work).total
        above = self._joules - idle_watts * self._seconds
        most = OWED_MOST * priced
        above += min(max(self._owed, -most), most)
        if priced + belief <= 0:
            return 1.0
        return min(max((above + belief) / (priced + belief), LOWEST), HIGHEST)


class IdleWatch:
    """Power of an engine's devices while nothing is done: the mean of windows without calls.

    Until there was one, the model's word is taken for the GPUs (under constant load it cannot tell idle power from the
    fixed cost of steps), and for CPU and memory, which no model knows, the least that was seen: then too much is taken
    for idle, and no call pays for what it may not have used.
    """

    def __init__(self) -> None:
        self._least: list[float | None] = [None, None, None]
        self._joules = [0.0, 0.0, 0.0]
        self._seconds = [0.0, 0.0, 0.0]
        """Of windows without calls, older ones counting less."""

    def saw(self, window: Window, tariff: Tariff | None) -> Idle:
        """A window has closed; what is known now."""
        if window.seconds >= IDLE_SECONDS_MIN:
            empty = not len(window.calls) and not window.why
            for place, joules in enumerate(window.energy):
                if joules is not None:
                    self._take(place, joules, window.seconds, empty=empty)
        gpu = self._watts(0)
        if tariff is not None and not self._seconds[0]:
            gpu = tariff.idle_watts if gpu is None else min(tariff.idle_watts, gpu)
        return Idle(gpu, self._watts(1), self._watts(2))

    def _take(self, place: int, joules: float, seconds: float, *, empty: bool) -> None:
        least = self._least[place]
        self._least[place] = joules / seconds if least is None else min(least, joules / seconds)
        if empty:
            kept = exp(-seconds / IDLE_HORIZON_SECONDS)
            self._joules[place] = self._joules[place] * kept + joules
            self._seconds[place] = self._seconds[place] * kept + seconds

    def _watts(self, place: int) -> float | None:
        seconds = self._seconds[place]
        return self._joules[place] / seconds if seconds else self._least[place]
