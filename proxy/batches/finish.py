"""How does a batch end? Every line gets a result, and the results become files."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from proxy.batches import lines, results
from proxy.batches.disk import Disk, Stopped
from proxy.batches.files import StoredFile
from proxy.batches.run import KEY_GONE, Ending, Run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from proxy.batches.files import FileStore
    from proxy.batches.record import Batch


class Finisher:
    """The last steps, each of which may have been begun by an earlier process."""

    def __init__(self, files: FileStore, disk: Disk, clock: Callable[[], float]) -> None:
        self._files = files
        self._disk = disk
        self._clock = clock

    async def leave_behind(self, run: Run, ending: Ending) -> None:
        """Say of every line that has no result why it has none."""
        batch = run.batch
        if ending is KEY_GONE:
            batch.errors = [{"code": ending.code, "message": ending.message, "param": None, "line": None}]
        if not ending.code or not batch.total:
            return
        offset, number, ended = 0, 0, False
        while not ended:
            if self._disk.closing:
                raise Stopped
            found, offset, number, ended = await self._disk.do(
                run, lines.read_chunk, run.input_path, batch.endpoint, offset, number, run.done
            )
            data = b"".join(
                [results.failed(batch.id, line.number, line.custom_id, ending.code, ending.message) for line in found]
            )
            if data:
                await self._disk.do(run, run.errors.append, data)
                self._files.charge(batch.key_name, len(data))
                batch.failed += len(found)

    async def make_files(self, run: Run) -> None:
        """The results become files of the batch's key."""
        batch = run.batch
        kinds = ((batch.output_id, run.outputs.path, "output"), (batch.error_id, run.errors.path, "error"))
        made = [
            await self._disk.keep_trying(run, lambda kind=kind: self._make(batch, *kind))  # type: ignore[misc]
            for kind in kinds
        ]
        batch.has_output, batch.has_errors = made
        await self._disk.turn(run, batch.ending)

    async def _make(self, batch: Batch, file_id: str, path: Path, kind: str) -> bool:
        if self._files.find(batch.key_name, file_id) is not None:
            return True
        size = await asyncio.to_thread(_settle, path)
        if not size:
            return False
        now = self._clock()
        name = f"{batch.id}_{kind}.jsonl"
        file = StoredFile(file_id, batch.key_name, name, "batch_output", size, now, now + batch.output_seconds)
        await self._files.adopt(file, path)
        return True


def _settle(path: Path) -> int:
    """Results are complete: see that they are on the disk; an empty file goes. Returns the size."""
    if not path.exists():
        return 0
    with path.open("rb") as file:
        os.fsync(file.fileno())
        size = os.fstat(file.fileno()).st_size
    if not size:
        path.unlink()
    return size
