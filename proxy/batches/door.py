"""Files and batches on the data plane: which requests are there, and when does the work begin and end?"""

from __future__ import annotations

import asyncio
import fcntl
import tempfile
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple, TypeVar

from proxy.batches.batches_api import BatchesApi
from proxy.batches.files import FileStore
from proxy.batches.files_api import FilesApi
from proxy.batches.record import STATES, BatchTable
from proxy.batches.runner import Runner
from proxy.errors import RequestFault

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from proxy.batches.config import BatchesConfig
    from proxy.gateway import Gateway
    from proxy.own.router import Router

TICK_SECONDS = 1.0
SWEEP_TICKS = 60
T = TypeVar("T")


def register(
    router: Router,
    gateway: Gateway,
    config: BatchesConfig,
    state_dir: Path | None,
    *,
    clock: Callable[[], float] = time.time,
) -> BatchDoor:
    """Put /v1/files and /v1/batches on the data plane. They answer 503 until `BatchDoor.start`."""
    door = BatchDoor(gateway, config, state_dir, clock)
    files, batches = FilesApi(door), BatchesApi(door)
    for method, pattern, handler in (
        ("POST", "/v1/files", files.upload),
        ("GET", "/v1/files", files.show_all),
        ("GET", "/v1/files/{id}", files.show),
        ("GET", "/v1/files/{id}/content", files.content),
        ("DELETE", "/v1/files/{id}", files.delete),
        ("POST", "/v1/batches", batches.create),
        ("GET", "/v1/batches", batches.show_all),
        ("GET", "/v1/batches/{id}", batches.show),
        ("POST", "/v1/batches/{id}/cancel", batches.cancel),
    ):
        router.add(method, pattern, handler)
    return door


class Counters(NamedTuple):
    """For metrics."""

    batches: dict[str, int]
    """By state."""
    files: int
    bytes_on_disk: int
    lines_in_flight: int


class Work(NamedTuple):
    """What there is once the folder has been read."""

    files: FileStore
    table: BatchTable
    runner: Runner


class BatchDoor:
    """`start` once the gateway listens; `close` before it drains, since batches would keep it busy."""

    def __init__(
        self, gateway: Gateway, config: BatchesConfig, state_dir: Path | None, clock: Callable[[], float]
    ) -> None:
        self.gateway = gateway
        self.config = config
        self.clock = clock
        self._state_dir = state_dir
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._lock: IO[bytes] | None = None
        self._work: Work | None = None
        self._closed = False
        self._opening = False
        self._told_locked = False
        self._ticks = 0
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    # --- life ---

    async def start(self) -> None:
        """Take the folder over and go on with what an earlier process left. OSError if the folder cannot be used.

        While another process still has it, requests get 503, and each tick tries again.
        """
        await self._open()
        if self._closed:
            return
        self._timer = asyncio.get_running_loop().call_later(TICK_SECONDS, self._tick_now)

    def tick(self) -> None:
        """Look at the clock: what has expired, what may be tried again."""
        if self._closed:
            return
        if self._work is None:
            if not self._opening:
                self._opening = True
                _ = self._begin(self._open())
            return
        self._work.runner.tick()
        self._ticks += 1
        if self._ticks % SWEEP_TICKS == 0:
            _ = self._begin(self.sweep())

    async def sweep(self) -> None:
        """Delete files that have expired, forget batches that ended long ago."""
        files, table, _ = self.work
        now = self.clock()
        await files.sweep(now, {batch.input_file_id for batch in table.unfinished()})
        await table.sweep(now)

    async def close(self) -> None:
        """Cancel the calls and leave the batches on the disk as they are; from now on requests get 503."""
        if self._closed:
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._work is not None:
            await self._work.runner.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._lock is not None:
            self._lock.close()
        if self._temporary is not None:
            await asyncio.to_thread(self._temporary.cleanup)

    # --- for the handlers ---

    @property
    def work(self) -> Work:
        """RequestFault 503 while there is none."""
        if self._closed:
            raise RequestFault(503, "draining", "the gateway is shutting down; try another instance")
        if self._work is None:
            message = "another process still has the batches of this state_dir; try again later"
            raise RequestFault(503, "batches_locked", message)
        return self._work

    async def whole(self, work: Coroutine[Any, Any, T]) -> T:
        """Do what must not be left half done, even if the client leaves."""
        return await asyncio.shield(self._begin(self._on_disk(work)))

    def counters(self) -> Counters:
        """What there is now."""
        if self._work is None:
            return Counters(dict.fromkeys(STATES, 0), 0, 0, 0)
        files, table, runner = self._work
        return Counters(table.by_state(), len(files), files.bytes_total, runner.in_flight)

    # --- inside ---

    async def _on_disk(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            return await work
        except OSError as error:
            self.gateway.log.event("batch_disk", detail=str(error))
            raise RequestFault(503, "disk_failed", "the gateway's disk does not take it; try again later") from None

    def _begin(self, work: Coroutine[Any, Any, T]) -> asyncio.Future[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, OSError):
            self.gateway.log.event("batch_disk", detail=str(error))
        elif error is not None and not isinstance(error, RequestFault):
            self.gateway.faults.report("batches", error)

    def _tick_now(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(TICK_SECONDS, self._tick_now)
        self.tick()

    async def _open(self) -> None:
        try:
            work = await asyncio.to_thread(self._take_folder)
        finally:
            self._opening = False
        if work is None or self._closed:
            return
        self._work = work
        for batch in work.table.unfinished():
            work.runner.begin(batch)

    def _take_folder(self) -> Work | None:
        if self._state_dir is None:
            if self._temporary is None:
                self._temporary = tempfile.TemporaryDirectory(prefix="joulegate-", ignore_cleanup_errors=True)
            base = Path(self._temporary.name)
        else:
            base = self._state_dir
            base.mkdir(parents=True, exist_ok=True)
        lock = (base / "batches.lock").open("wb")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # two processes would do every line twice
        except BlockingIOError:
            lock.close()
            if not self._told_locked:  # once: the other process may drain for long
                self.gateway.log.event("batches_locked", path=str(base))
            self._told_locked = True
            return None
        files = FileStore(base / "files", self.config)
        table = BatchTable(base / "batches", self.config)
        try:
            files.load(self._unreadable)
            table.load(self._unreadable)
        except OSError:
            lock.close()  # or the next tick would take this process itself for another one
            raise
        self._lock = lock
        runner = Runner(self.gateway, files, table, self.config, self.clock, self._key_exists)
        return Work(files, table, runner)

    def _unreadable(self, path: Path, error: Exception) -> None:
        self.gateway.log.event("batch_file_unreadable", path=str(path), detail=str(error))

    def _key_exists(self, name: str) -> bool:
        keys = self.gateway.admission.keys
        return name in keys.names if keys.configured else name == "-"
