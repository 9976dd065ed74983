"""The report of results: what a ratio's baseline is, the critical path, a page that asks the network for nothing."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from bench.cli import main
from bench.load.report_data import critical_path, ratios
from bench.load.results import read

if TYPE_CHECKING:
    from pathlib import Path

LOAD = [
    "--workload",
    "chain",
    "--preset",
    "cpu",
    "--seconds",
    "5",
    "--warm-up-seconds",
    "0",
    "--repeats",
    "2",
    "--rate",
    "2",
    "--engine",
    "twin",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("results")
    assert main(["run", *LOAD, "--policy", "none,fifo", "--out", str(found)]) == 0
    return found


def test_the_page_needs_no_network(folder: Path, tmp_path: Path) -> None:
    assert main(["report", str(folder), "--out", str(tmp_path)]) == 0
    page = (tmp_path / "index.html").read_text()
    assert all(link.startswith("data:") for link in re.findall(r'(?:src|srcset|href)="([^"]*)', page))
    assert (tmp_path / "chain-pareto-1.png").read_bytes().startswith(b"\x89PNG")


def test_a_ratio_names_its_baseline(folder: Path) -> None:
    found = {each.result.meta["spec"]["policy"]: each for each in ratios([read(p) for p in folder.glob("*.parquet")])}
    assert found["none"].why == "is the baseline"
    base = found["fifo"].baseline
    assert base is not None
    assert base.meta["spec"]["policy"] == "none"
    assert found["fifo"].joules is not None


def test_the_critical_path_follows_the_last_answer() -> None:
    calls = [
        {"node": "a", "after": [], "ended_s": 1.0},
        {"node": "b", "after": [], "ended_s": 2.0},
        {"node": "c", "after": ["a", "b"], "ended_s": 3.0},
    ]
    assert critical_path(calls) == {"b", "c"}


def test_no_results_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "no results" in capsys.readouterr().err
