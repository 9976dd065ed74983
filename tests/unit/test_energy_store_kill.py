"""kill -9 of a process that keeps the ledger: at most its last second is missing, and the next one says so."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from proxy.energy.config import EnergyConfig
from proxy.energy.store import EnergyStore
from proxy.energy.store_query import Question

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("lines", [40, 150])
def test_after_kill_9_at_most_the_last_second_is_missing(tmp_path: Path, lines: int) -> None:
    path = tmp_path / "energy.db"
    writer = subprocess.Popen(
        [sys.executable, "-m", "tests.unit.energy_store_writer", str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert writer.stdout is not None
        said = [writer.stdout.readline() for _ in range(lines)]
        while int(said[-1].split()[2]) == 0:  # something has reached the disk
            said.append(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        said += writer.stdout.read().splitlines(keepends=True)
    finally:
        writer.kill()
        writer.wait()
        writer.stdout.close()  # type: ignore[union-attr]
    times = [float(line.split()[1]) for line in said if line.endswith("\n")]
    events: list[tuple[str, dict[str, object]]] = []
    store = EnergyStore(path, EnergyConfig(), lambda name, **details: events.append((name, details)))
    answer = store.ask(Question("key", 0, time.time() + 60)).result(20)
    store.close()
    (row,) = answer.rows
    kept = round(row.figure.components["prefill"])
    assert kept == row.figure.calls
    assert 0 < kept <= len(times) + 1
    if kept < len(times):
        assert times[-1] - times[kept] <= 1.0  # the first that is missing was booked within the last second
    (gap,) = answer.gaps
    assert gap.reason == "killed"
    assert times[kept - 1] - 1.0 <= gap.since <= time.time()
    assert gap.until >= times[-1]
    assert [name for name, _ in events] == ["energy_store_gap"]
