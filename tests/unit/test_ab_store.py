"""Experiments on disk: whole or not at all, and each row once, whenever the process was killed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.experiments.files import read
from proxy.ab.live import in_words
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


def told(**changes: object) -> dict[str, object]:
    values = {
        "id": "one", "state": "running", "design": "switchback", "metric": "joules_per_workflow", "block": 2,
        "blocks": 12, "arms": ["passthrough", "joule"], "arm": "joule", "in_washout": False, "lead_in": False,
        "ramp_up": False, "seconds_to_next_block": 7.4, "ends_at": 100.0, "pace": 1.0,
        "blocks_done": {"control": 1, "treatment": 0}, "guardrails": [],
    }  # fmt: skip
    return {**values, **changes}


def test_a_status_in_words_says_who_has_what() -> None:
    """Both halves of a pool that is split; both arms where they run at once; and what a shadow said."""
    assert "  now         block 3 of 12: joule; 7 s to the next" in in_words(told())
    split = in_words(told(design="split_and_swap", arm_of_second_half="passthrough", ramp_up=True))
    assert any("joule on the first half of the engines, passthrough on the second" in line for line in split)
    assert any("(ramp-up)" in line for line in split)
    assert any("both arms at once" in line for line in in_words(told(design="interleaved")))
    lead_in = in_words(told(design="interleaved", lead_in=True, arm="passthrough"))
    assert "  now         lead-in: passthrough; 7 s to the next" in lead_in
    shadow = told(design="shadow", shadow={"same": 9, "decisions": 10}, shadow_dropped="ValueError: no")
    assert (
        "  shadow      decided the same for 9 of 10 calls; it raised and is asked no more: ValueError: no"
        in in_words(shadow)
    )
    assert "  blocks      1 count" in in_words(shadow)
    marked = in_words(told(marked={"energy_unavailable": 3, "lead_in": 1}))
    assert "  do not      1 lead_in" in marked and any("no joules   of 3" in line for line in marked)
