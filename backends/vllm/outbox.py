"""When is a write done: at once, or with all others of the same turn of the event loop?"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

AT_ONCE_BYTES = 65_536
"""So much is written at once: its transport may want to pause whoever reads more, before this turn reads it."""
BUSY_GAP_SECONDS = 100e-6
BUSY_WRITES = 8
"""So many writes in a row, each so soon after the last: the loop is busy, and its turns have many writes."""
TURN_WRITES_MIN = 4
"""A turn with fewer writes than this ends the gathering."""


class Outbox:
    """Writes of a busy event loop wait for the end of their turn and are done in a row, in their order.

    A write wakes whoever sleeps on the other end, and to wake a process on another core costs more than all else of a
    write. In a row, most of them find it awake: a quarter of a call's CPU under load.
    (uvloop did so itself up to 0.22.)
    In a loop that is not busy it would cost a turn more and save nothing: there, writes are done at once.
    """

    __slots__ = ("_gathering", "_last_at", "_loop", "_soon", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: list[tuple[asyncio.Transport, bytes]] = []
        self._gathering = False
        self._last_at = 0.0
        self._soon = 0
        """Writes in a row that came soon after the one before."""

    def write(self, transport: asyncio.Transport, data: bytes) -> None:
        """Write to this open transport now, or at the end of the turn unless it is closed by then."""
        if self._gathering and len(data) < AT_ONCE_BYTES:
            if not self._waiting:
                self._loop.call_soon(self._end_turn)
            self._waiting.append((transport, data))
            return
        if self._waiting:
            self.flush()
        transport.write(data)
        now = monotonic()
        if now - self._last_at > BUSY_GAP_SECONDS:
            self._soon = 0
        else:
            self._soon += 1
            if self._soon >= BUSY_WRITES:
                self._gathering = True
        self._last_at = now

    def flush(self) -> None:
        """Write all that waits now: before a transport is closed, or its buffer looked at."""
        waiting = self._waiting
        if waiting:
            self._waiting = []
            for transport, data in waiting:
                if not transport.is_closing():
                    transport.write(data)

    def _end_turn(self) -> None:
        if len(self._waiting) < TURN_WRITES_MIN:
            self._gathering = False
            self._soon = 0
        self.flush()
