"""The bench of what decisions cost plays the same events under each policy, and counts what it says."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from bench.policies import cost
from bench.programs import BenchError


def test_every_policy_is_measured_beside_the_baseline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    cost.add_options(parser)
    output = tmp_path / "rows.json"
    cost.run(parser.parse_args(["--live", "40", "--events", "60", "--passes", "2", "--output", str(output)]))
    rows = json.loads(output.read_text())
    assert [row["policy"] for row in rows] == ["passthrough", "fifo", "parrot", "las", "joule"]
    assert rows[0]["ratio"] == 1.0 and all(row["policy_microseconds"] > 0 for row in rows)
    assert "longest ms" in capsys.readouterr().out
    with pytest.raises(BenchError, match="there is no policy 'x'"):
        cost.run(parser.parse_args(["--policy", "x"]))


def test_live_calls_stay_as_many_as_were_asked_for() -> None:
    load = cost.Load("joule", 30, 1)
    for _ in range(30):
        load.begin()
    for _ in range(200):
        load.step()
        assert 30 <= len(load.scheduler.calls) <= 32
    load.scheduler.validate()
