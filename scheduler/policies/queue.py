"""Held calls in an order of a policy's own, with a turn for the oldest now and then, so that none starves."""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

from scheduler.policies.base import oldest_that_fits
from scheduler.policies.options import Option

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scheduler.state import CallState, EngineState, ReadyCalls

SPARE_ENTRIES = 64
OLDEST_EVERY = Option(
    16, "each so-manieth call that is sent is the one that has waited longest: the bound on starving", least=2
)
Order = tuple[float, ...]


class HeldQueue:
    """A heap for each model. Entries of calls that are not held any more go when they come up, or when they are the
    most of it.

    One of `oldest_every` calls sent is the oldest: one before which `n` older ones are held is sent by the time of
    `(n + 1) · oldest_every` further calls that its model's engines take, whatever comes meanwhile.
    """

    def __init__(self, oldest_every: int) -> None:
        self.oldest_every = oldest_every
        self._turn = 0
        self._heaps: dict[str | None, list[tuple[Order, int, int, CallState]]] = {}
        self._pushed = 0
        self._size = 0

    def push(self, call: CallState, order: Order, ready: ReadyCalls) -> None:
        """A call is held, and `order` says before which others it runs: the least first, equal ones as they came."""
        if self._size > 2 * ready.count + SPARE_ENTRIES:
            self._clean(ready)
        self._pushed += 1
        self._size += 1
        entry = (order, call.sequence, self._pushed, call)
        heappush(self._heaps.setdefault(call.arrived.model, []), entry)

    def first(self, ready: ReadyCalls, room: Sequence[EngineState]) -> CallState | None:
        """The call that is to run next among those whose model one of these engines serves."""
        if self._turn + 1 >= self.oldest_every:
            return oldest_that_fits(ready, room)
        first: tuple[Order, int, int, CallState] | None = None
        for model in list(self._heaps):
            heap = self._heaps[model]
            while heap and not ready.holds(heap[0][3]):
                heappop(heap)
                self._size -= 1
            if not heap:
                del self._heaps[model]  # models come from clients
            elif (first is None or heap[0] < first) and any(engine.serves(model) for engine in room):
                first = heap[0]
        return None if first is None else first[3]

    def sent(self) -> None:
        """What `first` returned was sent."""
        self._turn = (self._turn + 1) % self.oldest_every

    def _clean(self, ready: ReadyCalls) -> None:
        for model, heap in list(self._heaps.items()):
            left = [entry for entry in heap if ready.holds(entry[3])]
            if left:
                heapify(left)
                self._heaps[model] = left
            else:
                del self._heaps[model]
        self._size = sum(map(len, self._heaps.values()))
