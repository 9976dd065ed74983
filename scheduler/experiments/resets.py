"""Which prefix caches are to be emptied now, and were they? Each block begins with empty ones, where that is wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class CacheResets:
    """Of one experiment. A cache that could not be emptied is tried again until the wash-out is over."""

    def __init__(self, engines: Iterable[str], block: int | None) -> None:
        self._engines = tuple(engines)
        self._block = block
        """The last whose caches were asked for; at the start of a process that took the experiment up: the present."""
        self._waiting: dict[str, bool] = {}
        """Engines whose caches are not empty, as far as is known; True: it was asked."""
        self._judged = block is not None

    def due(self, block: int, *, in_washout: bool) -> list[str]:
        """Engines whose caches are to be emptied now."""
        if block != self._block:
            self._block, self._judged = block, False
            self._waiting = dict.fromkeys(self._engines, False)
        if not in_washout:
            return []
        found = [name for name, asked in self._waiting.items() if not asked]
        for name in found:
            self._waiting[name] = True
        return found

    def answered(self, engine: str, *, done: bool) -> None:
        """What became of it."""
        if engine in self._waiting:
            if done:
                del self._waiting[engine]
            else:
                self._waiting[engine] = False

    def judged(self, *, in_washout: bool) -> bool | None:
        """Once a block, when its wash-out is over: whether its caches were all emptied. None: not now."""
        if in_washout or self._judged:
            return None
        self._judged = True
        return not self._waiting
