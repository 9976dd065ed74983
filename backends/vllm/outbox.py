"""What is written in one turn of the event loop goes to the sockets together at its end."""

from __future__ import annotations

import asyncio

AT_ONCE_BYTES = 65_536
"""So much is written at once: its transport may want to pause whoever reads more, before this turn reads it."""


class Outbox:
    """Writes wait for the end of the turn in which they are asked for, in their order.

    A write wakes whoever sleeps on the other end, and to wake a process on another core costs more than all else of a
    write. Done one behind the other, most of them find it awake: a quarter of a call's CPU under load. (uvloop
    did so itself up to 0.22.) A turn is short, and what waits in it is small.
    """

    __slots__ = ("_loop", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: list[tuple[asyncio.Transport, bytes]] = []

    def write(self, transport: asyncio.Transport, data: bytes) -> None:
        """Write to this transport at the end of the turn; not at all if it is closed by then."""
        if len(data) >= AT_ONCE_BYTES:
            self.flush()
            if not transport.is_closing():
                transport.write(data)
            return
        waiting = self._waiting
        if not waiting:
            self._loop.call_soon(self.flush)
        waiting.append((transport, data))

    def flush(self) -> None:
        """Write all of it now: before a transport is closed, or its buffer looked at."""
        waiting, self._waiting = self._waiting, []
        for transport, data in waiting:
            if not transport.is_closing():
                transport.write(data)
