"""The ledger's file: how is it laid out, is it sound, how does it stay small? SQLite, used by one thread."""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING, NamedTuple

from scheduler.energy.bill_accounts import COMPONENTS, ENGINE_COMPONENTS, SOURCES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from scheduler.energy.bill_accounts import Source

VERSION = 1
MINUTE, HOUR = 60, 3600
SOURCE_CODES: dict[Source, int] = {source: code for code, source in enumerate((*SOURCES, "unavailable"))}
ENGINE_FIRST = 20
CALLS, UNKNOWN = 40, 41
"""Numbers of calls, and microseconds of calls whose energy nobody knows: not joules."""
CODES = {
    **{name: code for code, name in enumerate(COMPONENTS)},
    **{name: ENGINE_FIRST + code for code, name in enumerate(ENGINE_COMPONENTS)},
    "calls": CALLS,
    "unknown": UNKNOWN,
}
"""What is kept of a component's name. A new component gets a new number, an old number no other meaning."""

_SCHEMA = """
CREATE TABLE account (
    id INTEGER PRIMARY KEY, engine TEXT NOT NULL, key TEXT NOT NULL, workflow TEXT NOT NULL, model TEXT NOT NULL,
    UNIQUE (engine, key, workflow, model)
) STRICT;
CREATE TABLE amount (
    bucket INTEGER NOT NULL, width INTEGER NOT NULL, account INTEGER NOT NULL REFERENCES account (id),
    source INTEGER NOT NULL, component INTEGER NOT NULL, value INTEGER NOT NULL,
    PRIMARY KEY (bucket, width, account, source, component)
) STRICT, WITHOUT ROWID;
CREATE TABLE session (
    id INTEGER PRIMARY KEY, started REAL NOT NULL, alive REAL NOT NULL, booked REAL, ended REAL
) STRICT;
CREATE TABLE gap (since REAL NOT NULL, until REAL NOT NULL, reason TEXT NOT NULL) STRICT;
"""
_ADD = """
INSERT INTO amount VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET value = value + excluded.value
"""
_ROLL_UP = f"""
INSERT INTO amount SELECT bucket / {HOUR} * {HOUR}, {HOUR}, account, source, component, SUM(value)
FROM amount WHERE width = {MINUTE} AND bucket >= ? AND bucket < ? GROUP BY 1, account, source, component
ON CONFLICT DO UPDATE SET value = value + excluded.value
"""  # noqa: S608  (constants of this file)
ROLL_HOURS = 6
"""Rolled up at once: the thread has other things to do."""
GAPS_KEPT = 1_000


class Place(NamedTuple):
    """Where a number is added. An engine's own components have "" for key, workflow and model."""

    bucket: int
    """Unix time of the minute's beginning."""
    engine: str
    key: str
    workflow: str
    model: str
    source: int
    component: int


class Gap(NamedTuple):
    """A time of which something may be missing. Unix seconds. `killed`: the process ended without a word;
    `broken_file`: the file could not be read and was moved aside; `disk`: it could not be written."""

    since: float
    until: float
    reason: str


class StoreFault(Exception):
    """The ledger cannot be used; the message says why and what to do."""


