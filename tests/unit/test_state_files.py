"""Files that the process keeps beside its work: token budgets and the event log. A disk that fails costs no call."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from proxy.budgets import FILE_NAME, BudgetsFile, load
from proxy.eventlog import EventLogWriter
from proxy.faults import ALIKE_MAX, Faults
from scheduler.core import SchedulerConfig
from scheduler.eventlog import LogCut, replay
from scheduler.events import EngineSpec, Tick

CONFIG = SchedulerConfig((EngineSpec("a", 1),))


def test_budgets_are_written_when_they_have_changed(tmp_path: Path) -> None:
    budgets = BudgetsFile(tmp_path / "state")
    assert not budgets.save((), 0.0)
    assert not (tmp_path / "state").exists()
    assert budgets.save((("k", 5, 100.0),), 0.0)
    assert not budgets.save((("k", 5, 95.0),), 5.0), "time alone has passed"
    assert budgets.save((("k", 6, 90.0),), 10.0), "tokens were used"
    assert budgets.save((("k", 6, 190.0),), 11.0), "a new period"
    restored = load(tmp_path / "state")
    assert restored is not None and restored.budgets[0][:2] == ("k", 6)


def test_budgets_that_could_not_be_written_are_tried_again(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("in the way")
    budgets = BudgetsFile(tmp_path / "state")
    with pytest.raises(OSError, match="File exists"):
        budgets.save((("k", 5, 100.0),), 0.0)
    (tmp_path / "state").unlink()
    assert budgets.save((("k", 5, 100.0),), 0.0)
    assert json.loads((tmp_path / "state" / FILE_NAME).read_bytes())["budgets"] == [["k", 5, 100.0]]


def test_an_event_log_on_a_full_disk_stops_and_says_so_once() -> None:
    said: list[str] = []
    log = EventLogWriter(Path("/dev/full"), CONFIG, 0.0, 1 << 30, said.append)
    for _ in range(3000):
        log.write(Tick(), 1.0, [])
    log.close()
    assert len(said) == 1 and "No space left" in said[0]


def test_a_full_disk_that_shows_at_the_end_only_is_said_too() -> None:
    said: list[str] = []
    EventLogWriter(Path("/dev/full"), CONFIG, 0.0, 1 << 30, said.append).close()
    assert len(said) == 1


def test_an_event_log_replays_up_to_its_limit_and_up_to_where_it_was_cut(tmp_path: Path) -> None:
    path, said = tmp_path / "events.jsonl", list[str]()
    log = EventLogWriter(path, CONFIG, 0.0, 2000, said.append)
    for _ in range(100):
        log.write(Tick(), 1.0, [])
    log.close()
    text = path.read_text()
    assert len(text) < 2200 and not said
    whole = list(replay(text.splitlines(keepends=True)))
    assert whole and all(same for *_, same in whole)
    with pytest.raises(LogCut):
        list(replay(text[:-40].splitlines(keepends=True)))


def test_faults_are_told_each_time_and_traced_once(caplog: pytest.LogCaptureFixture) -> None:
    events: list[dict[str, object]] = []
    faults = Faults(lambda kind, **fields: events.append({"event": kind, **fields}))
    for _ in range(3):
        faults.report("a probe", ZeroDivisionError("x"), engine="a")
    assert (
        events
        == [{"event": "internal_error", "where": "a probe", "detail": "ZeroDivisionError('x')", "engine": "a"}] * 3
    )
    assert caplog.text.count("ZeroDivisionError: x") == 1
    for number in range(2 * ALIKE_MAX):
        faults.report(f"{number}", ValueError())
    assert len(caplog.records) == ALIKE_MAX
    assert faults.count == 3 + 2 * ALIKE_MAX
