"""The bench of bills, small: what calls pay is what the simulated engine's own steps say they used."""

from __future__ import annotations

import argparse
from pathlib import Path

import orjson
import pytest

from backends.twin.calibration import load
from backends.twin.content import Piece
from bench.energy.bill import Scene, Scenes, add_options, run
from bench.energy.bill_truth import Truth
from bench.programs import BenchError
from bench.twin.lab import Lab


def test_the_truth_adds_up_to_the_meter() -> None:
    lab = Lab(load("h200-llama-3.1-8b"))
    truth = Truth(lab.engine)
    for number in range(6):
        truth.call(f"r{number + 1}", (("system", 640.0),))
        lab.send(700 + 50 * number, 20 + 10 * number, prefix=[Piece("system", 640)])
    lab.run()
    names = [f"r{number + 1}" for number in range(6)]
    used = sum(truth.of(name) for name in names)
    assert used == pytest.approx(truth.above_idle)
    idle = lab.engine.costs.idle_watts * lab.now
    assert lab.joules == pytest.approx(used + idle, rel=1e-6)
    assert all(truth.of(name) > 0 for name in names)


def test_equal_calls_at_once_have_used_the_same() -> None:
    lab = Lab(load("h200-llama-3.1-8b"))
    truth = Truth(lab.engine)
    for number in range(4):
        truth.call(f"r{number + 1}", (("system", 640.0),))
        lab.send(700, 30, prefix=[Piece("system", 640)])
    lab.run()
    used = [truth.of(f"r{number + 1}") for number in range(4)]
    assert max(used) == pytest.approx(min(used), rel=0.03)


@pytest.mark.parametrize("prices", ["live", "given"])
def test_calls_and_workflows_pay_what_they_used(prices: str) -> None:
    row = Scenes(Scene("chain", 2, seconds=150.0, prices=prices)).run()
    assert row.calls > 200
    assert row.call_error < 0.05
    assert row.workflow_error < 0.02
    assert abs(row.bias) < 0.02
    assert row.covered > 0.85


def test_the_command_prints_and_writes_what_it_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_options(parser)
    options = ["--seconds", "130", "--seeds", "1", "--workload", "coding", "--json", str(tmp_path / "rows.json")]
    assert run(parser.parse_args(options)) == 0
    (row,) = orjson.loads((tmp_path / "rows.json").read_bytes())
    assert row["workload"] == "coding"
    assert f"{row['call_error']:.2%}" in capsys.readouterr().out
    with pytest.raises(BenchError):
        run(parser.parse_args(["--seconds", "10"]))
