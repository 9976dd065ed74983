"""What arms may differ in, over HTTP before twins: pools, cap modes, prefix caches, and a shadow that only looks on."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

from bench.experiments.files import read
from scheduler.experiments import Arm
from tests.e2e.harness import EngineRequest, RunningGateway, engine, gateway, until
from tests.e2e.test_caps_gateway import TARGETS, limit_of
from tests.e2e.test_control import ask, get
from tests.e2e.twin_process import MODEL, Twin
from tests.vllm.children import joulegate_command

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

OTHER = "other"
PACE = 20


def started(log: Path, name: str, *options: str) -> Twin:
    command = [*joulegate_command(), "twin", "--calibration", "h200-llama-3.1-8b", "--port", "0", "--model-name", name]
    return Twin(log, *options, command=command)


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Two engines, a model each."""
    folder = tmp_path_factory.mktemp("twins")
    children = [started(folder / name, name, "--speed", str(PACE)) for name in (MODEL, OTHER)]
    try:
        one, two = (child.wait_ready_to_serve().url for child in children)
        yield one, two
    finally:
        for child in children:
            child.end()


def definition(**changes: Any) -> dict[str, Any]:
    values = {
        "id": "one", "arms": ["passthrough", "fifo"], "block_seconds": 60.0, "washout_seconds": 10.0, "pairs": 6,
        "seed": 2, "metric": "mean_workflow_seconds",
    }  # fmt: skip
    return {**values, **changes}


async def posted(running: RunningGateway, path: str, body: object) -> tuple[int, dict[str, Any]]:
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(data)}"
    answer = await ask(running.control_port, head.encode() + b"\r\n\r\n" + data)
    return answer.status, answer.json


async def refused(running: RunningGateway, **changes: Any) -> str:
    status, said = await posted(running, "/admin/experiments", definition(**changes))
    assert status == 400, said
    return "\n".join(said["error"]["problems"])


async def call(running: RunningGateway, model: str, **more: Any) -> str:
    answer = await running.post("/v1/completions", {"model": model, "prompt": "tell me", "max_tokens": 5, **more})
    return f"{answer.status} {answer.header('x-joulegate-decision')}"


def test_two_experiments_at_once_each_on_the_engine_of_its_model(twins: tuple[str, str], tmp_path: Path) -> None:
    tables = {"state_dir": str(tmp_path / "state"), "experiments": {"pace": PACE}}
    names = [url.removeprefix("http://") for url in twins]
    log, events = tmp_path / "log", tmp_path / "events"

    async def main() -> None:
        async with gateway(*twins, log=str(log), event_log={"path": str(events)}, **tables) as running:
            scheduler = running.app.gateway.scheduler
            await until(lambda: all(engine.models for engine in scheduler.engines.values()), "models are known")
            assert "its control must be that" in await refused(running, engines=names[:1], arms=["las", "fifo"])
            one = definition(engines=names[:1], pool="one")
            two = definition(id="two", engines=names[1:], pool="two", arms=["passthrough", "las"], seed=3)
            assert (await posted(running, "/admin/experiments", one))[0] == 201
            assert "one" in await refused(running, id="three", engines=names[:1], pool="three")
            assert '"one" runs' in await refused(running, id="all", pool="all")
            assert 'pool: "one" is taken' in await refused(running, id="four", engines=names[1:], pool="one")
            assert (await posted(running, "/admin/experiments", two))[0] == 201
            told = (await get(running.control_port, "/admin/experiments")).json["experiments"]
            assert [each["state"] for each in told] == ["running", "running"]

            def arms() -> list[Any]:
                return [running.app.experiments.status(name) or {} for name in ("one", "two")]

            await until(lambda: [each["block"] for each in arms()] == [0, 0], "the lead-ins are over")
            assert [each["arm"] for each in arms()] == ["passthrough", "las"]
            assert "200 passthrough; engine=" + names[0] in await call(running, MODEL)
            assert "200 las; engine=" + names[1] in await call(running, OTHER)
            assert (await posted(running, "/admin/experiments/one/stop", {}))[1]["state"] == "stopped"
            assert "200 las" in await call(running, OTHER), "the other goes on"
            assert (await posted(running, "/admin/experiments/two/stop", {}))[1]["state"] == "stopped"
            assert scheduler.policy.name == "passthrough"

    uvloop.run(main())
    calls = [line for line in map(json.loads, log.read_text().splitlines()) if line.get("event") == "call"]
    assert [line["policy"] for line in calls] == ["passthrough", "las", "las"], "the arm's policy, in the log too"
    from proxy.cli import main as joulegate

    assert joulegate(["replay", str(events)]) == 0


