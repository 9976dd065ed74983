"""Which batch makes the next call? Places for calls are shared in turn, whatever the batches' sizes."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from proxy.batches.run import Run


class Places:
    """So many calls may be under way. A batch asks for one place at a time and stands behind all others again."""

    def __init__(self, count: int) -> None:
        self.count = self.free = count
        self._asking: deque[Run] = deque()

    def ask(self, run: Run) -> bool:
        """Whether there is a place now, counted in `run.granted`; else `run` is woken when there is."""
        if run not in self._asking:
            self._asking.append(run)
        self._give()
        return run.granted > 0

    def give_back(self, count: int) -> None:
        """These are free."""
        self.free += count
        assert self.free <= self.count
        self._give()

    def leave(self, run: Run) -> None:
        """It needs none now: what it has goes to others."""
        if run in self._asking:
            self._asking.remove(run)
        granted, run.granted = run.granted, 0
        self.give_back(granted)

    def _give(self) -> None:
        while self.free and self._asking:
            run = self._asking.popleft()
            self.free -= 1
            run.granted += 1
            run.wake()
