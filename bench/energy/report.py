"""What was said of each reported window before its energy was seen, and what the counter said then?"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bench.energy.oracle import Oracle
    from scheduler.energy.model import EnergyModel
    from scheduler.energy.window import Window

REPORT_SECONDS = 5.0


class Row(NamedTuple):
    """A reported window: one or more of the model's, predicted before any of their energies was seen."""

    start: float
    end: float
    measured: float
    """By the counter."""
    true: float
    """By the meter itself, which no gateway sees."""
    predicted: float
    low: float
    high: float
    planned: float
    known: float
    """What somebody says who knows each price."""
    busy_seconds: float
    limit_watts: float | None
    drift: bool
    marked: bool


class Reporter:
    """Puts windows together until they are long enough, has them predicted, and lets the model learn then."""

    def __init__(self, model: EnergyModel, oracle: Oracle, joules_at: Mapping[float, float]) -> None:
        self.model = model
        self.oracle = oracle
        self.rows: list[Row] = []
        self._joules_at = joules_at
        self._held: list[Window] = []

    def window(self, window: Window) -> None:
        """One more of the model's windows."""
        held = self._held
        held.append(window)
        if window.end - held[0].start < REPORT_SECONDS - 0.1:
            return
        self._report(held)
        self._held = []

    def _report(self, held: list[Window]) -> None:
        work, busy, measured = held[0].seen, held[0].busy_seconds, held[0].energy.gpu
        for window in held[1:]:
            work += window.seen
            busy += window.busy_seconds
            more = window.energy.gpu
            measured = None if measured is None or more is None else measured + more
        start, end = held[0].start, held[-1].end
        limits = [window.limit_watts for window in held if window.limit_watts is not None]
        limit = sum(limits) / len(limits) if limits else None
        given = self.model.predict_window(work, end - start, limit, busy_seconds=busy)
        planned = self.model.predict_window(work, end - start, limit)
        known = self.oracle.joules(work, end - start, limit, busy)
        drift = False
        for window in held:
            drift |= self.model.learn(window).drift
            self.oracle.learn(window)
        if measured is None:
            return
        exact = self._joules_at
        true = exact[end] - exact[start] if end in exact and start in exact else measured
        self.rows.append(
            Row(
                start, end, measured, true, *given.joules, planned.joules.value, known, busy, limit, drift,
                any(not window.whole for window in held),
            )
        )  # fmt: skip
