"""Experiments on disk: whole or not at all, and each row once, whenever the process was killed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.experiments.files import read
from proxy.ab.store import ExperimentStore, StoreFault
from proxy.cli import main
from scheduler.experiments import Experiment
from scheduler.experiments.saved import saved
from tests.unit.experiment_rows import definition, rows_of

DEFINED = definition()
ROWS = [row.as_json() for row in rows_of(DEFINED)]


def begun(folder: Path) -> ExperimentStore:
    store = ExperimentStore(folder)
    store.begin(DEFINED, 1.0)
    return store


def test_a_row_that_is_told_again_after_a_kill_is_there_once(tmp_path: Path) -> None:
    begun(tmp_path).append("test", ROWS[:3])
    after = ExperimentStore(tmp_path)
    after.go_on("test")
    after.append("test", ROWS[2:5])
    path = after.blocks("test")
    assert path is not None
    assert [row.number for row in read(path).rows] == [0, 1, 2, 3, 4]


def test_a_line_that_was_cut_off_is_taken_away_and_told_again(tmp_path: Path) -> None:
    store = begun(tmp_path)
    store.append("test", ROWS[:2])
    path = store.blocks("test")
    assert path is not None
    path.write_bytes(path.read_bytes()[:-20])
    after = ExperimentStore(tmp_path)
    after.go_on("test")
    after.append("test", ROWS[1:3])
    assert [row.number for row in read(path).rows] == [0, 1, 2]


def test_an_id_is_used_once_and_one_that_did_not_start_leaves_nothing(tmp_path: Path) -> None:
    store = begun(tmp_path)
    with pytest.raises(FileExistsError):
        store.begin(DEFINED, 2.0)
    assert store.names() == ["test"]
    store.forget("test")
    assert store.names() == []
    store.begin(DEFINED, 2.0)


def test_what_is_damaged_is_named(tmp_path: Path) -> None:
    store = begun(tmp_path)
    assert store.state("test") is None
    store.save("test", saved(Experiment(DEFINED, 1.0), 2.0))
    assert (store.state("test") or {})["saved_at"] == 2.0
    (store.folder / "test" / "state.json").write_text("{")
    with pytest.raises(StoreFault, match=r"state\.json is damaged"):
        store.state("test")
    (store.folder / "test" / "blocks.jsonl").write_text('{"a": 1}\nnothing\n')
    with pytest.raises(StoreFault, match=r"blocks\.jsonl is damaged"):
        store.go_on("test")


def test_commands_say_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "plan.json"
    assert main(["ab", "start", str(file)]) == 2
    assert "plan.json" in capsys.readouterr().err
    file.write_text(json.dumps(DEFINED.as_json()))
    assert main(["ab", "start", str(file), "--control", "ftp://here"]) == 2
    assert "--control must be like" in capsys.readouterr().err
    assert main(["ab", "list", "--control", "http://127.0.0.1:9"]) == 1
    assert "no answer from http://127.0.0.1:9" in capsys.readouterr().err
