"""Result files: whole or not there, read back as written, taken over where they were broken off."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench.load import results
from bench.load.columns import COLUMNS, KINDS, names
from bench.load.figures import FIGURES, interval, quantile, summary, table
from bench.load.results import ResultFault, Writer, read, read_meta
from bench.load.rows import generating_seconds, sum_or_none
from bench.load.sharing import shareable_tokens
from tests.vllm.children import ROOT
from workloads.shapes import CallShape, Part

SPEC = {"workload": "chain"}


def rows(repeat: int) -> dict[Any, list[dict[str, Any]]]:
    return {
        "repeat": [{"repeat": repeat, "gpu_joules": 10.0 * repeat, "workflows": 1}],
        "call": [{"repeat": repeat, "workflow": f"w{repeat}", "node": "n", "after": ["a"], "error": "", "good": True}],
    }


def written(path: Path, repeats: int = 2) -> Writer:
    writer = Writer(path, {"spec": SPEC})
    for repeat in range(1, repeats + 1):
        writer.add(rows(repeat))
        writer.figures[repeat] = {"joules_per_workflow": 10.0 * repeat}
        writer.write(state="partial")
    return writer


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    written(tmp_path / "a").write(state="complete")
    result = read(tmp_path / "a.parquet")
    assert result.meta["state"] == "complete" and result.meta["spec"] == SPEC
    assert json.loads((tmp_path / "a.json").read_text()) == result.meta
    calls = result.rows("call").to_pylist()
    assert [call["workflow"] for call in calls] == ["w1", "w2"] and calls[0]["after"] == ["a"]
    assert calls[0]["gpu_joules"] is None and calls[0]["prompt_tokens"] is None  # not measured is not 0
    assert result.rows("repeat", ["gpu_joules"]).to_pylist() == [{"gpu_joules": 10.0}, {"gpu_joules": 20.0}]
    assert result.rows("window").num_rows == 0
    assert set(result.rows("workflow").column_names) == set(names("workflow"))


def test_a_column_that_a_kind_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="a window has no error"):
        Writer(tmp_path / "a", {}).add({"window": [{"repeat": 1, "error": "x"}]})


def test_a_full_disk_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = written(tmp_path / "a", 1)

    class Full(pq.ParquetWriter):
        def write_table(self, *args: Any, **options: Any) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "ParquetWriter", Full)
    writer.add(rows(2))
    with pytest.raises(ResultFault, match=r"No space left.*what was done before is kept"):
        writer.write(state="complete")
    assert read(tmp_path / "a.parquet").rows("call").num_rows == 1
    assert read_meta(tmp_path / "a.parquet")["state"] == "partial"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.parquet"]


def test_whole_repeats_are_taken_over_and_others_are_not(tmp_path: Path) -> None:
    writer = written(tmp_path / "a", 2)
    del writer.figures[2]  # it was broken off
    writer.write(state="interrupted")
    again = Writer(tmp_path / "a", {"spec": SPEC})
    again.resume()
    assert again.figures == {1: {"joules_per_workflow": 10.0}}
    again.add(rows(2))
    again.write(state="complete")
    assert [row["repeat"] for row in read(again.path).rows("call").to_pylist()] == [1, 2]
    other = Writer(tmp_path / "a", {"spec": {"workload": "coding"}})
    with pytest.raises(ResultFault, match="another configuration"):
        other.resume()


def test_files_that_are_no_results_are_named(tmp_path: Path) -> None:
    text = tmp_path / "text.parquet"
    text.write_text("no")
    foreign = tmp_path / "foreign.parquet"
    pq.write_table(pa.table({"x": [1]}), foreign)
    for path, words in ((text, "cannot be read"), (foreign, "no result of"), (tmp_path / "absent", "cannot be read")):
        with pytest.raises(ResultFault, match=words):
            read(path)
    later = Writer(tmp_path / "later", {})
    later.write(joulegate_result=99)
    with pytest.raises(ResultFault, match="of format 99"):
        read(later.path)


def test_without_pyarrow_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(ResultFault, match=r"pip install 'joulegate\[bench\]'"):
        results.need_pyarrow()


def test_the_documents_columns_are_the_files() -> None:
    text = (ROOT / "docs" / "results-format.md").read_text()
    told = text.partition("## Columns")[2].partition("\n## ")[0]
    kinds: dict[str, set[str]] = {}
    for line in told.splitlines():
        if line.startswith("| `"):
            cells = [cell.strip() for cell in line.split("|")[1:3]]
            for name in re.findall(r"`(\w+)`", cells[0]):
                kinds[name] = set(KINDS) if cells[1] == "all" else set(cells[1].split(", "))
    assert kinds == {name: set(of) for name, _, of in COLUMNS}


# --- figures ---


def test_an_interval_needs_two_values_and_all_of_them() -> None:
    assert interval([]) == (None, None, None, 0)
    assert interval([2.0]) == (2.0, None, None, 1)
    assert interval([1.0, None, 3.0]).mean is None
    mean, low, high, n = interval([1.0, 2.0, 3.0])
    assert (mean, n) == (2.0, 3) and low is not None and high is not None
    assert high - 2.0 == pytest.approx(2.0 - low) == pytest.approx(4.302653 / 3**0.5, rel=1e-5)  # t(0.975, 2)


def test_quantiles_lie_between() -> None:
    assert quantile([], 0.5) is None and quantile([3.0], 0.99) == 3.0
    assert quantile([1.0, 2.0, 4.0], 0.5) == 2.0 and quantile([1.0, 2.0], 0.25) == 1.25


def test_the_table_has_a_dash_for_what_is_not_known() -> None:
    known = dict.fromkeys((figure.name for figure in FIGURES), None) | {"mean_watts": 100.0}
    one = summary([known, known | {"mean_watts": 102.0}])
    two = summary([dict.fromkeys(known, None) | {"workflow_p50_s": 2.0}])
    head, first, second = table([("a", one), ("b", two)])
    assert head.split() == ["W", "p50", "s"]
    assert first.split() == ["a", "101", "±13", "-"] and second.split() == ["b", "-", "2.00"]


def test_a_sum_is_unknown_as_soon_as_a_part_is() -> None:
    assert sum_or_none([1, 2]) == 3 and sum_or_none([1, None]) is None and sum_or_none([]) is None
    assert sum_or_none([0, 0]) == 0


def test_generating_is_a_union_of_stretches() -> None:
    calls = [{"first_token_s": a, "ended_s": b} for a, b in ((1.0, 4.0), (2.0, 3.0), (3.5, 5.0), (7.0, 8.0))]
    assert generating_seconds(calls) == pytest.approx(5.0)
    assert generating_seconds([*calls, {"first_token_s": None, "ended_s": 9.0}]) is None


def test_what_an_endless_cache_would_have_had() -> None:
    head = Part("head", 100)
    calls = [CallShape("n", (), (head, Part(f"own {n}", 10)), 1) for n in range(3)]
    assert shareable_tokens(calls) == 2 * 96
    assert shareable_tokens([calls[0], calls[0]]) == 96  # of 109, since the last token is always computed
    assert shareable_tokens([CallShape("n", (), (Part(f"x{n}", 50), head), 1) for n in range(3)]) == 0
