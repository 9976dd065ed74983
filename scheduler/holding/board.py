"""Which workflow can wait no longer, given the company in which it will run? O(a few) an event, however many wait.

In company each of a workflow's steps is longer by what the others compute in it. So its time to the end is

    its own steps' fixed time + its own work + the others' prompts + Σ others' work · min(1, its way / their way)

(a workflow whose way is longer is only part done when this one ends). Workflows stand in buckets by the length of their
way, half an octave each, and per bucket two sums are kept; within a bucket company is the same for all, so that the one
with the earliest (deadline - fixed time) is the most urgent.
"""

from __future__ import annotations

from math import floor, log2, sqrt
from typing import TYPE_CHECKING

from scheduler.holding.heaps import Sifted

if TYPE_CHECKING:
    from scheduler.holding.arrivals import Newcomers
    from scheduler.holding.flow import Flow

BUCKETS_AN_OCTAVE = 2
WAY_LEAST = 1e-3
SOON_SECONDS = 2e-3
"""Who can wait no longer than this is due: while nothing comes less is expected, and latest starts move with that."""
DUE_AT_ONCE = 32
"""Further ones are named when it is asked again: to begin a workflow takes time, in which nothing else happens."""


def bucket_of(seconds: float) -> int:
    """Where a way of this length stands."""
    return floor(BUCKETS_AN_OCTAVE * log2(max(seconds, WAY_LEAST)))


def middle_of(bucket: int) -> float:
    """Its usual length."""
    return float(2.0 ** ((bucket + 0.5) / BUCKETS_AN_OCTAVE))


class Sums:
    """Work by the length of the way, of some of an engine's workflows."""

    def __init__(self) -> None:
        self.work: dict[int, float] = {}
        self.rate: dict[int, float] = {}
        self.count: dict[int, int] = {}
        self.buckets: list[int] = []
        self.flows = 0

    def add(self, bucket: int, work: float, rate: float) -> None:
        """A workflow."""
        count = self.count.get(bucket, 0)
        if not count:
            self.buckets.append(bucket)
            self.buckets.sort()
            self.work[bucket] = self.rate[bucket] = 0.0
        self.count[bucket] = count + 1
        self.work[bucket] += work
        self.rate[bucket] += rate
        self.flows += 1

    def remove(self, bucket: int, work: float, rate: float) -> None:
        """It is none of them any more."""
        count = self.count[bucket] - 1
        self.flows -= 1
        if count:
            self.count[bucket] = count
            self.work[bucket] = max(0.0, self.work[bucket] - work)
            self.rate[bucket] = max(0.0, self.rate[bucket] - rate)
        else:  # nothing is left behind of what rounding makes of sums
            del self.count[bucket], self.work[bucket], self.rate[bucket]
            self.buckets.remove(bucket)

    def company(self, bucket: int, way: float) -> float:
        """What all of them together compute during a way of this bucket."""
        total = 0.0
        for other in self.buckets:
            total += self.work[other] if other <= bucket else way * self.rate[other]
        return total


class Board:
    """One engine's workflows."""

    def __init__(self) -> None:
        self.present = Sums()
        self.begun = Sums()
        """The urgent ones alone."""
        self.prefill = self.urgent_prefill = 0.0
        self._heaps: dict[int, Sifted] = {}
        self._count = 0

    def place(self, flow: Flow, tail: float, fixed: float) -> None:
        """Its numbers have changed. `tail`: its way alone; `fixed`: of that, the steps' own time."""
        self.leave(flow)
        bucket = bucket_of(tail)
        work = max(0.0, flow.left_marginal - flow.prefill)
        sums = bucket, work, work / max(tail, WAY_LEAST)
        flow.present_sums = sums
        self.present.add(*sums)
        if flow.urgent:
            flow.begun_sums = sums
            self.begun.add(*sums)
        flow.version += 1
        if flow.held and not flow.urgent:
            self._count += 1
            heap = self._heaps.get(bucket)
            if heap is None:
                heap = self._heaps[bucket] = Sifted(lambda entry: entry[2] == entry[3].version)
            heap.push((flow.deadline - fixed, self._count, flow.version, flow))

    def leave(self, flow: Flow) -> None:
        """It has no calls here any more."""
        flow.version += 1
        if flow.present_sums is not None:
            self.present.remove(*flow.present_sums)
            flow.present_sums = None
        if flow.begun_sums is not None:
            self.begun.remove(*flow.begun_sums)
            flow.begun_sums = None

    def due(
        self, now: float, margin: float, pad_seconds: float, prefill: float, most: float, newcomers: Newcomers,
        burst: float = 0.0,
    ) -> tuple[list[Flow], float]:  # fmt: skip
        """The workflows that can wait no longer, and when the next one will be.

        `margin`: so much longer than predicted all may take. `prefill`: seconds of prompts that run already. `most`: so
        many sequences at once. `newcomers`: what else is to be expected, and `burst`: by how many standard deviations
        more of it may come than usual.
        """
        sums, heaps = self.present, self._heaps
        due: list[Flow] = []
        wake = float("inf")
        share = min(1.0, most / sums.flows) if sums.flows else 1.0
        prefill += share * self.prefill
        arriving, squares, waits = newcomers
        squares *= burst * burst
        below, above = 0.0, sum(sums.rate.values())
        for bucket in sums.buckets:
            below += sums.work[bucket]
            above -= sums.rate[bucket]
            heap = heaps.get(bucket)
            if heap is None:
                continue
            way = middle_of(bucket)
            company = share * (below + way * max(above, 0.0)) + prefill
            over = way + company - waits
            if over > 0.0:  # some of those that come meanwhile cannot wait until it has ended
                company += arriving * over * over / (2.0 * (way + company))
            longer = (1.0 + margin) * company + margin * way + pad_seconds + sqrt(squares * (way + company))
            while (entry := heap.top()) is not None:
                if entry[0] - longer > now + SOON_SECONDS:
                    wake = min(wake, entry[0] - longer)
                    break
                if len(due) == DUE_AT_ONCE:
                    return due, now
                heap.pop()
                due.append(entry[3])
            if not heap:
                del heaps[bucket]
        return due, wake

    @property
    def heaps(self) -> int:
        """How many there are."""
        return len(self._heaps)

    @property
    def entries(self) -> int:
        """Of all heaps, those out of date included."""
        return sum(map(len, self._heaps.values()))

    def validate(self, flows: list[Flow]) -> None:
        """AssertionError for what does not hold."""
        for sums, mine in ((self.present, "present_sums"), (self.begun, "begun_sums")):
            entries = [entry for flow in flows if (entry := getattr(flow, mine)) is not None]
            assert sums.flows == len(entries) == sum(sums.count.values())
            assert sums.buckets == sorted(sums.count) == sorted(sums.work) == sorted(sums.rate)
            for bucket in sums.buckets:
                there = [entry for entry in entries if entry[0] == bucket]
                assert sums.count[bucket] == len(there)
                total = sum(entry[1] for entry in there)
                assert abs(sums.work[bucket] - total) <= 1e-6 * (1.0 + total)
        for flow in flows:
            assert flow.begun_sums is None or flow.urgent
            assert (flow.present_sums is not None) == flow.present
