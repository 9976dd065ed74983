"""What did the simulated cards draw, and what would a driver say of it? Energy over time, read as NVML reads it."""

from __future__ import annotations

from collections import deque

COUNTER_SECONDS = 0.1
"""The total-energy counter moves so often: measured on an H200."""
AVERAGE_SECONDS = 1.0
"""NVML's power usage is a mean over so long on most cards."""
HISTORY_SECONDS = 2.0


class Meter:
    """Energy of all cards together since the start, in joules; readings of the last second."""

    def __init__(self, now: float) -> None:
        self.now = now
        self.joules = 0.0
        self._points: deque[tuple[float, float]] = deque([(now, 0.0)])

    def add(self, until: float, joules: float) -> None:
        """So much was used evenly from the last call's time until this."""
        if until <= self.now:
            return
        self.now = until
        self.joules += joules
        points = self._points
        points.append((until, self.joules))
        oldest = until - HISTORY_SECONDS
        while len(points) > 2 and points[1][0] <= oldest:
            points.popleft()

    def joules_at(self, time: float) -> float:
        """Energy up to this time, at most HISTORY_SECONDS back."""
        later_at, later = self._points[-1]
        for at, joules in reversed(self._points):
            if at <= time:
                share = (time - at) / (later_at - at) if later_at > at else 0.0
                return joules + share * (later - joules)
            later_at, later = at, joules
        return later

    def counter_joules(self) -> float:
        """The total-energy counter: the value at its last tick."""
        return self.joules_at(self.now // COUNTER_SECONDS * COUNTER_SECONDS)

    def average_watts(self) -> float | None:
        """NVML's power usage: the mean of the last second. None before anything was measured."""
        since = max(self._points[0][0], self.now - AVERAGE_SECONDS)
        if since >= self.now:
            return None
        return (self.joules - self.joules_at(since)) / (self.now - since)

    def instant_watts(self) -> float | None:
        """NVML's field 186: the mean of the last 25 ms."""
        since = max(self._points[0][0], self.now - 0.025)
        if since >= self.now:
            return None
        return (self.joules - self.joules_at(since)) / (self.now - since)
