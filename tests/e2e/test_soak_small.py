"""A small soak of the real gateway: thousands of streams, many of them broken on purpose, leave nothing behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from bench.cli import main

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="the bench's programs need gcc")

STREAMS = 2000


def test_nothing_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--streams", str(STREAMS), "--concurrency", "64", "--sample-seconds", "0.1", "--idle-seconds", "3"]
    # So few streams cannot tell a small leak from the allocator's steps; a kept request body they can.
    options += ["--tolerance", "1000", "--work-dir", str(tmp_path), "--json", str(tmp_path / "out.json")]
    code = main(["soak", *options])
    printed = capsys.readouterr()
    assert code == 0, printed.out + printed.err
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["faults"] == []
    assert report["load"]["ended"] == STREAMS
    assert report["load"]["done"] > STREAMS / 2
    assert report["load"]["expected"] > 0
    assert all(report["load"][f"left_{when}"] > 0 for when in ("body", "sent", "token"))
