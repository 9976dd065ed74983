"""What did calls see lately, and under which limit? Counted in classes, so that looking costs the same at any load."""

from __future__ import annotations

from collections import deque
from math import ceil, exp, log
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

CLASSES = 100.0
"""To a factor e: a class is 1 % wide, and its middle stands for it."""
SLICES = 30
"""Of a horizon, which forget as a whole."""
LATEST_MAX = 4096
SHORTEST_SECONDS = 1e-6


class _Slice:
    __slots__ = ("counts", "missed", "since", "total")

    def __init__(self, since: float) -> None:
        self.since = since
        self.counts: dict[tuple[int, int], int] = {}
        """(Limit in watts of all GPUs, class) → calls."""
        self.total = self.missed = 0


class Answers:
    """Times of one kind (first tokens, or gaps) within a horizon. Adding one costs about 1 µs.

    Under another limit a call would have seen another time: so each is kept with the limit that it was seen under.
    """

    def __init__(self, target_seconds: float | None, horizon_seconds: float, danger_seconds: float) -> None:
        self.target_seconds = target_seconds
        self.total = 0
        """Calls within the horizon, and of them `missed` the target."""
        self.missed = 0
        self.last_at = float("-inf")
        self._horizon = horizon_seconds
        self._danger = danger_seconds
        self._slices: deque[_Slice] = deque()
        self._counts: dict[tuple[int, int], int] = {}
        self._latest: deque[tuple[float, bool]] = deque(maxlen=LATEST_MAX)

    def add(self, at: float, seconds: float, limit_watts: float) -> None:
        """One more. Times never go back."""
        slices = self._slices
        if not slices or at >= slices[-1].since + self._horizon / SLICES:
            slices.append(_Slice(at))
            self._forget(at)
        target, latest = self.target_seconds, slices[-1]
        missed = target is not None and seconds > target
        place = round(limit_watts), int(log(max(seconds, SHORTEST_SECONDS)) * CLASSES // 1)
        for counts in (latest.counts, self._counts):
            counts[place] = counts.get(place, 0) + 1
        latest.total += 1
        latest.missed += missed
        self.total += 1
        self.missed += missed
        self.last_at = at
        self._latest.append((at, missed))

    def look(self, now: float) -> tuple[int, int]:
        """(Calls that missed the target, all calls) of the last `danger_seconds`; what is over the horizon goes."""
        self._forget(now)
        latest, since = self._latest, now - self._danger
        while latest and latest[0][0] <= since:
            latest.popleft()
        return sum(missed for _, missed in latest), len(latest)

    def _forget(self, now: float) -> None:
        slices = self._slices
        while slices and slices[0].since + self._horizon / SLICES <= now - self._horizon:
            gone = slices.popleft()
            self.total -= gone.total
            self.missed -= gone.missed
            for place, count in gone.counts.items():
                if (left := self._counts[place] - count) > 0:
                    self._counts[place] = left
                else:
                    del self._counts[place]

    def quantile(self, share: float, measure: Callable[[float], float]) -> float | None:
        """The value that this share does not exceed, each divided by `measure(limit)` first. None of none."""
        if not self.total:
            return None
        shifts: dict[int, int] = {}
        carried: dict[int, int] = {}
        for (limit, number), count in self._counts.items():
            shift = shifts.get(limit)
            if shift is None:
                shift = shifts[limit] = round(CLASSES * log(measure(float(limit))))
            carried[number - shift] = carried.get(number - shift, 0) + count
        left = ceil(share * self.total)
        for number in sorted(carried):
            left -= carried[number]
            if left <= 0:
                return exp((number + 0.5) / CLASSES)
        raise AssertionError("counts do not add up")

    def validate(self) -> None:
        """Every invariant. AssertionError otherwise."""
        assert sum(self._counts.values()) == self.total == sum(each.total for each in self._slices)
        assert self.missed == sum(each.missed for each in self._slices) <= self.total
        assert len(self._slices) <= SLICES + 1
