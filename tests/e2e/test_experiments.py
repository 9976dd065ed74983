"""Experiments in a running gateway before a twin: an A/B of passthrough and joule, a restart, a guardrail's stop."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

from bench.experiments.files import read
from proxy.cli import main as joulegate
from tests.e2e.harness import RunningGateway, gateway, until
from tests.e2e.test_control import get, sample
from tests.e2e.twin_process import MODEL, Twin

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

PACE = 20
CLIENTS = 6
ASK = {"model": MODEL, "prompt": "tell me", "max_tokens": 40, "ignore_eos": True}
DEADLINE = "x-workflow-deadline-ms: 3000\r\n"


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    child = Twin(tmp_path_factory.mktemp("twin") / "log", "--speed", str(PACE))
    try:
        yield child.wait_ready_to_serve().url
    finally:
        child.end()


def definition(**changes: Any) -> dict[str, Any]:
    values = {
        "id": "worth-it", "arms": ["passthrough", "joule"], "block_seconds": 60.0, "washout_seconds": 8.0, "pairs": 6,
        "seed": 2, "metric": "mean_workflow_seconds",
    }  # fmt: skip
    return {**values, **changes}


@contextlib.asynccontextmanager
async def serving(twin: str, folder: Path, events: str) -> AsyncIterator[RunningGateway]:
    """A gateway with traffic: workflows of a call each, some of them with a name."""
    tables = {"state_dir": str(folder), "experiments": {"pace": PACE}, "event_log": {"path": str(folder.parent / events)}}
    async with gateway(twin, **tables) as running:
        going = True

        async def client(number: int) -> None:
            count = 0
            while going:
                count += 1
                name = f"x-workflow-id: {number}-{count}-{id(running)}\r\nx-workflow-final: true\r\n{DEADLINE}"
                answer = await running.post("/v1/completions", ASK, name)
                assert answer.status == 200, answer.body

        clients = [asyncio.ensure_future(client(number)) for number in range(CLIENTS)]
        try:
            yield running
        finally:
            going = False
            await asyncio.gather(*clients)


def status(running: RunningGateway) -> dict[str, Any]:
    told = running.app.experiments.status()
    assert told is not None
    return told


async def command(running: RunningGateway, *words: str) -> int:
    control = f"http://127.0.0.1:{running.control_port}"
    return await asyncio.to_thread(joulegate, ["ab", *words, "--control", control])


def test_an_experiment_goes_on_through_a_restart_until_a_guardrail_stops_it(
    twin: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state, file = tmp_path / "state", tmp_path / "plan.json"
    file.write_text(json.dumps(definition(guardrails=["p95_workflow_seconds:+5%"])))

    async def before() -> int:
        async with serving(twin, state, "before") as running:
            assert await command(running, "start", str(file)) == 0
            assert "joule against passthrough" in capsys.readouterr().out
            assert await command(running, "start", str(file)) == 2, "one at a time"
            assert "is running" in capsys.readouterr().err
            assert running.app.gateway.scheduler.policy.name == "experiment"
            refused = await get(running.control_port, "/admin/experiments/nothing")
            assert refused.status == 404
            await until(lambda: status(running)["block"] == 0, "the lead-in is over")
            text = (await get(running.control_port, "/metrics")).body.decode()
            assert sample(text, "joulegate_experiment_running", experiment="worth-it") == 1
            block: int = status(running)["block"]
            return block

    async def after() -> None:
        async with serving(twin, state, "after") as running:
            assert status(running)["state"] == "running"
            await until(lambda: status(running)["state"] != "running", "the guardrail stops it")
            assert running.app.gateway.scheduler.policy.name == "passthrough", "the control, at once"
            assert await command(running, "status", "worth-it") == 0
            assert "worth-it is stopped: p95_workflow_seconds:+5%" in capsys.readouterr().out
            assert await command(running, "list") == 0
            assert await command(running, "report", "worth-it", "--out", str(tmp_path / "report")) == 0

    uvloop.run(before())
    uvloop.run(after())
    recording = read(tmp_path / "report" / "blocks.jsonl")
    print(recording.stopped_why, [(r.number, r.arm, r.began, r.marks, r.energy_source) for r in recording.rows])
    assert 0
