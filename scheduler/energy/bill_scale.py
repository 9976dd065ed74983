"""How far are the prices from what the meter says? And what do CPU and memory draw while nothing is done?"""

from __future__ import annotations

from math import exp
from typing import TYPE_CHECKING

from scheduler.energy.bill_prices import price
from scheduler.energy.bill_split import HostIdle
from scheduler.energy.work import NOTHING

if TYPE_CHECKING:
    from scheduler.energy.bill_prices import Tariff
    from scheduler.energy.window import Window

HORIZON_SECONDS = 60.0
"""What an edge cuts off a window is in the next one: over a minute such errors are gone, so that no call pays them."""
BELIEF_SECONDS = 0.5
"""The prices are believed as much as so many seconds of idle power's joules: of weight while little is known."""
LOWEST, HIGHEST = 0.2, 5.0
IDLE_RATE = 0.1
IDLE_SECONDS_MIN = 0.5


class Scale:
    """Measured joules above idle over priced joules, of an engine's last minute.

    Not of a window alone: a window's energy is off by what the counter's 100 ms and a prefill across the edge make of
    it, which would be put on the calls that happen to be there. The difference is that window's residual instead, and
    comes back in the next.
    """

    def __init__(self) -> None:
        self._work = NOTHING
        self._joules = self._seconds = 0.0

    def saw(self, window: Window) -> None:
        """A window that has closed; one that is not whole says nothing."""
        joules = window.energy.gpu
        if joules is None or window.why:
            return
        kept = exp(-window.seconds / HORIZON_SECONDS)
        self._work = self._work * kept + window.work + window.correction
        self._joules = self._joules * kept + joules
        self._seconds = self._seconds * kept + window.seconds

    def at(self, tariff: Tariff) -> float:
        """What these prices have to be multiplied with."""
        belief = BELIEF_SECONDS * tariff.idle_watts
        priced = price(tariff, self._work).total
        above = self._joules - tariff.idle_watts * self._seconds
        if priced + belief <= 0:
            return 1.0
        return min(max((above + belief) / (priced + belief), LOWEST), HIGHEST)


class HostWatch:
    """Idle power of CPU and memory, which no model knows: the mean of windows without calls. Until there was one, the
    least that was seen: then too much is taken for idle, and no call pays for what it may not have used."""

    def __init__(self) -> None:
        self._least: list[float | None] = [None, None]
        self._mean: list[float | None] = [None, None]

    def saw(self, window: Window) -> HostIdle:
        """A window has closed; what is known now."""
        if window.seconds >= IDLE_SECONDS_MIN:
            for place, joules in enumerate(window.energy[1:]):
                if joules is not None:
                    self._take(place, joules / window.seconds, empty=not window.calls)
        known = [self._least[place] if mean is None else mean for place, mean in enumerate(self._mean)]
        return HostIdle(*known)

    def _take(self, place: int, watts: float, *, empty: bool) -> None:
        least, mean = self._least[place], self._mean[place]
        self._least[place] = watts if least is None else min(least, watts)
        if empty:
            self._mean[place] = watts if mean is None else mean + IDLE_RATE * (watts - mean)
