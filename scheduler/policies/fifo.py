"""`fifo`: first come first served, at most `max_in_flight` calls an engine: the batch-size knob, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from scheduler.policies.base import Choice, Policy, fit_for, oldest_that_fits, with_room
from scheduler.policies.options import Option

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scheduler.state import EngineState, ReadyCalls


class Fifo(Policy):
    """The oldest call goes to the engine with the fewest calls in flight."""

    name = "fifo"
    options: ClassVar[Mapping[str, Option]] = {"max_in_flight": Option(256, "calls at once on each engine", least=1)}

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.max_in_flight: int = options["max_in_flight"]

    def next(self, ready: ReadyCalls, engines: Sequence[EngineState], now: float) -> Choice | None:
        """The oldest call that fits somewhere, on the emptiest engine; equal ones in the order of their names."""
        room = with_room(engines, now, self.max_in_flight)
        if not room or (call := oldest_that_fits(ready, room)) is None:
            return None
        if len(room) == 1:
            return Choice(call, room[0])
        return Choice(call, min(fit_for(call, room), key=lambda engine: (engine.in_flight, engine.name)))