def test_prefix_caches_are_emptied_where_the_engine_can(twins: tuple[str, str], tmp_path: Path) -> None:
    tables = {"state_dir": str(tmp_path / "state"), "experiments": {"pace": PACE}}
    prompt = "the same words again and again, " * 40

    async def cached(running: RunningGateway) -> int:
        answer = await running.post("/v1/completions", {"model": MODEL, "prompt": prompt, "max_tokens": 2})
        return int(answer.json["usage"]["prompt_tokens_details"]["cached_tokens"])

    async def main() -> None:
        async with gateway(twins[0], **tables) as running:
            assert (await cached(running), await cached(running) > 100) == (0, True)
            wanted = definition(reset_prefix_cache="required")
            assert (await posted(running, "/admin/experiments", wanted))[0] == 201
            assert await cached(running) == 0, "emptied when it was started"

            def resets() -> dict[str, int]:
                return (running.app.experiments.status("one") or {})["cache_resets"]  # type: ignore[no-any-return]

            await until(lambda: resets()["done"] >= 2, "two blocks began with empty caches")
            assert resets()["missed"] == 0

    uvloop.run(main())


def test_an_engine_that_cannot_empty_its_cache_is_said(tmp_path: Path) -> None:
    async def plain(request: EngineRequest) -> None:
        await request.answer(b"{}", status="404 Not Found" if request.target.startswith("/reset") else "200 OK")

    tables = {"state_dir": str(tmp_path / "state")}
    log = tmp_path / "log"

    async def main() -> None:
        async with engine(plain) as vllm, gateway(vllm, log=str(log), **tables) as running:
            said = await refused(running, reset_prefix_cache="required")
            assert "404 for POST /reset_prefix_cache; vLLM has it where VLLM_SERVER_DEV_MODE=1" in said
            wanted = definition(reset_prefix_cache="if_possible")
            assert (await posted(running, "/admin/experiments", wanted))[0] == 201

    uvloop.run(main())
    assert '"prefix_cache_not_reset"' in log.read_text()


def test_what_never_had_an_arm_says_none_and_an_error_in_a_stream_is_one(tmp_path: Path) -> None:
    """A call that is refused at arrival was no policy's; an answer of status 200 may end with the engine's error."""
    error = b'data: {"error":{"message":"out of memory","type":"InternalServerError","code":500}}\n\n'

    async def breaks(request: EngineRequest) -> None:
        await request.begin_stream()
        await request.chunk(b'data: {"choices":[{"delta":{"content":"\\"error\\": "}}]}\n\n')
        await request.chunk(error[:20])
        await request.chunk(error[20:] + b"data: [DONE]\n\n")
        await request.end_stream()

    log, state = tmp_path / "log", tmp_path / "state"

    async def main() -> None:
        async with engine(breaks) as vllm, gateway(vllm, log=str(log), state_dir=str(state)) as running:
            wanted = definition(arms=["fifo", "passthrough"])
            assert (await posted(running, "/admin/experiments", wanted))[0] == 201
            seen: list[str] = []
            following = running.app.gateway.scheduler.experiments.running["one"].following
            over = following.over
            following.over = lambda *args: (seen.append(args[2]), over(*args))[1]  # type: ignore[method-assign,func-returns-value]
            answer = await running.post("/v1/chat/completions", {"model": "m", "messages": [], "stream": True})
            assert answer.status == 200 and error in answer.body
            assert seen == ["engine_error"]
            (await running.post("/v1/chat/completions", {"model": "nobody", "messages": []})).assert_error(404)
            (await running.post("/v1/chat/completions", {"model": 3})).assert_error(400)

    uvloop.run(main())
    calls = [line for line in map(json.loads, log.read_text().splitlines()) if line.get("event") == "call"]
    assert [line["policy"] for line in calls] == ["fifo", "-", "-"]


