"""What an operator may meet, over HTTP before twins: a ramp-up, both arms at once, an engine that is lost, a clock that
jumps; and a plan from the log of it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

from bench.experiments.analyse import analyse
from bench.experiments.answer import sentence
from bench.experiments.files import read
from proxy.cli import main as joulegate
from tests.e2e.harness import RunningGateway, gateway, until
from tests.e2e.test_experiments_arms import PACE, definition, posted
from tests.e2e.twin_process import MODEL, Twin

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

CLIENTS = 8


@pytest.fixture
def twins(tmp_path: Path) -> Iterator[list[Twin]]:
    """Two that are alike."""
    children = [Twin(tmp_path / name, "--speed", str(PACE)) for name in ("a", "b")]
    try:
        yield [child.wait_ready_to_serve() for child in children]
    finally:
        for child in children:
            child.end()


@contextlib.asynccontextmanager
async def under_load(twins: list[Twin], state: Path, log: Path) -> AsyncIterator[tuple[RunningGateway, Counter[str]]]:
    """And which policy each answered workflow had, since somebody last looked."""
    tables = {"state_dir": str(state), "experiments": {"pace": PACE}}
    async with gateway(*(twin.url for twin in twins), log=str(log), **tables) as running:
        going, seen = True, Counter[str]()

        async def client(number: int) -> None:
            count = 0
            while going:
                count += 1
                name = f"x-workflow-id: {number}-{count}\r\nx-workflow-final: true\r\n"
                body = {"model": MODEL, "prompt": "tell me", "max_tokens": 20, "ignore_eos": True}
                answer = await running.post("/v1/completions", body, name)
                assert answer.status == 200, answer.body
                seen[(answer.header("x-joulegate-decision") or "").partition(";")[0]] += 1

        clients = [asyncio.ensure_future(client(number)) for number in range(CLIENTS)]
        try:
            yield running, seen
        finally:
            going = False
            await asyncio.gather(*clients)


def status(running: RunningGateway) -> dict[str, Any]:
    return running.app.experiments.status("one") or {}


async def in_block(running: RunningGateway, number: int) -> None:
    await until(lambda: status(running)["block"] >= number, f"block {number}")


def test_a_ramp_up_and_then_both_arms_at_once(
    twins: list[Twin], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The lead-in is the control's, the ramp-up gives few workflows the treatment, and then half of them have it."""
    state, log, out = tmp_path / "state", tmp_path / "log", tmp_path / "out"
    wanted = definition(
        design="interleaved", effect_independent=True, arms=["passthrough", "fifo"], block_seconds=40.0,
        washout_seconds=0.0, ramp_up=[0.2],
    )  # fmt: skip
    shares: list[float] = []

    async def main() -> None:
        async with under_load(twins[:1], state, log) as (running, seen):
            assert (await posted(running, "/admin/experiments", {**wanted, "effect_independent": False}))[0] == 400
            assert (await posted(running, "/admin/experiments", {**wanted, "metric": "joules_per_workflow"}))[0] == 400
            assert (await posted(running, "/admin/experiments", wanted))[0] == 201
            for last in (-1, 1, 3):
                seen.clear()
                await in_block(running, last + 1)
                shares.append(seen["fifo"] / max(seen.total(), 1))
            marked = status(running)["marked"]
            assert (marked["lead_in"], marked["ramp_up"]) == (1, 4)
            control = f"http://127.0.0.1:{running.control_port}"
            words = ["ab", "report", "one", "--out", str(out), "--control", control]
            assert await asyncio.to_thread(joulegate, words) == 0
            assert (await posted(running, "/admin/experiments/one/stop", {}))[1]["state"] == "stopped"

    uvloop.run(main())
    assert shares[0] < 0.05, "those of the first moment of the ramp-up at most"
    assert 0.02 < shares[1] < 0.2 and 0.35 < shares[2] < 0.65, shares
    assert "interference possible" in (out / "report.html").read_text()
    recording = read(state / "experiments" / "one" / "blocks.jsonl")
    rows = [row for row in recording.rows if row.number in (2, 3)]
    assert [(row.number, row.arm) for row in rows] == [(2, 0), (2, 1), (3, 0), (3, 1)]
    assert all(row.gpu_joules is None and row.timed > 0 for row in rows)
    capsys.readouterr()
    arms = ["ab", "plan", "--arms", "passthrough,fifo", "--calls", str(log), "--hours", "1"]
    assert joulegate(arms) == 2, "some seconds of traffic are none to plan from"
    assert "both must have 16 blocks" in capsys.readouterr().err


