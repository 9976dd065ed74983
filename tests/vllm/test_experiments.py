"""A short switchback over a real vLLM on the CPU, where nothing measures energy: times alone, and why."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vllm.children import ROOT, Gateway, wait_until
from tests.vllm.wire import ask, chat_body

PACE = 14
"""Blocks of 36 s last 2.6 s."""
PATIENCE_SECONDS = 120.0
WANTED = {
    "id": "cpu", "arms": ["passthrough", {"policy": "fifo", "options": {"max_in_flight": 1}}], "pairs": 6,
    "block_seconds": 36.0, "washout_seconds": 10.0, "metric": "joules_per_workflow",
}  # fmt: skip


@pytest.fixture(scope="module")
def experiment(engine: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, Path]]:
    """A finished one, and where its files are."""
    folder = tmp_path_factory.mktemp("experiment")
    environment = {"JOULEGATE_STATE_DIR": str(folder / "state"), "JOULEGATE_EXPERIMENTS__PACE": str(PACE)}
    gateway = Gateway(folder / "log", ["--engine", engine], environment)
    going = True

    def client(number: int) -> None:
        count = 0
        while going:
            count += 1
            headers = {"x-workflow-id": f"{number}-{count}", "x-workflow-final": "true"}
            body = chat_body(f"number {number}", max_tokens=8, ignore_eos=True)
            assert ask(gateway.url, "POST", "/v1/chat/completions", body, headers).status == 200

    threads = [threading.Thread(target=client, args=(number,)) for number in range(4)]
    try:
        gateway.wait_ready_to_serve()
        told = ask(gateway.control_url, "POST", "/admin/experiments", WANTED)
        assert told.status == 201, told.body
        for thread in threads:
            thread.start()
        wait_until(lambda: state(gateway) != "running", PATIENCE_SECONDS, "it is finished")
        yield gateway, folder / "state" / "experiments" / "cpu" / "blocks.jsonl"
    finally:
        going = False
        for thread in threads:
            if thread.ident is not None:
                thread.join()
        gateway.end()
    assert "Traceback" not in gateway.text()


def state(gateway: Gateway) -> str:
    """`running`, `finished` or `stopped`."""
    time.sleep(0.2)
    said: str = ask(gateway.control_url, "GET", "/admin/experiments/cpu").json()["state"]
    return said


def test_blocks_have_times_and_no_joules(experiment: tuple[Gateway, Path]) -> None:
    gateway, path = experiment
    assert state(gateway) == "finished"
    rows = [json.loads(line) for line in path.read_text().splitlines()[1:-1]]
    assert [row["number"] for row in rows] == list(range(-1, 12))
    for row in rows:
        assert (row["gpu_joules"], row["energy_source"]) == (None, "unavailable")
        assert row["marks"] == (["lead_in"] if row["number"] < 0 else []) + ["energy_unavailable"]
        assert row["timed"] >= 5 and row["failed"] == 0
    slow = [row["seconds"] / row["timed"] for row in rows if row["arm"]]
    fast = [row["seconds"] / row["timed"] for row in rows if not row["arm"]]
    assert sorted(slow)[3] > 1.5 * sorted(fast)[3], "one call at a time"


def test_the_report_says_times_and_why_there_are_no_joules(experiment: tuple[Gateway, Path], tmp_path: Path) -> None:
    """The analysis needs the extra `bench`, which this suite's own environment has not: that of `make test` has."""
    pythons = [str(ROOT / ".venv" / "bin" / "python"), sys.executable]
    python = next((each for each in pythons if has_scipy(each)), None)
    if python is None:
        pytest.skip("no environment with the extra bench: make install")
    _, path = experiment
    command = [python, "-m", "bench.cli", "experiment-report", str(path), "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Nothing can be said of joules a workflow: no meter counted the joules of the engines." in done.stdout
    assert "Of times: fifo (max_in_flight=1) needs" in done.stdout
    told = json.loads((tmp_path / "report.json").read_text())
    assert told["effects"]["joules_per_workflow"]["estimate"] is None
    assert told["effects"]["joules_per_workflow"]["unavailable"]
    times = told["effects"]["mean_workflow_seconds"]
    assert times["pairs"] == 6 and times["estimate"]["low"] > 0.2


def has_scipy(python: str) -> bool:
    """Whether the analysis can run there."""
    try:
        done = subprocess.run([python, "-c", "import scipy, statsmodels"], capture_output=True, check=False)
    except OSError:
        return False
    return done.returncode == 0
