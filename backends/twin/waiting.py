"""Requests that are not yet scheduled: on their way through the API server, then waiting in the engine's queue."""

from __future__ import annotations

from collections import deque
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Literal

from backends.twin.decoding import STALE_MAX
from backends.twin.request import State

if TYPE_CHECKING:
    from collections.abc import Iterable

    from backends.twin.request import Request

SchedulingPolicy = Literal["fcfs", "priority"]


class WaitingQueue:
    """First come first served, or lower priority first and then first come. Aborted ones are dropped on the way."""

    def __init__(self, policy: SchedulingPolicy) -> None:
        self.policy: SchedulingPolicy = policy
        self.count = 0
        """Live requests in the engine's queue."""
        self._incoming: deque[Request] = deque()
        """In the order in which the engine's core will see them."""
        self._heap: list[tuple[int, int, Request]] = []

    def arrive(self, request: Request) -> None:
        """It has reached the API server; its `visible_at` is not before that of the last one."""
        self._incoming.append(request)

    @property
    def next_visible_at(self) -> float | None:
        """When the core sees the next request; None if none is on its way."""
        return self._incoming[0].visible_at if self._incoming else None

    def let_in(self, until: float) -> None:
        """Queue those that the core has seen by this time."""
        incoming = self._incoming
        while incoming and incoming[0].visible_at <= until:
            request = incoming.popleft()
            if request.aborted:
                request.state = State.GONE
            else:
                self.add(request)

    def add(self, request: Request) -> None:
        """Queue it. One that was preempted comes before all that arrived after it."""
        request.state = State.WAITING
        priority = request.priority if self.policy == "priority" else 0
        heappush(self._heap, (priority, request.order, request))
        self.count += 1

    def first(self) -> Request | None:
        """The next to be scheduled; it stays queued."""
        heap = self._heap
        while heap and heap[0][2].aborted:
            heappop(heap)
        return heap[0][2] if heap else None

    def pop(self) -> None:
        """Take out what `first` gave."""
        heappop(self._heap)
        self.count -= 1

    def abort(self, request: Request) -> None:
        """A queued request's client left."""
        self.count -= 1
        request.state = State.GONE
        if len(self._heap) > 2 * self.count + STALE_MAX:
            self._heap = [entry for entry in self._heap if not entry[2].aborted]
            heapify(self._heap)

    def victim(self, running: Iterable[Request]) -> Request:
        """Which of these comes back into the queue when room is short: the least urgent, or the one admitted last."""
        if self.policy == "priority":
            return max(running, key=lambda request: (request.priority, request.order))
        *_, last = running
        return last

    def validate(self) -> None:
        """The count is right. AssertionError otherwise."""
        waiting = sum(1 for _, _, request in self._heap if request.state is State.WAITING)
        assert waiting == self.count, (waiting, self.count)
