"""`passthrough`: everything at once, round robin. Stock vLLM behind a proxy; the baseline of every comparison."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from scheduler.policies.base import Choice, Policy, fit_for, oldest_that_fits, with_room

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scheduler.state import EngineState, ReadyCalls


class Passthrough(Policy):
    """No limit but the engine's own `max_in_flight`, which guards sockets and memory."""

    name = "passthrough"

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._last_engine = ""

    def next(self, ready: ReadyCalls, engines: Sequence[EngineState], now: float) -> Choice | None:
        """The oldest call, on the next engine after the one used last, in the order of their names."""
        room = with_room(engines, now, sys.maxsize)
        if not room or (call := oldest_that_fits(ready, room)) is None:
            return None
        if len(room) == 1:
            return Choice(call, room[0])
        # after the last one first, then around: True sorts behind False
        next_one = min(fit_for(call, room), key=lambda engine: (engine.name <= self._last_engine, engine.name))
        self._last_engine = next_one.name
        return Choice(call, next_one)
