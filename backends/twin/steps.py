"""Steps under way, and the closed forms that jump over many of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from backends.twin.cost import Batch, StepCost
    from backends.twin.request import Request

RUN_CHANGE_MAX = 0.05
"""A run of steps ends before their duration or power has changed by more than this share: within, both are linear."""


class StepRun:
    """One step, or several that are equal but for the context, which grows: duration and power change linearly."""

    __slots__ = (
        "batch", "chunks", "cost", "demand_each_more", "seconds_each_more", "start", "steps", "watts_each_second",
    )  # fmt: skip

    def __init__(self, start: float, batch: Batch, chunks: list[tuple[Request, int]], cost: StepCost) -> None:
        self.start = start
        self.batch = batch
        self.chunks = chunks
        """Prompt tokens computed for each request: such a run has one step."""
        self.cost = cost
        self.steps = 1
        self.seconds_each_more = 0.0
        self.watts_each_second = 0.0
        self.demand_each_more = 0.0

    def lengthen(self, steps: int, cost_after: Callable[[int], StepCost]) -> None:
        """Let it be so many steps, two or more, or fewer where they change too much: what does the one after n cost?"""
        first, last = self.cost, cost_after(steps - 1)
        change = max(abs(last.seconds / first.seconds - 1), abs(last.watts / first.watts - 1))
        if change > RUN_CHANGE_MAX:
            steps = max(2, int(steps * RUN_CHANGE_MAX / change))
            last = cost_after(steps - 1)
        self.steps = steps
        self.seconds_each_more = (last.seconds - first.seconds) / (steps - 1)
        self.watts_each_second = (last.watts - first.watts) / (self.at(steps) - self.start)
        self.demand_each_more = (last.demand_watts - first.demand_watts) / (steps - 1)

    def at(self, steps: int) -> float:
        """When so many of its steps are done."""
        return self.start + steps * self.cost.seconds + self.seconds_each_more * steps * (steps - 1) / 2

    @property
    def end(self) -> float:
        return self.at(self.steps)

    def done(self, now: float) -> int:
        """How many of its steps are done at this time."""
        passed, first, more = now - self.start, self.cost.seconds, self.seconds_each_more
        steps = passed / first
        if more:
            half = first - more / 2
            root = half * half + 2 * more * passed
            steps = (-half + root**0.5) / more if root > 0 else steps
        count = max(0, min(int(steps), self.steps))
        while count < self.steps and self.at(count + 1) <= now:
            count += 1
        while count and self.at(count) > now:
            count -= 1
        return count

    @property
    def demand_watts(self) -> float:
        """Of its last step, without any limit."""
        return self.cost.demand_watts + (self.steps - 1) * self.demand_each_more

    def joules(self, since: float, until: float) -> float:
        """Energy between two times within the run."""
        middle = (since + until) / 2 - self.start
        return (until - since) * (self.cost.watts + self.watts_each_second * middle)
