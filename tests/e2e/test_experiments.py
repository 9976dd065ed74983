"""Experiments in a running gateway before a twin: an A/B of passthrough and joule, a restart, a guardrail's stop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

from bench.experiments.files import read
from proxy.cli import main as joulegate
from tests.e2e.harness import RunningGateway, gateway, until
from tests.e2e.test_control import ask, get, sample
from tests.e2e.twin_process import MODEL, Twin
from tests.vllm.children import ROOT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

PACE = 20
SEED = 2
"""The first block is the control's."""
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
        "id": "worth-it", "arms": ["passthrough", {"policy": "joule", "options": {"max_in_flight": 1}}],
        "block_seconds": 60.0, "washout_seconds": 8.0, "pairs": 6,
        "seed": SEED, "metric": "mean_workflow_seconds",
        "guardrails": ["p95_workflow_seconds:+50%"],
    }  # fmt: skip
    return {**values, **changes}


@contextlib.asynccontextmanager
async def serving(twin: str, folder: Path, events: str) -> AsyncIterator[RunningGateway]:
    """A gateway with traffic: workflows of a call each, some of them with a name."""
    tables = {
        "state_dir": str(folder),
        "experiments": {"pace": PACE},
        "event_log": {"path": str(folder.parent / events)},
    }
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
    told = running.app.experiments.status("worth-it")
    assert told is not None
    return told


async def command(running: RunningGateway, *words: str) -> int:
    control = f"http://127.0.0.1:{running.control_port}"
    return await asyncio.to_thread(joulegate, ["ab", *words, "--control", control])


def test_an_experiment_goes_on_through_a_restart_until_a_guardrail_stops_it(
    twin: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Joule that may send one call at a time is the harm that the guardrail is for."""
    state, file, out = tmp_path / "state", tmp_path / "plan.json", tmp_path / "report"
    file.write_text(json.dumps(definition()))
    exposed: list[str] = []

    async def before() -> None:
        async with serving(twin, state, "before") as running:
            assert await command(running, "start", str(file)) == 0
            assert "joule (max_in_flight=1) against passthrough" in capsys.readouterr().out
            assert running.app.gateway.scheduler.policy.name == "experiment"
            await until(lambda: status(running)["block"] == 0, "the lead-in is over")
            text = (await get(running.control_port, "/metrics")).body.decode()
            assert sample(text, "joulegate_experiment_running", experiment="worth-it") == 1
            assert sample(text, "joulegate_experiment_block", arm="passthrough") == 0
            exposed.append(text)

    async def after() -> None:
        async with serving(twin, state, "after") as running:
            assert status(running)["state"] == "running"
            assert status(running)["block"] in (0, 1), "the block that is due, none from the beginning"
            await until(lambda: status(running)["state"] != "running", "the guardrail stops it")
            assert running.app.gateway.scheduler.policy.name == "passthrough", "the control, at once"
            exposed.append((await get(running.control_port, "/metrics")).body.decode())
            assert await command(running, "status", "worth-it") == 0
            assert "worth-it is stopped: p95_workflow_seconds:+50%" in capsys.readouterr().out
            assert await command(running, "list") == 0
            assert await command(running, "report", "worth-it", "--out", str(out)) == 0

    uvloop.run(before())
    uvloop.run(after())
    page = (ROOT / "docs" / "observability.md").read_text()
    documented = set(re.findall(r"^\| `(joulegate_experiment\w*)`", page, re.MULTILINE))
    assert documented == set(re.findall(r"^(joulegate_experiment\w*)\{", "\n".join(exposed), re.MULTILINE))
    recording = read(out / "blocks.jsonl")
    assert recording.ended and recording.stopped_why is not None
    rows = {row.number: row for row in recording.rows}
    assert len(rows) == len(recording.rows), "no row is there twice"
    assert list(rows) == [-1, 0, 1]
    assert rows[-1].marks[0] == "lead_in" and "gateway_restart" in rows[0].marks and "stopped" in rows[1].marks
    assert [row.arm for row in rows.values()] == [0, 0, 1]
    assert min(rows[-1].timed, rows[0].timed) >= 30 and not any(row.failed for row in rows.values())
    assert (out / "report.html").is_file()
    for log in ("before", "after"):
        assert joulegate(["replay", str(tmp_path / log)]) == 0


def test_what_cannot_be_run_is_refused_with_its_numbers(
    twin: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "plan.json"

    async def main() -> None:
        async def refusal(running: RunningGateway, **changes: Any) -> str:
            file.write_text(json.dumps(definition(**changes)))
            assert await command(running, "start", str(file)) == 2
            return capsys.readouterr().err

        async with serving(twin, tmp_path / "state", "events") as running:
            assert "wash-out of 60 s" in await refusal(running, washout_seconds=60.0)
            assert '[power] mode = "actuate"' in await refusal(
                running, arms=["passthrough", {"policy": "joule", "cap_mode": "actuate"}]
            )
            assert "both are" in await refusal(running, arms=["joule", "joule"])
            assert "did you mean" in await refusal(running, metric="joules_per_workfow")
            assert "other" in await refusal(running, engines=["other"])
            assert "no wash-out" in await refusal(running, design="shadow", reset_prefix_cache="required")
            assert running.app.gateway.scheduler.policy.name == "passthrough"
            file.write_text(json.dumps(definition(id="one")))
            assert await command(running, "start", str(file)) == 0
            assert '"one"' in await refusal(running, id="two")
            other = await running_post(running, "/admin/policy", {"name": "fifo"})
            assert other == 400, "the experiment decides"
            assert await command(running, "stop", "one") == 0
            assert "one is stopped: stopped by an operator" in capsys.readouterr().out
            assert "results are kept" in await refusal(running, id="one")
            assert await command(running, "stop", "one") == 1
            assert await running_post(running, "/admin/policy", {"name": "fifo"}) == 200

    uvloop.run(main())


async def running_post(running: RunningGateway, path: str, body: object) -> int:
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(data)}"
    return (await ask(running.control_port, head.encode() + b"\r\n\r\n" + data)).status
