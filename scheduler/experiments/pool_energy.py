"""What did all engines of a pool use together? Each has windows of its own; where all are known, they are summed."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scheduler.energy.window import Energy

WINDOWS_MAX = 1024
"""Kept of an engine while another one's are waited for; then the oldest are dropped, and its stretch is unknown."""


class Stretch(NamedTuple):
    """Joules of all engines from one time to another; None = unavailable for one of them."""

    start: float
    end: float
    joules: tuple[float | None, ...]
    """GPU, CPU, DRAM."""
    source: str


class PoolEnergy:
    """Windows of single engines in, stretches of all of them out. Times are the windows' own."""

    def __init__(self, engines: Iterable[str]) -> None:
        self._waiting: dict[str, deque[Stretch]] = {name: deque(maxlen=WINDOWS_MAX) for name in engines}

    def add(self, engine: str, start: float, end: float, energy: Energy, source: str) -> list[Stretch]:
        """A window of one of the engines has closed; those of others are of no effect."""
        mine = self._waiting.get(engine)
        if mine is None or end <= start:
            return []
        mine.append(Stretch(start, end, tuple(energy), source))
        found = []
        while all(self._waiting.values()):
            heads = [waiting[0] for waiting in self._waiting.values()]
            first, last = max(head.start for head in heads), min(head.end for head in heads)
            if last > first:
                shares = [_part(head, first, last) for head in heads]
                joules = tuple(
                    None if any(value is None for value in each) else sum(value for value in each if value is not None)
                    for each in zip(*shares, strict=True)
                )
                sources = dict.fromkeys(head.source for head in heads)
                found.append(Stretch(first, last, joules, "+".join(sources)))
            for waiting in self._waiting.values():
                if waiting[0].end <= last:
                    waiting.popleft()
        return found


def _part(of: Stretch, start: float, end: float) -> tuple[float | None, ...]:
    share = (end - start) / (of.end - of.start)
    return tuple(None if value is None else share * value for value in of.joules)