def test_a_shadow_is_asked_and_nothing_else_changes(twins: tuple[str, str], tmp_path: Path) -> None:
    state = tmp_path / "state"
    tables = {"state_dir": str(state), "experiments": {"pace": PACE}}

    async def main() -> None:
        async with gateway(twins[0], **tables) as running:
            arms = ["passthrough", {"policy": "fifo", "options": {"max_in_flight": 1}}]
            wanted = definition(design="shadow", arms=arms, metric="joules_per_workflow")
            assert (await posted(running, "/admin/experiments", wanted))[0] == 201
            for _ in range(8):
                assert "200 passthrough" in await call(running, MODEL)
            status = running.app.experiments.status("one") or {}
            assert status["shadow"]["decisions"] == status["shadow"]["same"] == 8
            assert status["shadow_dropped"] is None
            await posted(running, "/admin/experiments/one/stop", {})

    uvloop.run(main())
    recording = read(state / "experiments" / "one" / "blocks.jsonl")
    assert recording.shadow_dropped is None and recording.rows[0].shadow is not None
    assert recording.definition.arms[1] == Arm("fifo", {"max_in_flight": 1}, "observe")


@contextlib.asynccontextmanager
async def busy(running: RunningGateway) -> AsyncIterator[None]:
    """Clients with a call each, one after the other: prompts that nothing cached helps with, so that it draws much."""
    going = True

    async def client(number: int) -> None:
        turn = 0
        while going:
            turn += 1
            prompt = f"{number} {turn} " + " ".join(f"w{(number * 7919 + turn * 31 + k) % 997}" for k in range(300))
            await call(running, MODEL, prompt=prompt, max_tokens=100, ignore_eos=True)

    clients = [asyncio.ensure_future(client(number)) for number in range(32)]
    try:
        yield
    finally:
        going = False
        await asyncio.gather(*clients)


def test_a_cap_mode_by_arm_is_carried_out_on_the_card(tmp_path: Path) -> None:
    child = started(tmp_path / "twin", MODEL)
    power = {"mode": "actuate", "lease_dir": str(tmp_path / "leases")}
    caps = {**TARGETS, "floor_share": 0.95, "calls_least": 1, "hysteresis_share": 0.001}
    tables = {"state_dir": str(tmp_path / "state"), "power": power, "caps": caps}
    arms = [{"policy": "passthrough", "cap_mode": mode} for mode in ("observe", "actuate")]

    async def main(url: str) -> None:
        async with gateway(url, **tables) as running:
            desk = running.app.gateway.scheduler.caps
            await until(lambda: any(sight.cards for sight in desk.engines.values()), "its cards")
            assert "until a cap has settled" in await refused(running, arms=arms)
            wanted = definition(arms=arms, block_seconds=26.0, washout_seconds=13.0, seed=3)
            status, told = await posted(running, "/admin/experiments", wanted)
            assert (status, told["arms"]) == (201, ["passthrough", "passthrough, caps actuate"])
            [name] = desk.engines
            assert desk.mode_of(name) == "observe"
            async with busy(running):
                await until(lambda: desk.mode_of(name) == "actuate", "the treatment's block", 60.0)
                await until(lambda: desk.engines[name].limit_watts == 665.0, "a cap", 60.0)
                assert limit_of(url) == 665.0
                await until(lambda: desk.mode_of(name) == "observe", "the control's block", 60.0)
                await until(lambda: desk.engines[name].limit_watts == 700.0, "the limit is back")
                assert limit_of(url) == 700.0
            await posted(running, "/admin/experiments/one/stop", {})
            assert desk.mode_of(name) == "actuate", "as the gateway's configuration says"

    try:
        uvloop.run(main(child.wait_ready_to_serve().url))
    finally:
        child.end()
