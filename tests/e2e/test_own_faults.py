"""Faults of our own and of this machine: one call or one log ends, everything else goes on, and somebody is told."""

from __future__ import annotations

import asyncio
import json
from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest

from scheduler.actions import Abort, Dispatch, Reject
from scheduler.events import CallArrived, PolicyChanged
from tests.e2e.harness import EngineRequest, engine, gateway, post, run, until

if TYPE_CHECKING:
    from pathlib import Path

    from scheduler.actions import Action

CHAT = {"model": "m", "messages": []}


async def respond(request: EngineRequest) -> None:
    """The simplest engine."""
    await request.answer(b"{}")


def test_a_retry_that_is_held_until_its_time_is_up_takes_nobodys_place() -> None:
    async def main() -> None:
        async def answer(request: EngineRequest) -> None:
            user = request.json["user"]
            await gates[user].wait()
            if user == "a":
                request.reset()
            else:
                await request.answer(b"{}")

        gates = {user: asyncio.Event() for user in "abc"}
        gates["c"].set()
        async with engine(answer) as vllm, gateway(vllm) as joulegate:
            calls = {}
            for user in "ab":
                calls[user] = asyncio.ensure_future(joulegate.post("/v1/chat/completions", {**CHAT, "user": user}))
                await until(lambda: len(vllm.requests) == len(calls), "it is at the engine")
            gateway_ = joulegate.app.gateway
            gateway_.tell(PolicyChanged("fifo", (("max_in_flight", 1),)))
            gates["a"].set()
            await until(lambda: joulegate.app.state()["calls_held"] == 1, "the retry waits: there is no room")
            (held,) = [exchange for exchange in gateway_.exchanges.values() if b'"a"' in exchange.request.body]
            held.check_time(monotonic() + 10_000)
            (await calls["a"]).assert_error(504, "total_timeout")
            assert len(gateway_.scheduler.calls) == 1
            gates["b"].set()
            assert (await calls["b"]).status == 200
            assert (await joulegate.post("/v1/chat/completions", {**CHAT, "user": "c"})).status == 200
            assert len(vllm.requests) == 3

    run(main)


def test_one_bad_call_does_not_end_all_timeouts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = tmp_path / "log"

    async def main() -> None:
        async def hang(request: EngineRequest) -> None:
            await request.gone.wait()

        async with engine(hang) as vllm, gateway(vllm, log=str(log)) as joulegate:
            joulegate.faults_expected = 2
            bad = await joulegate.connect()
            await bad.send(post("/v1/chat/completions", CHAT))
            await until(lambda: len(vllm.requests) == 1, "it is at the engine")
            good = asyncio.ensure_future(joulegate.post("/v1/chat/completions", CHAT))
            await until(lambda: len(vllm.requests) == 2, "so is the other")
            (first, _) = joulegate.app.gateway.exchanges.values()
            first.call.arrived_at = None  # type: ignore[assignment]
            assert await bad.closed() == b""
            await asyncio.wait_for(vllm.requests[0].gone.wait(), 5)
            joulegate.app.gateway.timeouts = joulegate.app.config.timeouts.model_copy(update={"total_seconds": 1e-6})
            (await good).assert_error(504, "total_timeout")

    run(main)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["where"] for line in lines if line["event"] == "internal_error"] == [
        "a call's timeouts",
        "counting a call",
    ]
    assert caplog.text.count("Traceback") == 2


def test_an_action_for_a_call_that_is_not_there_breaks_no_other() -> None:
    async def main() -> None:
        async with engine(respond) as vllm, gateway(vllm) as joulegate:
            gateway_, name = joulegate.app.gateway, f"127.0.0.1:{vllm.port}"
            handle = gateway_.scheduler.handle

            def with_strangers(event: Any, now: float) -> list[Action]:
                actions = handle(event, now)
                if isinstance(event, CallArrived):
                    stranger = Reject("nobody", 503, "x", "y")
                    return [Dispatch("nobody", name), stranger, Abort("nobody", name), *actions]
                return actions

            gateway_.scheduler.handle = with_strangers  # type: ignore[method-assign]
            assert (await joulegate.post("/v1/chat/completions", CHAT)).status == 200
            joulegate.faults_expected = 3

    run(main)


