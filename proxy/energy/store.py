"""The energy ledger on disk: written by one thread, off everybody's way; read by the same thread."""

from __future__ import annotations

import queue
import sqlite3
import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, NamedTuple

from proxy.energy.store_file import CALLS, ENGINE_FIRST, MINUTE, SOURCE_CODES, UNKNOWN, Gap, Place, StoreFile
from proxy.energy.store_query import ask

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from proxy.energy.config import EnergyConfig
    from proxy.energy.store_query import Answer, Question
    from scheduler.energy.bill_accounts import Change
    from scheduler.energy.bill_engine import EngineChange

FILE_NAME = "energy.db"
MEMORY_BYTES = 67_108_864
"""Of a ledger in memory."""
PENDING_MAX = 200_000
"""Numbers that wait for the disk; further ones are lost, which is said (`lost_microjoules`, and a gap)."""
QUESTIONS_MAX = 32
"""Waiting at once; over it StoreBusy."""
TIDY_SECONDS = 60.0
HEARTBEAT_SECONDS = 1.0
"""So often the file says that this process lives: what comes after its last word is the gap."""
DAY_SECONDS = 86_400.0


class StoreBusy(Exception):
    """Too many questions are waiting; ask again later."""


class StoreClosed(Exception):
    """The ledger is closed, or its thread could not go on."""


class StoreState(NamedTuple):
    """For metrics and the state. `fault`: why nothing can be written now; None: all is well."""

    path: str | None
    bytes: int
    pending: int
    written: int
    """Numbers written since the start."""
    lost_microjoules: int
    gaps: int
    fault: str | None