class StoreFile:
    """An open ledger."""

    def __init__(self, path: Path | None, now: float) -> None:
        """`path` None: in memory. Raises StoreFault for a file of a newer version, or one that cannot be opened."""
        self.path = path
        self.moved_aside: Path | None = None
        """Where a broken file went that stood here."""
        self.gaps: list[Gap] = []
        """Found at the start."""
        self._ids: dict[tuple[str, str, str, str], int] = {}
        self._rolled_until = 0
        self.connection = self._open(now)
        self._session = self._begin(now)

    # --- opening ---

    def _open(self, now: float) -> sqlite3.Connection:
        try:
            connection = self._sound(self.path)
        except sqlite3.DatabaseError as error:
            if self.path is None or not self.path.exists() or not _is_broken(error):
                what = "another process has it open" if "locked" in str(error) else str(error)
                raise StoreFault(f"{self.path}: {what}") from None
            self._move_aside(now)
            try:
                connection = self._sound(self.path)
            except sqlite3.DatabaseError as again:
                raise StoreFault(f"{self.path}: {again}") from None
            self.gaps.append(Gap(0.0, now, "broken_file"))
        except OSError as error:
            raise StoreFault(f"{self.path}: {error}") from None
        return connection

    def _sound(self, path: Path | None) -> sqlite3.Connection:
        """Opened, checked and laid out. sqlite3.DatabaseError if it is no sound database."""
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path or ":memory:", isolation_level=None, timeout=2.0)
        try:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version > VERSION:
                raise StoreFault(
                    f"{path} was written by a newer version ({version}, this is {VERSION}): take that one, or move the"
                    " file away"
                )
            # Another process would take this one's session for one that was killed.
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # of effect on a new file
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")  # a crash of the process loses nothing that is committed
            (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if found != "ok":
                raise sqlite3.DatabaseError(f"malformed: {found}")
            if version == 0:
                connection.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;")
        except BaseException:
            connection.close()
            raise
        return connection

    def _move_aside(self, now: float) -> None:
        assert self.path is not None
        self.moved_aside = self.path.with_name(f"{self.path.name}.broken-{int(now)}")
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                self.path.with_name(self.path.name + suffix).rename(
                    self.moved_aside.with_name(self.moved_aside.name + suffix)
                )

    def _begin(self, now: float) -> int:
        """A new session; those that never ended leave a gap behind the last that they booked."""
        connection = self.connection
        connection.execute("BEGIN IMMEDIATE")
        for alive, booked in connection.execute("SELECT alive, booked FROM session WHERE ended IS NULL").fetchall():
            since = alive if booked is None else min(alive, booked)
            self.gaps.append(Gap(since, now, "killed"))
        connection.execute("UPDATE session SET ended = alive WHERE ended IS NULL")
        connection.executemany("INSERT INTO gap VALUES (?, ?, ?)", self.gaps)
        cursor = connection.execute("INSERT INTO session (started, alive) VALUES (?, ?)", (now, now))
        connection.execute("COMMIT")
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    # --- writing ---

    def write(self, amounts: Mapping[Place, int], now: float, booked: float | None) -> None:
        """Add all of them, or none (sqlite3.Error), and say that all is well up to now. `booked`: the end of the last
        window in them."""
        connection = self.connection
        connection.execute("BEGIN IMMEDIATE")
        fresh: dict[tuple[str, str, str, str], int] = {}
        try:
            connection.executemany(_ADD, [self._row(place, value, fresh) for place, value in amounts.items()])
            connection.execute(
                "UPDATE session SET alive = ?, booked = coalesce(?, booked) WHERE id = ?", (now, booked, self._session)
            )
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        self._ids.update(fresh)

    def _row(
        self, place: Place, value: int, fresh: dict[tuple[str, str, str, str], int]
    ) -> tuple[int, int, int, int, int, int]:
        name = place[1:5]
        number = self._ids.get(name) or fresh.get(name)
        if number is None:
            found = self.connection.execute(
                "INSERT INTO account (engine, key, workflow, model) VALUES (?, ?, ?, ?)"
                " ON CONFLICT DO UPDATE SET key = key RETURNING id",
                name,
            ).fetchone()
            number = fresh[name] = int(found[0])
        return place.bucket, MINUTE, number, place.source, place.component, value

    def gap(self, gap: Gap) -> None:
        """Remember one."""
        self.connection.execute("INSERT INTO gap VALUES (?, ?, ?)", gap)
        self.connection.execute(
            "DELETE FROM gap WHERE rowid <= (SELECT max(rowid) FROM gap) - ?", (GAPS_KEPT,)
        )  # fmt: skip

    def end(self, now: float) -> None:
        """Close it in order."""
        self.connection.execute("UPDATE session SET alive = ?, ended = ? WHERE id = ?", (now, now, self._session))
        self.connection.close()

    # --- staying small ---

    def tidy(self, now: float, minutes_seconds: float, retention_seconds: float, bytes_max: int) -> None:
        """Some of what is due: minutes into hours, old hours away, and the oldest while the file is too large."""
        connection = self.connection
        until = int((now - minutes_seconds) // HOUR * HOUR)
        (oldest,) = connection.execute(
            "SELECT min(bucket) FROM amount WHERE width = ? AND bucket < ?", (MINUTE, until)
        ).fetchone()
        if oldest is not None:
            until = min(until, oldest // HOUR * HOUR + ROLL_HOURS * HOUR)
            self._together(
                (_ROLL_UP, (oldest, until)),
                ("DELETE FROM amount WHERE width = ? AND bucket >= ? AND bucket < ?", (MINUTE, oldest, until)),
            )
        self._forget(int(now - retention_seconds))
        if self.bytes > bytes_max:
            first, last = connection.execute("SELECT min(bucket), max(bucket) FROM amount").fetchone()
            if first is not None:
                self._forget(first + max((last - first) // 10, HOUR))
        connection.execute("PRAGMA incremental_vacuum(4096)").fetchall()

    def _forget(self, before: int) -> None:
        deleted = self.connection.execute("DELETE FROM amount WHERE bucket < ?", (before,)).rowcount
        if deleted:
            self._together(
                ("DELETE FROM account WHERE id NOT IN (SELECT DISTINCT account FROM amount)", ()),
                ("DELETE FROM gap WHERE until < ?", (before,)),
            )
            self._ids.clear()

    def _together(self, *statements: tuple[str, Iterable[int]]) -> None:
        connection = self.connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            for statement, values in statements:
                connection.execute(statement, tuple(values))
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    @property
    def bytes(self) -> int:
        """Of the tables, without what is free."""
        size, pages, free = (
            self.connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_size", "page_count", "freelist_count")
        )
        return int(size * (pages - free))


def _is_broken(error: sqlite3.DatabaseError) -> bool:
    """The file, and not the disk or another process's lock."""
    code = getattr(error, "sqlite_errorcode", None)
    return code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT) or "malformed" in str(error)
