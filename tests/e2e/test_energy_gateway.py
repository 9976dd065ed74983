"""Joules as a client and an operator see them: a gateway in front of a twin, and of an engine that nothing measures."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from proxy.budgets import load_joules
from proxy.keys import hash_key
from tests.e2e.harness import EngineRequest, RunningGateway, engine, gateway, run, until
from tests.e2e.test_control import get
from tests.e2e.test_workflows_native import get as fetch
from tests.e2e.twin_process import MODEL, Twin

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ASK = {"model": MODEL, "max_tokens": 20, "ignore_eos": True, "messages": [{"role": "user", "content": "hello"}]}
INTERVAL = re.compile(r"(\d+\.\d+)-(\d+\.\d+)")


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """At real time: its meter and ours count the same seconds."""
    child = Twin(tmp_path_factory.mktemp("twin") / "log")
    try:
        yield child.wait_ready_to_serve().url
    finally:
        child.end()


async def metered(running: RunningGateway) -> None:
    """The meter was found, its prior is there, and it has been read."""
    desk = running.app.gateway.scheduler.energy
    await until(lambda: any(one.model is not None for one in desk.engines.values()), "a model of the engine")


async def ask_for(running: RunningGateway, path: str) -> Any:
    return (await fetch(running, path)).json


def test_answers_streams_workflows_and_ledger_say_joules(twin: str) -> None:
    async def main() -> None:
        async with gateway(twin) as running:
            await metered(running)
            answer = await running.post("/v1/chat/completions", ASK, "x-workflow-id: h\r\nx-workflow-node: n\r\n")
            joules = float(answer.header("x-energy-joules") or "nan")
            bounds = INTERVAL.fullmatch(answer.header("x-energy-interval") or "")
            assert bounds is not None and float(bounds[1]) <= joules <= float(bounds[2])
            assert answer.header("x-energy-source") == "simulated" and joules > 0

            usage = {"stream": True, "stream_options": {"include_usage": True}}
            body = (await running.post("/v1/chat/completions", {**ASK, **usage})).body
            said = [json.loads(line[6:]) for line in body.split(b"\n") if line.startswith(b'data: {"')][-1]["usage"]
            assert said["completion_tokens"] == 20
            assert said["energy_joules"] > 0 and said["energy_source"] == "simulated"
            plain = (await running.post("/v1/chat/completions", {**ASK, "stream": True})).body
            assert b"energy" not in plain, "only beside the usage that was asked for"

            nodes = [{"id": "a", "request": ASK}, {"id": "b", "request": ASK, "after": ["a"]}]
            done = (await running.post("/v1/workflows", {"id": "w", "nodes": nodes})).json
            assert done["energy_source"] == "simulated" and done["energy_joules"] > 0
            desk = running.app.gateway.scheduler.energy
            node = running.app.gateway.scheduler.workflows.workflow("-", "h").graph.nodes["n"]
            await until(lambda: desk.bill.call(node.call_id).settled, "the call's windows to close")
            hinted = await ask_for(running, "/v1/workflows/h")
            assert hinted["nodes"][0]["energy_settled"] and hinted["energy_joules"] > 0
            rows = (await ask_for(running, "/v1/energy?by=workflow"))["rows"]
            [row] = [row for row in rows if row["workflow"] == "h"]
            assert row["energy_source"] == "simulated" and row["energy_joules"] > 0 and row["calls"] == 1
            model = (await get(running.control_port, "/admin/energy-model")).json["engines"]
            [told] = model.values()
            assert told["energy_source"] == "simulated" and told["model"]["windows"]["used"] >= 1
            text = (await get(running.control_port, "/metrics")).body.decode()
            assert 'source="simulated"' in text and "joulegate_energy_joules_total" in text

    run(main)


def test_what_nothing_measures_is_unavailable_and_never_zero() -> None:
    async def plain(request: EngineRequest) -> None:
        await request.answer(b'{"usage":{"prompt_tokens":7,"completion_tokens":3}}')

    async def main() -> None:
        async with engine(plain) as upstream, gateway(upstream) as running:
            shell = running.app.energy
            await until(lambda: bool(shell.metering.meters), "the search for a meter to end")
            answer = await running.post("/v1/chat/completions", {**ASK, "model": "m"}, "x-workflow-id: h\r\n")
            assert answer.header("x-energy-joules") is None
            shown = await ask_for(running, "/v1/workflows/h")
            assert (shown["energy_joules"], shown["energy_source"]) == (None, "unavailable")
            [told] = (await get(running.control_port, "/admin/energy-model")).json["engines"].values()
            assert told["energy_source"] == "unavailable" and told["model"] is None and told["devices"] == []
            assert (await ask_for(running, "/v1/energy"))["rows"] == []

    run(main)


def test_what_was_learned_survives_a_restart(twin: str, tmp_path: Path) -> None:
    async def main() -> None:
        state = {"state_dir": str(tmp_path)}
        async with gateway(twin, **state) as running:
            await metered(running)
            await running.post("/v1/chat/completions", ASK)
            [desk] = running.app.gateway.scheduler.energy.engines.values()
            await until(lambda: desk.last_learned is not None, "a window")
        kept = json.loads((tmp_path / "energy.json").read_bytes())
        async with gateway(twin, **state) as running:
            await metered(running)
            [again] = running.app.gateway.scheduler.energy.engines.values()
            assert again.model is not None
            assert again.model.describe()["windows"]["used"] >= 1
            [was] = kept["engines"].values()
            assert was["prior"] == again.model.prior.name

    run(main)


def test_a_budget_of_joules_refuses_the_next_call(twin: str) -> None:
    async def main() -> None:
        async with gateway(twin) as running:
            await metered(running)
            place = {"workflow": {"id": "thrifty", "energy_budget_joules": 1.0}}
            refused = await running.post("/v1/chat/completions", {**ASK, **place})
            fault = refused.assert_error(429, "workflow_joule_budget")
            assert "1 J" in fault["message"]
            place = {"workflow": {"id": "rich", "energy_budget_joules": 1e6}}
            assert (await running.post("/v1/chat/completions", {**ASK, **place})).status == 200

    run(main)


def test_a_declared_budget_holds_for_calls_that_say_none_in_both_modes(twin: str) -> None:
    async def main() -> None:
        async with gateway(twin) as running:
            await metered(running)
            nodes = [{"id": "a", "request": ASK}]
            done = (
                await running.post("/v1/workflows", {"id": "run", "energy_budget_joules": 1.0, "nodes": nodes})
            ).json
            assert done["status"] == "failed"
            assert done["nodes"][0]["attempts"] == 1, "trying again would not help"
            fault = done["nodes"][0]["error"]
            assert (fault["status"], fault["code"]) == (429, "workflow_joule_budget")

            plan = {"id": "declared", "mode": "declared", "energy_budget_joules": 1.0, "nodes": [{"id": "a"}]}
            assert (await running.post("/v1/workflows", plan)).status < 300
            refused = await running.post(
                "/v1/chat/completions", ASK, "x-workflow-id: declared\r\nx-workflow-node: a\r\n"
            )
            refused.assert_error(429, "workflow_joule_budget")
            assert (await running.post("/v1/chat/completions", ASK, "x-workflow-id: other\r\n")).status == 200

    run(main)


def test_calls_whose_prompts_begin_alike_share_what_the_beginning_cost(twin: str) -> None:
    async def main() -> None:
        async with gateway(twin, workflows={"inference": "on"}) as running:
            await metered(running)
            system = {"role": "system", "content": "You are a careful assistant. " * 290}
            for number in range(2):
                user = {"role": "user", "content": f"question {number}"}
                assert (await running.post("/v1/chat/completions", {**ASK, "messages": [system, user]})).status == 200
            desk = running.app.gateway.scheduler.energy
            await until(lambda: len(desk.bill.prefixes) >= 3, "both calls to be settled")
            await until(lambda: not desk.bill._live, "both calls to be settled")
            bills = [desk.bill.call(call_id) for call_id in desk.bill._settled]
            prefills = [bill.components["prefill"] for bill in bills]
            assert 0.5 < prefills[1] / prefills[0] <= 1, (
                "the second found it in the cache, and pays its part all the same"
            )

    run(main)


def test_what_a_key_has_used_of_its_budget_is_on_disk_while_the_gateway_runs(twin: str, tmp_path: Path) -> None:
    keys = [{"name": "k", "sha256": hash_key("sk-thrifty"), "energy_budget_joules": 1e5}]
    tables = {"state_dir": str(tmp_path), "keys": keys}

    async def main() -> None:
        async with gateway(twin, **tables) as running:
            await metered(running)
            answer = await running.post("/v1/chat/completions", ASK, "authorization: Bearer sk-thrifty\r\n")
            assert answer.status == 200

            def used() -> float:
                restored = load_joules(tmp_path)
                return 0.0 if restored is None else sum(joules for _, joules, _ in restored.budgets)

            await until(lambda: used() > 0, "a kill -9 now would not give the joules back")
        async with gateway(twin, **tables) as running:
            [use] = running.app.gateway.scheduler.energy.budgets.by_key.values()
            assert use.used_joules == pytest.approx(used()) and use.used_joules > 0

    run(main)
