"""How long may a call be held? As long as the queue allows, or until a later deadline of its own or of its workflow.

Who says that an answer is good for a day does not want to hear after ten minutes that it took too long.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scheduler.state import CallState, ReadyCalls

SPARE_ENTRIES = 64


class Patience:
    """When the time of each held call is up: a heap. Entries of calls that are not held any more go when they come up,
    or when they are the most of it."""

    def __init__(self, ready: ReadyCalls, queue_seconds: float) -> None:
        self.queue_seconds = queue_seconds
        self._ready = ready
        self._ends: list[tuple[float, int, CallState]] = []

    def change(self, queue_seconds: float) -> None:
        """Another limit, also for the calls that are held now."""
        self.queue_seconds = queue_seconds
        self._begin_anew()

    def watch(self, call: CallState) -> None:
        """It is held from now on, or again."""
        if len(self._ends) > 2 * self._ready.count + SPARE_ENTRIES:
            self._begin_anew()  # the call is among them
        else:
            heappush(self._ends, self._entry(call))

    def next_at(self) -> float:
        """When the first of the held calls has no time left. There is one."""
        while not self._ready.holds(self._ends[0][2]):
            heappop(self._ends)
        return self._ends[0][0]

    def over(self, now: float) -> list[CallState]:
        """The held calls whose time is up, the first first."""
        ended: dict[int, CallState] = {}
        while self._ends and self._ends[0][0] <= now:
            _, sequence, call = heappop(self._ends)
            if self._ready.holds(call):
                ended[sequence] = call
        return list(ended.values())

    def forget(self) -> None:
        """No call is held."""
        self._ends.clear()

    def validate(self) -> None:
        """Raise AssertionError if a call could be held for ever, or more is kept than need be."""
        assert {call.sequence for call in self._ready} <= {entry[1] for entry in self._ends}, "held for ever"

    def ends_at(self, call: CallState) -> float:
        """Until when it may be held."""
        until = call.arrived_at + max(self.queue_seconds, (call.arrived.deadline_ms or 0.0) / 1e3)
        deadline = call.node.workflow.deadline_at if call.node is not None else None
        return until if deadline is None else max(until, deadline)

    def _entry(self, call: CallState) -> tuple[float, int, CallState]:
        return self.ends_at(call), call.sequence, call

    def _begin_anew(self) -> None:
        self._ends = [self._entry(call) for call in self._ready]
        heapify(self._ends)
