"""What would a coin per request have said? Both policies at once on one engine, each call with its own coin."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from bench.experiments.stage import Shape, Stage
from scheduler.events import CallArrived, CallFinished
from scheduler.experiments.chance import share_of
from scheduler.experiments.definition import TREATMENT

if TYPE_CHECKING:
    from scheduler.actions import Action
    from scheduler.events import Event
    from scheduler.experiments.definition import Arm
    from scheduler.experiments.rows import WorkflowOutcome

WARM_SECONDS = 60.0


class Coin:
    """A host: each call's arm by a coin, or always the same arm."""

    def __init__(self, always: int | None) -> None:
        self.always = always

    def assign(self, workflow_id: str, now: float) -> int:
        return self.arm_of(workflow_id, now)

    def arm_of(self, workflow_id: str, now: float) -> int:
        return int(share_of("coin", workflow_id) < 0.5) if self.always is None else self.always

    def first(self, now: float) -> int:
        return TREATMENT

    def ended(self, outcome: WorkflowOutcome, now: float) -> None:
        """Calls are looked at, not workflows."""


class _Watched(Stage):
    """Notes each call's time and tokens by its arm."""

    def __init__(self, shape: Shape, arms: tuple[Arm, Arm], host: Coin) -> None:
        super().__init__(shape.calibration, arms, host, by_call=True)
        self._coin = host
        self._sent: dict[str, float] = {}
        self.calls = [0, 0]
        self.seconds = [0.0, 0.0]
        self.tokens = [0, 0]

    def handle(self, event: Event, now: float) -> list[Action]:
        """The stage's, and a note."""
        if isinstance(event, CallArrived):
            self._sent[event.call_id] = now
        elif isinstance(event, CallFinished):
            sent = self._sent.pop(event.call_id)
            if sent >= WARM_SECONDS:
                arm = self._coin.arm_of(event.call_id, now)
                self.calls[arm] += 1
                self.seconds[arm] += now - sent
                self.tokens[arm] += event.output_tokens or 0
        return super().handle(event, now)


class Naive(NamedTuple):
    """Effects of the treatment, relative: what is true (each arm alone, same arrivals) and what coins say."""

    true_seconds: float
    coin_seconds: float
    true_joules: float
    """Of an output token."""
    coin_joules: float
    """Joules shared out by output tokens, as anybody must who has one meter."""


def compare(shape: Shape, arms: tuple[Arm, Arm], rate: float, seconds: float, seed: str) -> Naive:
    """Three runs on the same arrivals: the control alone, the treatment alone, a coin for each call."""
    runs = []
    for always in (0, 1, None):
        stage = _Watched(shape, arms, Coin(always))
        stage.traffic(seed, lambda now: rate, rate, seconds)
        stage.run(WARM_SECONDS)
        before = stage.joules()
        stage.run(seconds)
        runs.append((stage, stage.joules() - before))
    (control, control_joules), (treated, treated_joules), (coins, _) = runs

    def mean(stage: _Watched, arm: int) -> float:
        return stage.seconds[arm] / max(stage.calls[arm], 1)

    true_joules = (treated_joules / treated.tokens[1]) / (control_joules / control.tokens[0]) - 1
    return Naive(mean(treated, 1) / mean(control, 0) - 1, mean(coins, 1) / mean(coins, 0) - 1, true_joules, 0.0)