def test_a_call_that_is_sent_to_an_engine_that_is_not_there_frees_its_place() -> None:
    async def main() -> None:
        async with engine(respond) as vllm, gateway(vllm) as joulegate:
            joulegate.faults_expected = 1
            gateway_, name = joulegate.app.gateway, f"127.0.0.1:{vllm.port}"
            here = gateway_.engines.pop(name)
            client = await joulegate.connect()
            await client.send(post("/v1/chat/completions", CHAT))
            assert await client.closed() == b""
            gateway_.engines[name] = here
            assert not gateway_.scheduler.calls
            assert (await joulegate.post("/v1/chat/completions", CHAT)).status == 200

    run(main)


def test_a_probe_that_fails_in_our_code_is_reported_and_the_next_one_made(tmp_path: Path) -> None:
    log = tmp_path / "log"

    async def main() -> None:
        async with engine(respond) as vllm, gateway(vllm, log=str(log)) as joulegate:
            watch = joulegate.app._watches[f"127.0.0.1:{vllm.port}"]
            probe = watch._get_models

            async def broken() -> None:
                raise ZeroDivisionError

            watch._get_models = broken  # type: ignore[assignment, method-assign]
            watch._models_at = float("-inf")
            await until(lambda: joulegate.app.gateway.faults.count > 1, "two probes have failed")
            watch._get_models = probe  # type: ignore[method-assign]
            vllm.healthy = False
            await until(lambda: not joulegate.app.ready()[0], "it is watched on")
            joulegate.faults_expected = joulegate.app.gateway.faults.count

    run(main)
    assert '"where":"a probe"' in log.read_text()


def test_an_event_log_on_a_full_disk_costs_no_call(tmp_path: Path) -> None:
    log = tmp_path / "log"

    async def main() -> None:
        async with engine(respond) as vllm, gateway(vllm, log=str(log), event_log={"path": "/dev/full"}) as joulegate:
            client = await joulegate.connect()
            for _ in range(300):
                await client.send(post("/v1/chat/completions", CHAT))
                assert (await client.answer()).status == 200

    run(main)
    assert log.read_text().count('"event":"event_log_stopped"') == 1


def test_the_name_of_an_unknown_model_comes_back_in_part() -> None:
    async def main() -> None:
        async with engine(respond) as vllm, gateway(vllm) as joulegate:
            said = await joulegate.post("/v1/chat/completions", {"model": "Z" * 5_000_000})
            assert said.assert_error(404, "unknown_model")["param"] == "model"
            assert len(said.body) < 1000

    run(main)


def test_where_a_call_says_it_belongs_is_shown() -> None:
    async def main() -> None:
        async def hang(request: EngineRequest) -> None:
            await proceed.wait()
            await request.answer(b"{}")

        proceed = asyncio.Event()
        async with engine(hang) as vllm, gateway(vllm) as joulegate:
            headers = "x-claude-code-session-id: s\r\nx-claude-code-agent-id: a\r\n"
            call = asyncio.ensure_future(joulegate.post("/v1/chat/completions", CHAT, headers))
            body = {**CHAT, "workflow": {"id": "run", "energy_budget_joules": 12.5}}
            other = asyncio.ensure_future(joulegate.post("/v1/chat/completions", body))
            await until(lambda: len(vllm.requests) == 2, "both are at the engine")
            shown = {found["workflow"]: found for found in joulegate.app.state()["calls"]}
            assert (shown["s"]["node"], shown["s"]["parent"]) == ("a", "s")
            assert shown["s"]["identity_source"] == "claude-code"
            assert shown["run"]["identity_source"] == "joulegate-body"
            calls = joulegate.app.gateway.scheduler.calls.values()
            assert {found.arrived.energy_budget_joules for found in calls} == {None, 12.5}
            proceed.set()
            assert [(await one).status for one in (call, other)] == [200, 200]

    run(main)


@pytest.mark.parametrize("target", ["host:1", "/v1/models"])
def test_connect_is_refused_whatever_its_target(target: str) -> None:
    """With a path it was read again and again, for ever: leaving the upgrade header out does not change its method."""

    async def main() -> None:
        async with engine(respond) as vllm, gateway(vllm) as joulegate:
            said = await joulegate.request(f"CONNECT {target} HTTP/1.1\r\nhost: a\r\n\r\n".encode())
            said.assert_error(405, "method")

    run(main)
