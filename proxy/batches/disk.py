"""What if the disk does not take it? A batch has a day: it waits and tries again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from proxy.batches.record import Batch, BatchTable
    from proxy.batches.run import Run

AGAIN_SECONDS = 30.0
T = TypeVar("T")


class Stopped(Exception):
    """The process ends: the next one goes on from what is on the disk."""


class Disk:
    """Reads and writes for batches under way, in threads."""

    def __init__(self, table: BatchTable, clock: Callable[[], float], log_event: Callable[..., None]) -> None:
        self.closing = False
        self._table = table
        self._clock = clock
        self._log_event = log_event

    async def do(self, run: Run, work: Callable[..., T], *arguments: Any) -> T:
        """`work(*arguments)` in a thread, again and again while it raises OSError. FileNotFoundError: what somebody has
        removed does not come back. Raises Stopped when the process ends first."""
        return await self.keep_trying(run, lambda: asyncio.to_thread(work, *arguments))

    async def keep_trying(self, run: Run, work: Callable[[], Awaitable[T]]) -> T:
        """The same for a coroutine."""
        while True:
            try:
                return await work()
            except FileNotFoundError:
                raise
            except OSError as error:
                self._log_event("batch_disk", batch=run.batch.id, detail=str(error))
            until = self._clock() + AGAIN_SECONDS
            while self._clock() < until:
                if self.closing:
                    raise Stopped
                await run.sleep()

    async def turn(self, run: Run, status: str) -> None:
        """The batch is in another state, and that is on the disk."""
        batch = run.batch
        batch.turn(status, self._clock())
        await self.keep_trying(run, lambda: self._table.save(batch))
        tell(self._log_event, batch)


def tell(log_event: Callable[..., None], batch: Batch) -> None:
    """A line of the log: what a batch has come to."""
    counts = {"total": batch.total, "completed": batch.completed, "failed": batch.failed}
    log_event("batch", batch=batch.id, key=batch.key_name, status=batch.status, **counts)