def test_the_blocks_in_which_an_engine_was_lost_do_not_count(twins: list[Twin], tmp_path: Path) -> None:
    state, whole = tmp_path / "state", list[int]()

    async def main() -> None:
        async with under_load(twins, state, tmp_path / "log") as (running, _):
            wanted = definition(block_seconds=40.0, washout_seconds=5.0)
            assert (await posted(running, "/admin/experiments", wanted))[0] == 201
            await in_block(running, 1)
            twins[1].end()
            await until(lambda: "engine_lost" in marks(running), "it is noticed")
            assert status(running)["state"] == "running"
            whole.append(status(running)["block"] + 1)
            await in_block(running, whole[0] + 1)
            assert (await posted(running, "/admin/experiments/one/stop", {}))[1]["state"] == "stopped"

    def marks(running: RunningGateway) -> set[str]:
        [one] = running.app.gateway.scheduler.experiments.running.values()
        return {mark for row in one.experiment.rows.values() for mark in row.marks}

    uvloop.run(main())
    recording = read(state / "experiments" / "one" / "blocks.jsonl")
    lost = {row.number: "engine_lost" in row.marks for row in recording.rows}
    assert not lost[0] and lost[whole[0]]
    found = analyse(recording.definition, recording.rows)
    assert sum(found.excluded["engine_lost"].values()) == sum(lost.values())
    assert "Nothing can be said" in sentence(found)


def test_a_clock_that_jumps_marks_its_block_and_no_other(
    twins: list[Twin], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a minute forth, and later back, as a clock may be set; blocks go on by the steady one."""
    state, jump, between = tmp_path / "state", [0.0], list[tuple[int, int]]()
    monkeypatch.setattr("proxy.ab.shell.time", SimpleNamespace(time=lambda: time.time() + jump[0]))

    async def main() -> None:
        async with under_load(twins[:1], state, tmp_path / "log") as (running, _):
            wanted = definition(block_seconds=40.0, washout_seconds=5.0, clock_tolerance_seconds=30.0)
            assert (await posted(running, "/admin/experiments", wanted))[0] == 201
            for number in (1, 2):
                await in_block(running, 2 * number)
                first = status(running)["block"]
                jump[0] = 30.0 if number == 1 else 0.0
                await until(lambda number=number: jumps(running) == number, "it is noticed")  # type: ignore[misc]
                between.append((first, status(running)["block"]))
            await in_block(running, between[-1][1] + 2)
            assert (await posted(running, "/admin/experiments/one/stop", {}))[1]["state"] == "stopped"

    def jumps(running: RunningGateway) -> int:
        [one] = running.app.gateway.scheduler.experiments.running.values()
        open_ones = sum("clock_jump" in row.marks for row in one.experiment.rows.values())
        return open_ones + one.experiment.marked.get("clock_jump", 0)

    uvloop.run(main())
    recording = read(state / "experiments" / "one" / "blocks.jsonl")
    jumped = [row.number for row in recording.rows if "clock_jump" in row.marks]
    assert len(jumped) == 2
    assert all(first <= number <= last for number, (first, last) in zip(jumped, between, strict=True))
    assert sum(analyse(recording.definition, recording.rows).excluded["clock_jump"].values()) == 2
