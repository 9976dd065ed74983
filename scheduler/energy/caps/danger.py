"""Must the cap go up at once, whatever it saves? Everything that says so, and nothing that needs the model's prices."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from scheduler.energy.caps.answers import Answers
    from scheduler.energy.caps.decision import Why
    from scheduler.energy.caps.rules import CapRules
    from scheduler.energy.caps.view import CostModel, EngineView


MAY_MISS = 0.025
"""Half of what a p95 allows to miss: once so much is spent, misses that come fast are a danger."""


class Danger(NamedTuple):
    """Why."""

    why: Why
    words: str


class DangerWatch:
    """Looks at each view, and remembers how the engine's queue has grown."""

    def __init__(self, rules: CapRules) -> None:
        self._rules = rules
        self._waiting: float | None = None
        self._grew = 0

    def look(self, now: float, view: EngineView, model: CostModel) -> Danger | None:
        """The gravest danger of this view; None: none."""
        rules = self._rules
        grew = self._queue(view.waiting)
        age = view.telemetry_seconds
        if age is None or age > rules.stale_seconds:
            told = "never came" if age is None else f"is {age:.1f} s old"
            return Danger("stale", f"telemetry {told}, {rules.stale_seconds:g} s are allowed")
        if model.drifting:
            return Danger("drift", "the engine is not what the energy model has learned")
        for name, target, seen in (
            ("TTFT", rules.ttft_seconds_p95, view.ttft),
            ("ITL", rules.itl_seconds_p95, view.itl),
        ):
            if target is not None and (missed := self._missed(now, seen)) is not None:
                return Danger("slo_danger", f"{name} over {target:g} s for {missed} in {rules.danger_seconds:g} s")
        if grew:
            return Danger("queue_grows", f"{view.waiting:g} calls wait in the engine, more each of {self._grew} times")
        return None

    def _queue(self, waiting: float | None) -> bool:
        if waiting is None:
            return False
        before, self._waiting = self._waiting, waiting
        self._grew = self._grew + 1 if before is not None and waiting > before else 0
        return self._grew >= self._rules.queue_looks and waiting >= self._rules.queue_calls

    def _missed(self, now: float, seen: Answers) -> str | None:
        """Misses come fast, and half of what a p95 allows over the horizon is spent: a burst alone breaks nothing."""
        rules = self._rules
        missed, calls = seen.look(now)
        if missed < rules.danger_calls or missed <= rules.danger_share * calls or seen.missed <= MAY_MISS * seen.total:
            return None
        return f"{missed} of {calls} calls"
