"""What can wait while a large submission is worked on: the garbage collector's rounds, and freeing what was read."""

from __future__ import annotations

import asyncio
import gc
from typing import Any


class Bulk:
    """While it lasts, the process's collector does not run: it would look through a hundred thousand new objects, none
    of which can go. `end` lets it run, and lets go of `kept`, in a later turn of the loop: behind the answer.

    Several at once share the pause; it ends with the one that began it, so that they cannot put the collector off for
    ever.
    """

    def __init__(self) -> None:
        self.kept: Any = None
        self._paused = self._over = False

    def begin(self) -> None:
        """From now on; from any thread, where it may come too late."""
        if gc.isenabled():
            self._paused = True
            gc.disable()
        if self._over:
            self._end()

    def end(self) -> None:
        """The answer has been written."""
        asyncio.get_running_loop().call_soon(self._end)

    def _end(self) -> None:
        self._over = True
        self.kept = None
        if self._paused:
            self._paused = False
            gc.enable()
