"""Must the cap go up at once, whatever it saves? Everything that says so, and nothing that needs the model's prices."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from scheduler.energy.caps.decision import Why
    from scheduler.energy.caps.rules import CapRules
    from scheduler.energy.caps.view import CostModel, EngineView, Seen


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
            if target is not None and (missed := self._missed(now, target, seen)) is not None:
                return Danger("slo_danger", f"{name} over {target:g} s for {missed} in {rules.danger_seconds:g} s")
        if grew:
            return Danger("queue_grows", f"{view.waiting:g} calls wait in the engine, more each of {self._grew} times")
        slack = view.slack
        if slack is not None and slack.slack_seconds < 0:
            return Danger("late", f"a workflow will end {-slack.slack_seconds:.1f} s late")
        return None

    def _queue(self, waiting: float | None) -> bool:
        if waiting is None:
            return False
        before, self._waiting = self._waiting, waiting
        self._grew = self._grew + 1 if before is not None and waiting > before else 0
        return self._grew >= self._rules.queue_looks and waiting >= self._rules.queue_calls

    def _missed(self, now: float, target: float, seen: tuple[Seen, ...]) -> str | None:
        rules = self._rules
        late = [each.seconds > target for each in seen if each.at > now - rules.danger_seconds]
        count = sum(late)
        if count < rules.danger_calls or count <= rules.danger_share * len(late):
            return None
        return f"{count} of {len(late)} calls"