class EnergyStore:
    """`add` from the event loop costs a few µs an account; everything else happens on the thread."""

    def __init__(
        self,
        path: Path | None,
        config: EnergyConfig,
        on_event: Callable[..., None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Open it; `path` None: in memory. A file that is broken is moved aside, and `on_event` is told.

        `on_event(name, **details)` is called in the constructor and on the thread. Raises StoreFault where there can be
        no ledger. The constructor reads the whole file once: some 100 ms for 100 MB.
        """
        self._config = config
        self._on_event = on_event
        self._clock = clock
        self._pending: dict[Place, int] = {}
        self._booked: float | None = None
        self._lock = threading.Lock()
        self._questions: queue.Queue[tuple[Question, Future[Answer]]] = queue.Queue(QUESTIONS_MAX)
        self._wake, self._urgent = threading.Event(), threading.Event()
        """There is something to do; it cannot wait."""
        self._closing = False
        self._closed = threading.Event()
        self._written = self._lost = self._bytes = 0
        self._fault: str | None = None
        self._fault_since = 0.0
        self._file: StoreFile | None = None
        self._path = path
        self._gaps = 0
        opened: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(opened,), name="energy-store", daemon=True)
        self._thread.start()
        opened.result()

    # --- called from anywhere ---

    def add(
        self, changes: Iterable[Change], engines: Iterable[EngineChange], booked_unix_seconds: float | None = None
    ) -> None:
        """Keep what `Bill.drain` gave, in the minute that it is now. Never waits for the disk.

        `booked_unix_seconds`: the end of the last window that is in it.
        """
        bucket = int(self._clock() // MINUTE * MINUTE)
        with self._lock:
            if booked_unix_seconds is not None:
                self._booked = max(self._booked or 0.0, booked_unix_seconds)
            for change in changes:
                for source, row in change.microjoules.items():
                    for component, value in enumerate(row):
                        if value:
                            self._put(Place(bucket, *change.name, SOURCE_CODES[source], component), value)
                if change.calls:
                    self._put(Place(bucket, *change.name, 0, CALLS), change.calls)
                if change.unknown_seconds:
                    code = SOURCE_CODES["unavailable"]
                    self._put(Place(bucket, *change.name, code, UNKNOWN), round(change.unknown_seconds * 1e6))
            for moved in engines:
                for component, value in enumerate(moved.microjoules):
                    if value:
                        code = SOURCE_CODES[moved.source]
                        self._put(Place(bucket, moved.engine, "", "", "", code, ENGINE_FIRST + component), value)
        self._wake.set()

    def ask(self, question: Question) -> Future[Answer]:
        """Ask; what was added before is in the answer. Raises StoreBusy or StoreClosed; so may the future."""
        future: Future[Answer] = Future()
        if self._closing or self._closed.is_set():
            raise StoreClosed("the energy ledger is closed")
        try:
            self._questions.put_nowait((question, future))
        except queue.Full:
            raise StoreBusy(f"{QUESTIONS_MAX} questions to the energy ledger are waiting already") from None
        self._hurry()
        if self._closed.is_set():
            self._refuse_questions()
        return future

    def state(self) -> StoreState:
        """How it is doing. May be asked at any time."""
        with self._lock:
            return StoreState(
                None if self._path is None else str(self._path),
                self._bytes,
                len(self._pending),
                self._written,
                self._lost,
                self._gaps,
                self._fault,
            )

    def close(self) -> None:
        """Write what is left and close the file. Waits for the disk: not on the event loop."""
        self._closing = True
        self._hurry()
        self._thread.join()

    def _hurry(self) -> None:
        self._urgent.set()
        self._wake.set()

    # --- the thread ---

    def _run(self, opened: Future[None]) -> None:
        try:
            self._file = file = StoreFile(self._path, self._clock())
        except BaseException as error:  # noqa: BLE001  (raised by the constructor, on the thread that called it)
            self._closed.set()
            opened.set_exception(error)
            return
        self._gaps = len(file.gaps)
        self._bytes = file.bytes
        if file.moved_aside is not None:
            self._on_event("energy_store_broken", moved_to=str(file.moved_aside))
        for gap in file.gaps:
            self._on_event("energy_store_gap", since=gap.since, until=gap.until, reason=gap.reason)
        opened.set_result(None)
        try:
            self._serve(file)
        except Exception as error:  # noqa: BLE001  (said; the gateway goes on without its ledger)
            self._fault = repr(error)
            self._on_event("energy_store_stopped", detail=repr(error))
        finally:
            self._closed.set()
            self._refuse_questions()

    def _serve(self, file: StoreFile) -> None:
        tidy_at = 0.0
        while True:
            self._wake.wait(HEARTBEAT_SECONDS)
            # What comes in the next moment goes into the same transaction.
            self._urgent.wait(self._config.flush_seconds / 2)
            self._wake.clear()
            self._urgent.clear()
            closing = self._closing
            self._flush(file)
            self._answer(file)
            if closing and not self._pending:
                file.end(self._clock())
                return
            if closing:
                self._on_event("energy_store_not_saved", numbers=len(self._pending), detail=self._fault)
                return
            if time.monotonic() >= tidy_at:
                self._tidy(file)
                tidy_at = time.monotonic() + TIDY_SECONDS

    def _flush(self, file: StoreFile) -> None:
        with self._lock:
            amounts, self._pending = self._pending, {}
            booked = self._booked
        now = self._clock()
        try:
            file.write(amounts, now, booked)
        except sqlite3.Error as error:
            with self._lock:
                for place, value in amounts.items():
                    self._put(place, value)
            if self._fault is None:
                self._fault_since = now
                self._on_event("energy_store_fault", detail=str(error))
            self._fault = str(error)
            return
        self._written += len(amounts)
        if self._fault is not None:
            self._fault = None
            self._on_event("energy_store_well", since=self._fault_since)
            if self._lost:
                file.gap(Gap(self._fault_since, now, "disk"))
                self._gaps += 1

    def _answer(self, file: StoreFile) -> None:
        while True:
            try:
                question, future = self._questions.get_nowait()
            except queue.Empty:
                return
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(ask(file.connection, question))
            except Exception as error:  # noqa: BLE001  (raised where the answer is awaited)
                future.set_exception(error)

    def _tidy(self, file: StoreFile) -> None:
        config = self._config
        bytes_max = config.store_bytes if self._path is not None else min(config.store_bytes, MEMORY_BYTES)
        try:
            file.tidy(
                self._clock(), config.minutes_days * DAY_SECONDS, config.retention_days * DAY_SECONDS, bytes_max
            )  # fmt: skip
            self._bytes = file.bytes
        except sqlite3.Error as error:
            self._on_event("energy_store_fault", detail=str(error))

    def _refuse_questions(self) -> None:
        while True:
            try:
                _, future = self._questions.get_nowait()
            except queue.Empty:
                return
            if future.set_running_or_notify_cancel():
                future.set_exception(StoreClosed("the energy ledger is closed"))

    def _put(self, place: Place, value: int) -> None:
        """With the lock held."""
        pending = self._pending
        if place in pending:
            pending[place] += value
        elif len(pending) < PENDING_MAX:
            pending[place] = value
        elif place.component < CALLS:
            self._lost += abs(value)
