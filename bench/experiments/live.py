"""A whole experiment on the twin, block after block, by the gateway's own object: sticky arms, guardrails,
wash-outs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from bench.experiments.stage import Shape, Stage
from scheduler.events import PolicyChanged
from scheduler.experiments.definition import CONTROL
from scheduler.experiments.experiment import Experiment
from scheduler.policies import POLICIES
from scheduler.policies.base import Choice, Policy, with_room
from scheduler.policies.options import Option

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from scheduler.experiments.definition import Definition
    from scheduler.experiments.rows import BlockRow, WorkflowOutcome
    from scheduler.state import EngineState, ReadyCalls

TICK_SECONDS = 1.0


class Late(Policy):
    """A harmful policy, for tests of guardrails: each call is kept for a while, for nothing."""

    name = "late"
    options: ClassVar[Mapping[str, Option]] = {"hold_ms": Option(1000, "how long", least=0)}

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.hold_seconds = options["hold_ms"] / 1000.0

    def next(self, ready: ReadyCalls, engines: Sequence[EngineState], now: float) -> Choice | float | None:
        """The oldest call, when its time is up."""
        room = with_room(engines, now, 4096)
        if not room:
            return None
        oldest = min(ready, key=lambda call: call.sequence)
        due = oldest.arrived_at + self.hold_seconds
        return Choice(oldest, room[0]) if due <= now + 1e-9 else due


def knows_late() -> None:
    """Make the harmful policy known to this process, by its name."""
    POLICIES.setdefault("late", Late)


class LiveRun:
    """An experiment under way on the twin."""

    def __init__(
        self, definition: Definition, shape: Shape, seed: str, rates: Callable[[float], float], highest: float
    ) -> None:
        self.experiment = Experiment(definition, 0.0)
        self.rows: list[BlockRow] = []
        self.stage = Stage(shape.calibration, definition.arms, self)
        self._seed, self._rates, self._highest = seed, rates, highest

    def run(self) -> LiveRun:
        """Until it is finished or stopped."""
        stage, experiment = self.stage, self.experiment
        until = experiment.schedule.ends_at + 2 * experiment.definition.washout_seconds + 2
        stage.traffic(self._seed, self._rates, self._highest, until)
        joules, now = 0.0, 0.0
        self.rows += experiment.tick(now)
        while experiment.state == "running" and now < until:
            stage.run(now + TICK_SECONDS)
            total = stage.joules()
            experiment.add_energy(now, now + TICK_SECONDS, total - joules, None, None, "simulated")
            joules, now = total, now + TICK_SECONDS
            self.rows += experiment.tick(now)
        control = experiment.definition.arms[CONTROL]
        stage.world.tell(PolicyChanged(control.policy, tuple(control.options.items())))
        return self

    # --- what the stage asks ---

    def first(self, now: float) -> int:
        """The block's arm."""
        return self.experiment.arm_at(now)

    def assign(self, workflow_id: str, now: float) -> int:
        """The experiment's word."""
        return self.experiment.assign(workflow_id, now).arm

    def arm_of(self, workflow_id: str, now: float) -> int:
        """Of a held call; the control's for all once it is stopped."""
        return self.experiment.arm_of(workflow_id, now)

    def ended(self, outcome: WorkflowOutcome, now: float) -> None:
        """On the record."""
        self.experiment.record(outcome)
