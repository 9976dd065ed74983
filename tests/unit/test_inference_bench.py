"""`joulegate-bench inference`: what it counts, and that the workloads are placed as well as is asked."""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import pytest

from bench import inference
from bench.programs import BenchError
from workloads.shapes import stream


def options(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    inference.add_options(parser)
    return parser.parse_args(argv)


@pytest.mark.parametrize("kind", ["chain", "map-reduce", "copilot", "coding", "conversation"])
def test_workloads_are_placed_right(kind: str) -> None:
    rng = random.Random(3)
    workflows = inference.conversations(rng) if kind == inference.CONVERSATION else stream(kind, rng)
    args = options("--seconds", "40" if kind == "coding" else "8", "--mib", "8")
    row = inference.judge(kind, workflows, inference.its_own, args, asked=True)
    assert row.calls > 50
    assert row.true_edges > 0 or kind == "copilot"
    assert min(row.precision, row.group_precision) >= inference.PRECISION_MIN
    assert min(row.recall, row.group_recall) >= inference.RECALL_MIN


def test_grouping_counts_pairs() -> None:
    members = list("abcd")
    true = {("a", "b"), ("b", "c")}
    assert inference.grouping(members, true, true) == (1.0, 1.0)
    assert inference.grouping(members, true, {("a", "b")}) == (1.0, 1 / 3)
    assert inference.grouping(members, true, {("a", "b"), ("a", "c"), ("a", "d")}) == (0.5, 1.0)
    assert inference.grouping(members, set(), set()) == (1.0, 1.0)


def test_the_whole_runs_and_writes_its_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "figures.json"
    args = options("--seconds", "4", "--rounds", "1", "--live", "30", "--mib", "8", "--json", str(file))
    assert inference.run(args) == 0
    figures = json.loads(file.read_text())
    assert {row["traffic"] for row in figures["accuracy"]} >= {"chain", "composite", "conversation"}
    assert all(row["precision"] >= 0.98 for row in figures["accuracy"])
    assert [one["prompt_tokens"] for one in figures["speed"]] == [4096, 4096, 32_768, 32_768]
    assert [one["target_us"] for one in figures["speed"]] == [30, 30, 200, 200]
    printed = capsys.readouterr().out
    assert "target" in printed and "500 tokens" in printed


def test_options_that_are_no_use_are_refused() -> None:
    with pytest.raises(BenchError, match="above 0"):
        inference.run(options("--live", "0"))
