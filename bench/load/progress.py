"""How far is it, and how long will it take? One line, from the calls that are over."""

from __future__ import annotations

import time

from bench.demo_screen import Screen


class Progress:
    """Of plays one after the other, `total` of them."""

    def __init__(self, total: int) -> None:
        self.screen = Screen()
        self._total = total
        self._number = 0
        self._label = ""
        self._began = time.monotonic()
        self._share = 0.0

    def next(self, label: str) -> None:
        """The next play begins."""
        self._number += 1
        self._label = f"{self._number}/{self._total} {label}"
        self.at(0.0, "")

    def at(self, share: float, news: str) -> None:
        """So much of this play is done."""
        share = min(max(share, 0.0), 1.0)
        whole = (self._number - 1 + share) / self._total
        self.screen.progress(self._label, share, "  ".join(part for part in (news, self._left(whole)) if part))

    def done(self, news: str) -> None:
        """This play is over."""
        self.screen.settle(self._label, news)

    def _left(self, whole: float) -> str:
        elapsed = time.monotonic() - self._began
        if whole < 0.02 or elapsed < 1:
            return ""
        left = round(elapsed / whole * (1 - whole))
        return f"{left // 60}:{left % 60:02d} left"
