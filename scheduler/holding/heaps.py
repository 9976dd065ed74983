"""A heap whose entries go out of date, and which forgets those little by little: never many in one event."""

from __future__ import annotations

from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

SPARE_ENTRIES = 256
"""So many may be out of date whatever else there is."""
SIFTED_A_PUSH = 4


class Sifted:
    """The smallest entry that is still true is at hand.

    When it has grown to three times what was true at the last look, all of it is looked through, a few entries with
    each new one: those are taken from the end of the old list, which leaves it a heap.
    """

    __slots__ = ("_heap", "_kept", "_limit", "_old", "_true")

    def __init__(self, is_true: Callable[[Any], bool]) -> None:
        self._true = is_true
        self._heap: list[Any] = []
        self._old: list[Any] = []
        self._kept = 0
        self._limit = SPARE_ENTRIES

    def __len__(self) -> int:
        return len(self._heap) + len(self._old)

    def push(self, entry: Any) -> None:
        """One more; entries compare as tuples do."""
        heap, old = self._heap, self._old
        heappush(heap, entry)
        if old:
            for _ in range(min(SIFTED_A_PUSH, len(old))):
                if self._true(kept := old.pop()):
                    heappush(heap, kept)
                    self._kept += 1
            if not old:
                self._limit = SPARE_ENTRIES + 3 * self._kept
        elif len(heap) > self._limit:
            self._heap, self._old, self._kept = [], heap, 0

    def top(self) -> Any:
        """The smallest that is true; None if there is none."""
        heap, old = self._heap, self._old
        while heap and not self._true(heap[0]):
            heappop(heap)
        while old and not self._true(old[0]):
            heappop(old)
        if not old:
            return heap[0] if heap else None
        return old[0] if not heap or old[0] < heap[0] else heap[0]

    def pop(self) -> None:
        """Forget the one that `top` has just named."""
        heap, old = self._heap, self._old
        heappop(old if old and (not heap or old[0] < heap[0]) else heap)

    def all(self) -> list[Any]:
        """Every entry, in no order."""
        return self._heap + self._old

    def clear(self) -> None:
        """Forget all."""
        self._heap.clear()
        self._old.clear()
