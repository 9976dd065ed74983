"""The energy ledger: what is added is there, once, whatever happens to the file."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy.energy.config import EnergyConfig
from proxy.energy.store import PENDING_MAX, QUESTIONS_MAX, EnergyStore, StoreBusy, StoreClosed
from proxy.energy.store_file import CODES, HOUR, MINUTE, StoreFault, StoreFile
from proxy.energy.store_query import Answer, By, Question
from scheduler.energy.bill_accounts import COMPONENTS, ENGINE_COMPONENTS, Change, Name
from scheduler.energy.bill_engine import EngineChange

ROW = tuple(1_000_000 * number for number in range(1, 11))
NOON = 1_800_014_400.0
"""A whole hour."""


class Clock:
    """Wall time, as a test wants it."""

    def __init__(self, now: float = NOON) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Ledger:
    """A store with its events and its time."""

    def __init__(self, path: Path | None, config: EnergyConfig | None = None, now: float = NOON) -> None:
        self.clock = Clock(now)
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.store = EnergyStore(path, config or EnergyConfig(flush_seconds=0.01), self.event, self.clock)

    def event(self, name: str, **details: Any) -> None:
        self.events.append((name, details))

    def add(self, workflow: str = "w", key: str = "k", engine: str = "e", row: tuple[int, ...] = ROW) -> None:
        self.store.add([Change(Name(engine, key, workflow, "m"), {"measured": row}, 1, 0.0)], [], self.clock.now)

    def ask(self, by: By = "key", since: float = 0.0, until: float = 1e11, **more: Any) -> Answer:
        return self.store.ask(Question(by, since, until, **more)).result(20)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "energy.db"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    made = Ledger(path)
    yield made
    made.store.close()


def test_what_is_added_can_be_read_at_once(ledger: Ledger) -> None:
    ledger.add()
    ledger.add()
    (row,) = ledger.ask().rows
    assert row.names == {"key": "k"}
    assert row.figure.marginal_joules == 20.0
    assert row.figure.full_joules == 90.0
    assert row.figure.low_joules == 0.0
    assert row.figure.high_joules == 40.0
    assert row.figure.source == "measured"
    assert row.figure.calls == 2
    assert row.figure.complete
    assert row.figure.components["cpu"] == 12.0


def test_sums_are_by_whatever_is_asked(ledger: Ledger) -> None:
    for key, workflow, engine in (("a", "w1", "e1"), ("a", "w2", "e2"), ("b", "w1", "e2"), ("b", "", "e1")):
        ledger.add(workflow, key, engine)
    engine = EngineChange("e1", "measured", tuple(range(100, 110)))
    ledger.store.add([], [engine])
    assert {row.names["key"]: row.figure.calls for row in ledger.ask("key").rows} == {"a": 2, "b": 2}
    found = {(row.names["key"], row.names["workflow"]) for row in ledger.ask("workflow").rows}
    assert found == {("a", "w1"), ("a", "w2"), ("b", "w1")}  # a call of no workflow is none
    by_engine = {row.names["engine"]: row for row in ledger.ask("engine").rows}
    assert by_engine["e1"].figure.calls == 2
    assert by_engine["e1"].engine["counter"] == 100 / 1e6
    assert by_engine["e2"].engine == {}
    assert ledger.ask("component").rows[0].figure.calls == 4
    assert [row.names for row in ledger.ask("model").rows] == [{"model": "m"}]


def test_a_key_sees_nothing_of_others(ledger: Ledger) -> None:
    ledger.add("secret", "a")
    ledger.store.add([], [EngineChange("e", "measured", (5,) * 10)])
    for by in ("workflow", "key", "model", "engine", "component"):
        answer = ledger.ask(by, key="b")  # type: ignore[arg-type]
        assert (answer.rows, answer.groups) == ([], 0)
        own = ledger.ask(by, key="a")  # type: ignore[arg-type]
        assert [row.figure.calls for row in own.rows] == [1]
        assert own.rows[0].engine == {}


def test_times_choose_minutes(ledger: Ledger) -> None:
    for minute in range(3):
        ledger.clock.now = NOON + 60 * minute + 30
        ledger.add(row=(10**minute * 1_000_000, *ROW[1:]))
        ledger.ask()  # written before the next minute

    def prefill(since: float, until: float) -> float:
        return sum(row.figure.components["prefill"] for row in ledger.ask("key", since, until).rows)

    assert prefill(0, 1e11) == 111
    assert prefill(NOON + 59, NOON + 60) == 1  # the minute of `since` is whole
    assert prefill(NOON + 60, NOON + 61) == 10
    assert prefill(NOON + 180, 1e11) == 0
    assert ledger.ask().oldest == NOON


def test_the_rows_with_the_most_joules_are_told(ledger: Ledger) -> None:
    for number in range(5):
        ledger.add(f"w{number}", row=(number * 1_000_000, *ROW[1:]))
    answer = ledger.ask("workflow", limit=2)
    assert [row.names["workflow"] for row in answer.rows] == ["w4", "w3"]
    assert answer.groups == 5


def test_what_nobody_knows_is_said(ledger: Ledger) -> None:
    ledger.store.add([Change(Name("e", "k", "w", "m"), {}, 1, 2.5)], [])
    (row,) = ledger.ask().rows
    assert row.figure.marginal_joules is None
    assert row.figure.source == "unavailable"
    assert row.figure.calls == 1
    assert not row.figure.complete


def test_it_is_there_after_a_restart_without_a_gap(path: Path) -> None:
    first = Ledger(path)
    first.add()
    first.store.close()
    second = Ledger(path, now=NOON + 100)
    second.add()
    answer = second.ask()
    assert answer.rows[0].figure.calls == 2
    assert answer.gaps == []
    assert second.events == []
    second.store.close()


def test_a_closed_ledger_says_so(path: Path) -> None:
    ledger = Ledger(path)
    ledger.store.close()
    with pytest.raises(StoreClosed):
        ledger.store.ask(Question("key", 0, 1))
    ledger.add()  # lost, like all that comes after the end; and nothing breaks


def test_two_processes_do_not_share_a_file(path: Path, ledger: Ledger) -> None:
    ledger.ask()
    with pytest.raises(StoreFault, match="another process"):
        Ledger(path)


@pytest.mark.parametrize("rubbish", [b"no database at all" * 500, None], ids=["no database", "torn page"])
def test_a_broken_file_is_moved_aside(path: Path, rubbish: bytes | None) -> None:
    first = Ledger(path)
    for number in range(2000):
        first.add(f"w{number}")
    first.store.close()
    if rubbish is None:
        data = bytearray(path.read_bytes())
        data[4096:20480] = b"\xa5" * 16384
        rubbish = bytes(data)
    path.write_bytes(rubbish)
    ledger = Ledger(path, now=NOON + 50)
    ledger.add()
    answer = ledger.ask()
    assert answer.rows[0].figure.calls == 1
    assert [gap.reason for gap in answer.gaps] == ["broken_file"]
    (name, details), *_ = ledger.events
    assert name == "energy_store_broken"
    assert Path(details["moved_to"]).read_bytes()[100:] == rubbish[100:]  # SQLite counts its openings in the head
    assert ledger.store.state().gaps == 1
    ledger.store.close()


def test_a_newer_file_is_left_alone(path: Path) -> None:
    Ledger(path).store.close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(StoreFault, match="newer version"):
        Ledger(path)
    assert path.read_bytes() == before


def test_a_folder_that_cannot_be_made_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreFault):
        Ledger(tmp_path / "file" / "energy.db")


def test_in_memory_it_is_the_same_for_as_long_as_it_lives() -> None:
    ledger = Ledger(None)
    ledger.add()
    assert ledger.ask().rows[0].figure.calls == 1
    assert ledger.store.state().path is None
    ledger.store.close()


def test_what_the_disk_refuses_is_kept_and_written_later(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(path)
    ledger.ask()
    write = StoreFile.write

    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(StoreFile, "write", full)
    ledger.add()
    assert ledger.ask().rows == []
    state = ledger.store.state()
    assert state.fault == "database or disk is full"
    assert state.pending == len(ROW) + 1
    monkeypatch.setattr(StoreFile, "write", write)
    assert ledger.ask().rows[0].figure.calls == 1
    assert ledger.store.state().fault is None
    assert [name for name, _ in ledger.events] == ["energy_store_fault", "energy_store_well"]
    ledger.store.close()


def test_what_waits_for_the_disk_is_bounded_and_what_is_lost_is_said(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(path)
    monkeypatch.setattr("proxy.energy.store.PENDING_MAX", 20)
    write = StoreFile.write

    def full(*_: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(StoreFile, "write", full)
    for number in range(5):
        ledger.add(f"w{number}")
    ledger.ask()
    state = ledger.store.state()
    assert state.pending == 20
    assert state.lost_microjoules > 0
    monkeypatch.setattr(StoreFile, "write", write)
    answer = ledger.ask()
    assert [gap.reason for gap in answer.gaps] == ["disk"]
    ledger.store.close()
    assert PENDING_MAX > 20


def test_questions_are_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    ledger = Ledger(path)
    go, asked = threading.Event(), threading.Event()

    def slow(*_: object) -> Answer:
        asked.set()
        assert go.wait(20)
        return Answer([], 0, [], None)

    monkeypatch.setattr("proxy.energy.store.ask", slow)
    question = Question("key", 0, 1)
    first = ledger.store.ask(question)
    assert asked.wait(20)
    waiting = [ledger.store.ask(question) for _ in range(QUESTIONS_MAX)]
    with pytest.raises(StoreBusy):
        ledger.store.ask(question)
    go.set()
    assert all(one.result(20).groups == 0 for one in (first, *waiting))
    ledger.store.close()


def file_with(path: Path | None, minutes: int, start: float = NOON) -> StoreFile:
    """A file with 1 J of one component for each of so many minutes."""
    from proxy.energy.store_file import Place

    file = StoreFile(path, start)
    for minute in range(minutes):
        at = start + minute * MINUTE
        file.write({Place(int(at), "e", "k", f"w{minute % 7}", "m", 0, 3): 1_000_000}, at, at)
    return file


def sums(file: StoreFile) -> tuple[int, int, int]:
    """(rows, joules, widest bucket)."""
    rows, value, width = file.connection.execute("SELECT count(*), sum(value), max(width) FROM amount").fetchone()
    return rows, (value or 0) // 1_000_000, width or 0


def test_minutes_become_hours_and_nothing_is_lost() -> None:
    file = file_with(None, 300)
    for _ in range(3):
        file.tidy(NOON + 300 * MINUTE, 2 * HOUR, 1e9, 2**40)
    rows, joules, width = sums(file)
    assert joules == 300
    assert width == HOUR
    assert rows < 300 - 100
    (kept,) = file.connection.execute("SELECT min(bucket) FROM amount WHERE width = ?", (MINUTE,)).fetchone()
    assert kept >= NOON + 300 * MINUTE - 3 * HOUR
    file.end(NOON)


def test_what_is_older_than_it_should_be_goes() -> None:
    file = file_with(None, 300)
    file.tidy(NOON + 300 * MINUTE, 1e9, 100 * MINUTE, 2**40)
    assert sums(file)[1] == 100
    file.tidy(NOON + 1e6, 1e9, 100 * MINUTE, 2**40)
    assert sums(file)[:2] == (0, 0)
    assert file.connection.execute("SELECT count(*) FROM account").fetchone() == (0,)
    # Names that were forgotten get new numbers.
    more = file_with(None, 1)
    assert sums(more)[1] == 1
    file.end(NOON)


def test_a_file_that_is_too_large_loses_its_oldest(path: Path) -> None:
    file = file_with(path, 3000)
    before, newest = file.bytes, NOON + 2999 * MINUTE
    for _ in range(12):
        file.tidy(NOON + 3000 * MINUTE, 1e9, 1e9, before * 3 // 4)
    assert file.bytes <= before * 3 // 4
    first, last = file.connection.execute("SELECT min(bucket), max(bucket) FROM amount").fetchone()
    assert first > NOON
    assert last == newest
    file.end(NOON)


def test_numbers_of_components_never_change() -> None:
    """They stand in files of earlier versions."""
    assert [CODES[name] for name in COMPONENTS] == list(range(10))
    assert [CODES[name] for name in ENGINE_COMPONENTS] == list(range(20, 30))
    assert (CODES["calls"], CODES["unknown"]) == (40, 41)


def test_the_wall_clock_is_the_default(path: Path) -> None:
    store = EnergyStore(path, EnergyConfig(), lambda *_, **__: None)
    before = time.time()
    store.add([Change(Name("e", "k", "w", "m"), {"measured": ROW}, 1, 0.0)], [])
    assert store.ask(Question("key", before, before + 120)).result(20).groups == 1
    store.close()
