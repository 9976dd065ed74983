"""A gateway that is killed in the middle of an experiment: the next one goes on in the block that is due by then."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from bench.experiments.files import read
from scheduler.experiments import METRICS
from scheduler.experiments.marks import pairs_of
from tests.e2e.twin_process import MODEL, Twin
from tests.vllm.children import ROOT, Child, free_port, joulegate_command, wait_until
from tests.vllm.wire import ask

if TYPE_CHECKING:
    from pathlib import Path

PACE, BLOCK_SECONDS = 20, 60.0
WANTED = {
    "id": "killed", "arms": ["passthrough", "fifo"], "metric": "mean_workflow_seconds", "block_seconds": BLOCK_SECONDS,
    "washout_seconds": 8.0, "pairs": 8, "seed": 2,
}  # fmt: skip
PATIENCE_SECONDS = 60.0


class Gateway(Child):
    """The same folder and ports each time."""

    def __init__(self, folder: Path, port: int, control: int) -> None:
        command = [*joulegate_command(), "serve", "--config", str(folder / "gateway.toml")]
        ports = ["--port", str(port), "--control-port", str(control)]
        super().__init__([*command, *ports], folder / "log", {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"})
        self.control_url = f"http://127.0.0.1:{control}"
        self.wait_ready(f"{self.control_url}/ready", PATIENCE_SECONDS)

    def status(self) -> dict[str, Any]:
        told: dict[str, Any] = ask(self.control_url, "GET", "/admin/experiments/killed").json()
        return told


class Clients:
    """Calls one after the other; while nobody listens they try again."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._going = True
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(3)]
        for thread in self._threads:
            thread.start()

    def _run(self, number: int) -> None:
        body = {"model": MODEL, "prompt": f"tell me {number}", "max_tokens": 20, "ignore_eos": True}
        while self._going:
            try:
                ask(self._url, "POST", "/v1/completions", body)
            except (OSError, AssertionError, ValueError):
                time.sleep(0.01)

    def end(self) -> None:
        self._going = False
        for thread in self._threads:
            thread.join()


def due(started_at: float) -> int:
    """The block by the wall clock."""
    return int((time.time() * PACE - started_at - BLOCK_SECONDS) // BLOCK_SECONDS)


def test_after_kill_9_it_goes_on_in_the_right_block_and_the_one_that_was_cut_does_not_count(tmp_path: Path) -> None:
    twin = Twin(tmp_path / "twin", "--speed", str(PACE))
    port, control = free_port(), free_port()
    gateway = clients = None
    try:
        url = twin.wait_ready_to_serve().url
        (tmp_path / "gateway.toml").write_text(
            f'state_dir = "{tmp_path / "state"}"\n[[engines]]\nurl = "{url}"\n[experiments]\npace = {PACE}\n'
        )
        gateway = Gateway(tmp_path, port, control)
        assert ask(gateway.control_url, "POST", "/admin/experiments", WANTED).status == 201
        clients = Clients(f"http://127.0.0.1:{port}")
        one = gateway
        wait_until(lambda: one.status().get("block", -1) >= 3, PATIENCE_SECONDS, "block 3")
        cut = gateway.status()["block"]
        gateway.process.kill()
        gateway.wait_exit(PATIENCE_SECONDS)
        gateway = other = Gateway(tmp_path, port, control)
        status = other.status()
        assert status["state"] == "running"
        earliest, found, latest = due(status["started_at"]), other.status()["block"], due(status["started_at"])
        assert earliest <= found <= latest
        wait_until(lambda: other.status()["block"] >= found + 4, PATIENCE_SECONDS, "four blocks more")
        ask(gateway.control_url, "POST", "/admin/experiments/killed/stop", {})
    finally:
        if clients is not None:
            clients.end()
        if gateway is not None:
            gateway.end()
        twin.end()
    assert "Traceback" not in gateway.text()
    recording = read(tmp_path / "state" / "experiments" / "killed" / "blocks.jsonl")
    rows = {row.number: row for row in recording.rows}
    assert list(rows) == list(range(-1, max(rows) + 1)) and len(rows) == len(recording.rows), "each once, none missing"
    touched = {number for number, row in rows.items() if "gateway_restart" in row.marks}
    assert cut in touched and touched <= set(range(cut - 2, found + 1))
    pairs, left = pairs_of(recording.rows, METRICS["mean_workflow_seconds"])
    assert not touched & {row.number for pair in pairs for row in (*pair.control, *pair.treatment)}
    assert {cut, cut ^ 1} <= {row.number for row in left}, "its pair does not count either"
    good = [row for row in rows.values() if not set(row.marks) - {"energy_unavailable"}]
    assert max(row.number for row in good) > found and all(row.timed > 5 and not row.failed for row in good)
