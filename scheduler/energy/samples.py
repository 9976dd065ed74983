"""What did the meter say between two edges? Energy at an edge lies between two samples."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scheduler.energy.window import Energy

if TYPE_CHECKING:
    from scheduler.energy.window import MeterSample, Source, Why

GAP_SECONDS_MAX = 1.5
"""Samples come each 0.1 to 1 s; a longer pause makes a window that is not whole."""
MOVED_SHARE = 0.005
"""A limit that moves less than this has not moved."""


class Reading:
    """Of one window: what was seen from its first edge on, in O(1) memory."""

    __slots__ = ("limit_high", "limit_low", "limit_sum", "limits", "reset", "source", "throttled", "why")

    def __init__(self) -> None:
        self.limit_sum = self.limit_high = 0.0
        self.limit_low = float("inf")
        self.limits = 0
        self.throttled: bool | None = None
        self.source: Source = "measured"
        self.reset = [False, False, False]
        """Counters that went back, by component: their difference over the window says nothing."""
        self.why: set[Why] = set()

    def take(self, sample: MeterSample, before: MeterSample | None) -> None:
        """One more sample."""
        if before is not None and sample.at - before.at > GAP_SECONDS_MAX:
            self.why.add("samples_missing")
        if sample.state != "ok" or sample.joules.gpu is None:
            self.why.add("meter_unavailable")
        if before is not None:
            for place, (one, other) in enumerate(zip(before.joules, sample.joules, strict=True)):
                if one is not None and other is not None and other < one:
                    self.reset[place] = True
            if self.reset[0]:
                self.why.add("meter_reset")
        limit = sample.limit_watts
        if limit is not None:
            self.limit_sum += limit
            self.limits += 1
            self.limit_low, self.limit_high = min(self.limit_low, limit), max(self.limit_high, limit)
        if sample.throttled is not None:
            self.throttled = bool(self.throttled) or sample.throttled
        self.source = sample.source

    def used(self, start: Energy, end: Energy) -> Energy:
        """Between the window's edges. Missing where a counter is missing at one of them, or went back."""
        return Energy(
            *(
                None if one is None or other is None or reset or other < one else other - one
                for one, other, reset in zip(start, end, self.reset, strict=True)
            )
        )

    @property
    def limit_watts(self) -> float | None:
        """Mean of the enforced limit."""
        return self.limit_sum / self.limits if self.limits else None

    @property
    def limit_moved(self) -> bool:
        """Whether it was not the same all the time."""
        return bool(self.limits) and self.limit_high - self.limit_low > MOVED_SHARE * self.limit_high


def joules_at(at: float, before: MeterSample, after: MeterSample) -> Energy:
    """Counters at a time between two samples (beyond them: the nearer one's). A counter that is missing in one, or that
    went back between them, is missing."""
    span = after.at - before.at
    share = min(max((at - before.at) / span, 0.0), 1.0) if span > 0 else 1.0
    return Energy(*(_between(one, other, share) for one, other in zip(before.joules, after.joules, strict=True)))


def _between(one: float | None, other: float | None, share: float) -> float | None:
    if one is None or other is None or other < one:
        return None
    return one + share * (other - one)
