"""One batch under way: which lines wait, which are called, which have answers, and when is it over?"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from proxy.batches.record import RESULT_SUFFIXES
from proxy.batches.results import Results
from proxy.batches.verdict import judge

if TYPE_CHECKING:
    from pathlib import Path

    from proxy.batches.lines import Line
    from proxy.batches.record import Batch
    from proxy.inner import InnerAnswer, InnerCall

WIDEN_SECONDS = 30.0
"""After a refusal for want of room, so long with fewer calls at once."""


class Ending(NamedTuple):
    """How a batch ends, and what is said of lines that have no result then."""

    status: str
    code: str
    message: str


COMPLETED = Ending("completed", "", "")
CANCELLED = Ending("cancelled", "batch_cancelled", "the batch was cancelled before this line was answered")
EXPIRED = Ending("expired", "batch_expired", "the batch's window ended before this line was answered")
FULL = Ending("completed", "storage_full", "no room was left for results (batches.key_bytes, batches.total_bytes)")
KEY_GONE = Ending("failed", "key_removed", "the API key of this batch does not exist any more")


@dataclass(slots=True)
class Task:
    """A line to be called, and how often it has been."""

    line: Line
    tries: int = 0


class Run:
    """The runner's loop for this batch reads and calls lines; answers and the clock come from outside and wake it."""

    def __init__(self, batch: Batch, input_path: Path, folder: Path, width: int) -> None:
        self.batch = batch
        self.input_path = input_path
        self.outputs, self.errors = (Results(folder / f"{batch.id}{suffix}") for suffix in RESULT_SUFFIXES)
        self.done = bytearray()
        """By line number: whether it has a result on the disk."""
        self.waiting: deque[Task] = deque()
        self.calls: dict[int, InnerCall] = {}
        """By line number."""
        self.answers: list[tuple[Task, InnerAnswer]] = []
        """Not yet on the disk; each holds its place until it is."""
        self.granted = 0
        """Places for calls that it has and does not use yet."""
        self.offset = self.number = 0
        self.all_read = False
        self.key_gone = self.full = False
        self._wake = asyncio.Event()
        self._widest = self._width = width
        self._rests_until = self._widens_at = 0.0

    # --- waiting ---

    def wake(self) -> None:
        """Something has happened that it may wait for."""
        self._wake.set()

    async def sleep(self) -> None:
        """Until `wake`; at once if that was called since the last time."""
        await self._wake.wait()
        self._wake.clear()

    # --- what is next? ---

    def ending(self, now: float) -> Ending | None:
        """How it ends, if it ends now."""
        if self.key_gone:
            return KEY_GONE
        if self.batch.status == "cancelling":
            return CANCELLED
        if self.all_read and not (self.waiting or self.calls or self.answers):
            return COMPLETED
        if now >= self.batch.expires_at:
            return EXPIRED
        return FULL if self.full else None

    def may_call(self, now: float) -> bool:
        """Whether a line may be called, if there is a place for it."""
        if now >= self._widens_at and self._width < self._widest:
            self._width = min(self._widest, self._width + max(1, self._width // 2))
            self._widens_at = now + WIDEN_SECONDS
        return bool(self.waiting) and now >= self._rests_until and len(self.calls) < self._width

    # --- answers ---

    def take_answer(self, task: Task, answer: InnerAnswer, attempts: int, now: float) -> bool:
        """A call has ended; whether that was its last. Else its line waits again."""
        task.tries += 1
        again = judge(answer, task.tries, attempts)
        if again is None:
            self.answers.append((task, answer))
            return True
        self._rests_until = max(self._rests_until, now + again.seconds)
        if again.refused:
            # No place in the gateway or under the key's limits: fewer at once, and this line is the next.
            task.tries -= 1
            self._width = max(1, len(self.calls))
            self._widens_at = now + WIDEN_SECONDS
            self.waiting.appendleft(task)
        else:
            self.waiting.append(task)
        return False
