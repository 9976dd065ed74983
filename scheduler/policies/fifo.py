"""`fifo`: first come first served, at most `max_in_flight` calls an engine: the batch-size knob, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from scheduler.policies.base import Choice, Policy, fit_for, oldest_that_fits, with_room

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scheduler.state import EngineState, ReadyCalls


class Fifo(Policy):
    """The oldest call goes to the engine with the fewest calls in flight."""

    name = "fifo"
    options: ClassVar[dict[str, str]] = {"max_in_flight": "calls at once on each engine (default 256)"}

    def __init__(self, options: Mapping[str, object]) -> None:
        max_in_flight = options.get("max_in_flight", 256)
        assert isinstance(max_in_flight, int)
        self.max_in_flight = max_in_flight

    def next(self, ready: ReadyCalls, engines: Sequence[EngineState], now: float) -> Choice | None:
        """The oldest call that fits somewhere, on the emptiest engine; equal ones in the order of their names."""
        room = with_room(engines, now, self.max_in_flight)
        if not room or (call := oldest_that_fits(ready, room)) is None:
            return None
        if len(room) == 1:
            return Choice(call, room[0])
        return Choice(call, min(fit_for(call, room), key=lambda engine: (engine.in_flight, engine.name)))
