"""What are the usual and the upper values of something seen again and again?

The last 64 values, kept sorted. Of n exchangeable values the next one stays below the k-th smallest with probability
k / (n + 1), whatever their distribution: that is the whole justification, and it needs no parameters to be tuned.
The window lets it follow a drift; 64 are enough for a 0.9 quantile and cost 1 KiB and a microsecond.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, insort
from collections import OrderedDict
from math import ceil
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

WINDOW_VALUES = 64
UPPER_QUANTILE = 0.9
KeyT = TypeVar("KeyT")
EntryT = TypeVar("EntryT")


_UPPER_PLACES = tuple(min(size, ceil(UPPER_QUANTILE * (size + 1))) - 1 for size in range(WINDOW_VALUES + 1))
SURE_FROM_VALUES = ceil(UPPER_QUANTILE / (1.0 - UPPER_QUANTILE) - 1e-9)
"""With fewer values than these 9 there is no k with k / (n + 1) large enough."""


class RecentQuantiles:
    """Median and upper quantile of the last values; both 0 before there is one."""

    __slots__ = ("_oldest", "_ring", "_sorted", "count", "median", "upper")

    def __init__(self) -> None:
        self.count = 0
        """Values seen in all."""
        self.median = 0.0
        """The middle value, of two middle ones the larger."""
        self.upper = 0.0
        """The smallest value that the next one stays below with the asked-for probability; the largest, where there are
        too few for that."""
        self._oldest = 0
        self._ring = array("d")
        self._sorted = array("d")

    def add(self, value: float) -> None:
        """One more value; the oldest of a full window goes."""
        self.count += 1
        ordered, ring = self._sorted, self._ring
        if len(ring) < WINDOW_VALUES:
            ring.append(value)
        else:
            oldest = self._oldest
            del ordered[bisect_left(ordered, ring[oldest])]
            ring[oldest] = value
            self._oldest = (oldest + 1) % WINDOW_VALUES
        insort(ordered, value)
        size = len(ordered)
        self.median = ordered[size // 2]
        self.upper = ordered[_UPPER_PLACES[size]]

    def validate(self) -> None:
        """The sorted window holds the window. AssertionError otherwise."""
        assert sorted(self._ring) == list(self._sorted)
        assert len(self._ring) == min(self.count, WINDOW_VALUES)


class LruTable(Generic[KeyT, EntryT]):
    """A table of at most `entries_max` entries; the one not used for longest makes room for a new one."""

    __slots__ = ("_entries", "_make", "entries_max")

    def __init__(self, entries_max: int, make: Callable[[], EntryT]) -> None:
        self.entries_max = entries_max
        self._make = make
        self._entries: OrderedDict[KeyT, EntryT] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: KeyT) -> EntryT | None:
        """The entry, which now counts as used."""
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
        return entry

    def peek(self, key: KeyT) -> EntryT | None:
        """The entry, which is kept no longer for it."""
        return self._entries.get(key)

    def take(self, key: KeyT) -> EntryT:
        """The entry, made if there is none."""
        entry = self.get(key)
        if entry is None:
            entry = self._entries[key] = self._make()
            if len(self._entries) > self.entries_max:
                self._entries.popitem(last=False)
        return entry
