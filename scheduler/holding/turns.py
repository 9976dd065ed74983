"""Whose turn is it, of the calls that are to go now and find no room? Slack first, but no key far beyond its share.

Keys that have calls waiting are served in proportion to their weights, as far as `apart_seconds` of work (by a key of
weight 1): among those that are no further ahead, the call with the earliest order goes. So a key that floods the engine
delays the others by a bounded amount of work, whatever deadlines it claims, and a lone key costs nothing.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from scheduler.state import CallState

APART_SECONDS = 2.0


class Sent(NamedTuple):
    """A call that is to go now."""

    order: float
    """The earliest first: its deadline, or what stands for one."""
    sequence: int
    call: CallState
    rule: str


def alike(key: str) -> float:
    """The weight of keys where none is configured."""
    return 1.0


class Turns:
    """One engine's calls that are to go now."""

    def __init__(self, weight_of: Callable[[str], float] = alike, apart_seconds: float = APART_SECONDS) -> None:
        self.apart_seconds = apart_seconds
        self._weight_of = weight_of
        self._heaps: dict[str, list[Sent]] = {}
        """Of each key that has calls here."""
        self.served: dict[str, float] = {}
        """Seconds of work over weight, of keys that wait, and of those that would be ahead if they came back."""

    def push(self, sent: Sent) -> None:
        """One more. A key that did not wait begins where the one that had least is."""
        key = sent.call.arrived.key
        heap = self._heaps.get(key)
        if heap is None:
            least = self._least()
            self._heaps[key] = heap = []
            self.served[key] = max(self.served.get(key, least), least)
        heappush(heap, sent)

    def first(self, queued: Container[CallState]) -> Sent | None:
        """Whose turn it is; those that are not `queued` any more are forgotten."""
        heaps = self._heaps
        for key in list(heaps):
            heap = heaps[key]
            while heap and heap[0].call not in queued:
                heappop(heap)
            if not heap:
                self._leave(key)
        if len(heaps) < 2:
            return next(iter(heaps.values()))[0] if heaps else None
        most = self._least() + self.apart_seconds
        return min(heap[0] for key, heap in heaps.items() if self.served[key] <= most)

    def serve(self, call: CallState, work_seconds: float) -> None:
        """It goes."""
        key = call.arrived.key
        if key in self._heaps:
            self.served[key] += work_seconds / self._weight_of(key)

    def clear(self) -> None:
        """Nobody waits."""
        self._heaps.clear()
        self.served.clear()

    def _least(self) -> float:
        return min((self.served[key] for key in self._heaps), default=0.0)

    def _leave(self, key: str) -> None:
        del self._heaps[key]
        least = self._least()
        for known, served in list(self.served.items()):
            if known not in self._heaps and (served <= least or not self._heaps):
                del self.served[known]

    @property
    def entries(self) -> int:
        """Calls, those included that went another way."""
        return sum(map(len, self._heaps.values()))

    def validate(self, queued: Container[CallState]) -> None:
        """AssertionError for what does not hold."""
        assert self._heaps.keys() <= self.served.keys() and all(self._heaps.values())
        calls = {sent.call for heap in self._heaps.values() for sent in heap}
        assert all(call in calls for call in queued), "a call that is to go has no turn"  # type: ignore[attr-defined]
