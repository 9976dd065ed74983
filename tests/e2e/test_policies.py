"""The policy changed while calls run, one that fails, one of somebody else's, and what is told of decisions."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from proxy import explain, policies
from proxy.cli import main as joulegate_main
from proxy.config_file import load
from scheduler.decisions import Judged
from scheduler.events import PolicyChanged
from scheduler.policies import POLICIES, register
from tests.e2e.harness import Answer, EngineRequest, RunningGateway, engine, gateway, run, until
from tests.unit.test_metrics import OF_POLICIES

if TYPE_CHECKING:
    from collections.abc import Iterator

CHAT = {"model": "m", "messages": []}
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
DOCUMENT = EXAMPLES.parent / "docs" / "observability.md"


async def ask(
    joulegate: RunningGateway, method: str, path: str, body: object = None, kind: str = "application/json"
) -> Answer:
    """One request to the control plane."""
    from tests.e2e.harness import Client

    client = Client(*await asyncio.open_connection("127.0.0.1", joulegate.control_port))
    data = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: {kind}\r\ncontent-length: {len(data)}\r\n\r\n"
    await client.send(head.encode() + data)
    answer = await client.answer()
    client.close()
    return answer


@pytest.fixture
def failing() -> Iterator[str]:
    class Failing(POLICIES["fifo"]):  # type: ignore[misc,name-defined]
        name = "failing"

        def sent(self, call: Any, engine: Any, now: float) -> None:
            raise ZeroDivisionError("its own fault")

    register(Failing)
    yield "failing"
    del POLICIES["failing"]


def test_the_policy_is_changed_under_load_and_every_call_is_answered_once() -> None:
    async def main() -> None:
        seen: dict[str, int] = {}

        async def answer(request: EngineRequest) -> None:
            seen[request.json["user"]] = seen.get(request.json["user"], 0) + 1
            await asyncio.sleep(0.001)
            await request.answer(b"{}")

        async with engine(answer) as one, engine(answer) as two, gateway(one, two) as joulegate:
            calls = [
                asyncio.ensure_future(
                    joulegate.post("/v1/chat/completions", {**CHAT, "user": f"u{i}"}, f"x-workflow-id: w{i % 9}\r\n")
                )
                for i in range(200)
            ]
            names = [name for name in sorted(POLICIES) for _ in range(3)]
            for number, name in enumerate(names):
                options = {o: 2 + number % 3 for o in POLICIES[name].options if o == "max_in_flight"}
                said = await ask(joulegate, "POST", "/admin/policy", {"name": name, "options": options})
                assert (said.status, said.json["policy"]) == (200, name)
                joulegate.app.gateway.scheduler.validate()
            said = await ask(joulegate, "POST", "/admin/policy", {"name": "passthrough"})
            answers = await asyncio.gather(*calls)
            assert [each.status for each in answers] == [200] * 200
            assert seen == {f"u{i}": 1 for i in range(200)}
            assert joulegate.app.gateway.scheduler.deciding.failures == 0

    run(main)


def test_what_is_no_policy_is_refused_and_changes_nothing() -> None:
    async def main() -> None:
        async def answer(request: EngineRequest) -> None:
            await request.answer(b"{}")

        async with engine(answer) as vllm, gateway(vllm) as joulegate:
            for body, param, word in (
                ({"name": "fifi"}, "name", "there are passthrough, fifo"),
                ({"name": 3}, "name", "must be text"),
                ({}, "name", "must be text"),
                ([], None, "must be an object"),
                (
                    {"name": "fifo", "options": {"max_in_flight": 0}},
                    "options.max_in_flight",
                    "a whole number from 1 on",
                ),
                ({"name": "fifo", "options": {"x": 0}}, "options.x", "max_in_flight"),
                ({"name": "fifo", "options": 3}, "options", "must be an object"),
                ({"name": "fifo", "more": 3}, "more", "unknown member"),
            ):
                said = await ask(joulegate, "POST", "/admin/policy", body)
                assert said.status == 400, body
                assert said.json["error"]["param"] == param and word in said.json["error"]["message"], said.json
            said = await ask(joulegate, "POST", "/admin/policy", {"name": "fifo"}, "text/plain")
            assert said.status == 415, "a page in a browser could send that"
            told = (await ask(joulegate, "GET", "/admin/policy")).json
            assert told["policy"] == "passthrough" and told["failed"] is None
            assert told["known"]["fifo"]["max_in_flight"]["default"] == 256

    run(main)


def test_a_policy_that_raises_is_relieved_loudly(
    failing: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = tmp_path / "log"

    async def main() -> None:
        async def answer(request: EngineRequest) -> None:
            await request.answer(b"{}")

        async with engine(answer) as vllm, gateway(vllm, log=str(log), policy={"name": failing}) as joulegate:
            calls = [joulegate.post("/v1/chat/completions", CHAT) for _ in range(8)]
            assert [each.status for each in await asyncio.gather(*calls)] == [200] * 8
            ready = await ask(joulegate, "GET", "/ready")
            assert ready.status == 200 and "ZeroDivisionError: its own fault" in ready.json["notes"][0]
            told = (await ask(joulegate, "GET", "/admin/policy")).json
            assert (told["policy"], told["asked_for"], told["failed"]["hook"]) == ("passthrough", failing, "sent")
            metrics = (await ask(joulegate, "GET", "/metrics")).body.decode()
            assert "joulegate_policy_failures_total 1.0" in metrics
            assert 'joulegate_policy_info{asked_for="failing",policy="passthrough"} 1.0' in metrics
            await ask(joulegate, "POST", "/admin/policy", {"name": "fifo"})
            assert "notes" not in (await ask(joulegate, "GET", "/ready")).json
            deciding = joulegate.app.gateway.scheduler.deciding
            joulegate.app.policies.reload("passthrough", {})  # as SIGHUP does
            assert deciding.policy.name == "passthrough", "what the file says, not what was set meanwhile"
            before = deciding.policy
            joulegate.app.policies.reload("passthrough", {})
            assert deciding.policy is before, "nothing to change"
            await until(lambda: '"policy_failed"' in log.read_text(), "it is in the log")

    run(main)
    assert any("failing failed in sent" in record.getMessage() for record in caplog.records)


def test_a_decision_is_told_and_explained(capsys: pytest.CaptureFixture[str]) -> None:
    async def main() -> None:
        proceed = asyncio.Event()

        async def answer(request: EngineRequest) -> None:
            await proceed.wait()
            await request.answer(b'{"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}')

        async with engine(answer) as vllm, gateway(vllm, policy={"name": "fifo", "max_in_flight": 1}) as joulegate:
            calls = [
                asyncio.ensure_future(joulegate.post("/v1/chat/completions", CHAT, f"x-workflow-id: w{i}\r\n"))
                for i in range(2)
            ]
            await until(lambda: len(joulegate.app.gateway.scheduler.calls) == 2, "both are here")
            live = (await ask(joulegate, "GET", "/admin/decisions")).json["decisions"]
            assert sorted(each["state"] for each in live) == ["held", "running"]
            proceed.set()
            first, second = sorted(
                [
                    dict(part.split("=") for part in (await each).header("x-joulegate-decision").split("; ")[1:])
                    for each in calls
                ],  # type: ignore[union-attr]
                key=lambda said: float(said["held_ms"]),
            )
            assert (first["rule"], second["rule"]) == ("at_once", "turn")
            told = (await ask(joulegate, "GET", f"/admin/decisions/{second['id']}")).json
            assert (told["sent"]["rule"], told["came_of_it"]["outcome"]) == ("turn", "answered")
            assert (told["came_of_it"]["output_tokens"], told["came_of_it"]["joules_source"]) == (2, "unavailable")
            newest = (await ask(joulegate, "GET", "/admin/decisions?limit=1")).json["decisions"]
            assert [each["call_id"] for each in newest] == [second["id"]]
            of_one = (await ask(joulegate, "GET", f"/admin/decisions?workflow={told['workflow']}")).json["decisions"]
            assert [each["call_id"] for each in of_one] == [second["id"]]
            assert (await ask(joulegate, "GET", "/admin/decisions?limit=0")).status == 400
            assert (await ask(joulegate, "GET", "/admin/decisions/nobody")).status == 404
            url = f"http://127.0.0.1:{joulegate.control_port}"
            assert await asyncio.to_thread(joulegate_main, ["explain", second["id"], "--control", url]) == 0
            said = capsys.readouterr().out
            assert "by fifo, rule turn" in said and "unknown joules (unavailable)" in said
            assert await asyncio.to_thread(joulegate_main, ["explain", "nobody", "--control", url]) == 1
            joulegate.app.gateway.scheduler.decisions.judged["fifo", "turn"] = Judged()
            metrics = (await ask(joulegate, "GET", "/metrics")).body.decode()
            assert 'joulegate_decisions_total{policy="fifo",rule="turn"} 1.0' in metrics
            documented = re.findall(r"^\| `(joulegate_\w+)`", DOCUMENT.read_text(), re.MULTILINE)
            exposed = {sample.name for family in text_string_to_metric_families(metrics) for sample in family.samples}
            assert set(filter(OF_POLICIES.match, documented)) == set(filter(OF_POLICIES.match, exposed))

    run(main)


def node(name: str) -> dict[str, Any]:
    return {"id": name, "expected_output_tokens": 20, "request": CHAT}


def test_what_joule_holds_is_told_and_explained(capsys: pytest.CaptureFixture[str]) -> None:
    async def main() -> None:
        async def answer(request: EngineRequest) -> None:
            await request.answer(b'{"usage":{"prompt_tokens":3,"completion_tokens":20,"total_tokens":23}}')

        async with engine(answer) as vllm, gateway(vllm, policy={"name": "joule"}) as joulegate:
            scheduler = joulegate.app.gateway.scheduler
            calls: list[asyncio.Future[Answer]] = []
            for name in "ab":  # the first one goes: nobody is expected
                body = {"id": name, "mode": "declared", "deadline_ms": 2_500, "nodes": [node("n")]}
                assert (await joulegate.post("/v1/workflows", body)).status == 201
                headers = f"x-workflow-id: {name}\r\nx-workflow-node: n\r\n"
                calls.append(asyncio.ensure_future(joulegate.post("/v1/chat/completions", CHAT, headers)))
                await until(
                    lambda: calls[0].done() and len(scheduler.calls) == len(calls) - 1, "it is answered, or held"
                )
            live = (await ask(joulegate, "GET", "/admin/decisions")).json["decisions"]
            (told,) = [each for each in live if each["state"] == "held"]
            why = told["held"]["first"]
            assert why["rule"] == "company" and 0 < why["hold_seconds"] < why["slack_seconds"] < 2.5
            assert why["now"]["seconds"] < why["later"]["seconds"] and why["now"]["joules"] is None
            answers = await asyncio.gather(*calls)
            assert [each.status for each in answers] == [200] * len(calls)
            url = f"http://127.0.0.1:{joulegate.control_port}"
            assert await asyncio.to_thread(joulegate_main, ["explain", told["call_id"], "--control", url]) == 0
            said = capsys.readouterr().out
            assert "at first: company; slack" in said and "by joule, rule" in said and "beyond what was" in said
            metrics = (await ask(joulegate, "GET", "/metrics")).body.decode()
            assert 'joulegate_decisions_judged_total{policy="joule",rule="company"} 1.0' in metrics

    run(main)


def test_impossible_deadlines_are_flagged_and_unknown_classes_are_refused() -> None:
    async def main() -> None:
        async def answer(request: EngineRequest) -> None:
            await request.answer(b'{"usage":{"prompt_tokens":3,"completion_tokens":20,"total_tokens":23}}')

        async with engine(answer) as vllm, gateway(vllm, policy={"name": "joule"}) as joulegate:
            body = {"id": "w", "mode": "declared", "deadline_ms": 1, "nodes": [node("n")]}
            said = await joulegate.post("/v1/workflows", body)
            assert said.status == 201 and (said.header("x-joulegate-deadline") or "").startswith("impossible; ")
            said = await joulegate.post("/v1/chat/completions", CHAT, "x-workflow-id: w\r\nx-workflow-node: n\r\n")
            assert said.status == 200
            flag, short = (said.header("x-joulegate-deadline") or "").split("; too_short_by_ms=")
            assert flag == "impossible" and 0 < float(short) < 60_000
            told = (await joulegate.request(b"GET /v1/workflows/w HTTP/1.1\r\nhost: a\r\n\r\n")).json
            assert told["deadline_too_short_by_seconds"] > 0
            hinted = await joulegate.post(
                "/v1/chat/completions", CHAT, "x-workflow-id: v\r\nx-workflow-deadline-ms: 1\r\n"
            )
            assert (hinted.header("x-joulegate-deadline") or "").startswith("impossible; ")
            fine = {"id": "fine", "mode": "declared", "deadline_ms": 600_000, "nodes": [node("n")]}
            said = await joulegate.post("/v1/workflows", fine)
            assert said.status == 201 and said.header("x-joulegate-deadline") is None
            run_here = {"id": "short", "deadline_ms": 1, "nodes": [node("n")]}
            said = await joulegate.post("/v1/workflows", run_here)
            assert said.status == 200 and (said.header("x-joulegate-deadline") or "").startswith("impossible; ")
            known = "interactive, standard, batch"
            said = await joulegate.post("/v1/chat/completions", CHAT, "x-workflow-id: u\r\nx-workflow-class: swift\r\n")
            assert said.status == 400 and known in said.json["error"]["message"]
            for wanted, path in (
                ({**CHAT, "workflow": {"id": "u", "class": "swift"}}, "/v1/chat/completions"),
                ({"nodes": [node("n")], "class": "swift"}, "/v1/workflows"),
            ):
                said = await joulegate.post(path, wanted)
                assert said.status == 400 and known in said.json["error"]["message"]
            said = await ask(joulegate, "POST", "/admin/policy", {"name": "joule", "options": {"misses_share": 1.0}})
            assert said.status == 400 and said.json["error"]["param"] == "options.misses_share"

    run(main)


def test_explain_puts_predictions_and_regret_in_words() -> None:
    way = {"seconds": 2.0, "joules": 5.0}
    why = {"rule": "slack", "slack_seconds": 9.0, "hold_seconds": 4.0, "now": way, "later": None}
    told = {
        "call_id": "c", "key": "-", "node": "map-1", "workflow": "w", "state": "over",
        "held": {"after_seconds": 0.0, "times": 2, "first": why, "last": why},
        "sent": {
            "after_seconds": 4.0, "rule": "urgent", "engine": "a", "policy": "joule", "calls_beside": 3, "priority": 7,
            "attempts": 1, "why": None, "other_engines": [{"engine": "b", "calls": 0}],
        },
        "policy": "joule",
        "came_of_it": {
            "outcome": "answered", "seconds_after_arrival": 7.0, "prompt_tokens": 10, "output_tokens": 5, "joules": 1.5,
            "joules_source": "simulated",
        },
        "regret": {"seconds": 5.0, "joules": -3.5},
    }  # fmt: skip
    text = "\n".join(explain.in_words({**told, "sent": {**told["sent"], "policy": "joule"}}))  # type: ignore[dict-item]
    for words in (
        "node map-1 of workflow w", "looked at 2 times", "slack; slack 9.000 s; to hold 4.000 s; now: 2.000 s, 5.00 J",
        "rule urgent", "instead of b, which had 0 calls", "1.50 J (simulated)", "5.000 s, -3.50 J",
    ):  # fmt: skip
        assert words in text, text


def test_the_example_policy_is_found_by_its_entry_point_and_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    info = tmp_path / "longest_wait-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: longest-wait\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[joulegate.policies]\nlongest-wait = longest_wait_policy:LongestWait\nbroken = no_such_module:Nothing\n"
    )
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(policies, "_loaded", {})
    try:
        assert list(policies.load_plugins()) == ["no_such_module:Nothing"]
        text = {"engines": [{"url": "http://x:1"}], "policy": {"name": "longest-wait", "max_in_flight": 2}}
        assert load(None, {}, text).policy.options == {"max_in_flight": 2}

        async def main() -> None:
            async def answer(request: EngineRequest) -> None:
                await request.answer(b"{}")

            async with engine(answer) as vllm, gateway(vllm, policy=text["policy"]) as joulegate:
                calls = [
                    joulegate.post("/v1/chat/completions", CHAT, f"x-workflow-id: w{i % 3}\r\n") for i in range(30)
                ]
                answers = await asyncio.gather(*calls)
                assert [each.status for each in answers] == [200] * 30
                assert "rule=longest_wait" in (answers[0].header("x-joulegate-decision") or "")
                scheduler = joulegate.app.gateway.scheduler
                assert (scheduler.policy.name, scheduler.deciding.failures) == ("longest-wait", 0)
                joulegate.app.gateway.tell(PolicyChanged("passthrough"))

        run(main)
        assert len((EXAMPLES / "longest_wait_policy.py").read_text().splitlines()) <= 40
    finally:
        POLICIES.pop("longest-wait", None)
        sys.modules.pop("longest_wait_policy", None)


def test_two_wakes_that_are_due_at_once_do_no_harm() -> None:
    async def main() -> None:
        async def answer(request: EngineRequest) -> None:
            await request.answer(b"{}")

        async with engine(answer) as vllm, gateway(vllm) as running:
            for _ in range(2):
                running.app.gateway._wake_at(0.0)
            assert running.app.gateway._wake is not None
            await until(lambda: running.app.gateway._wake is None, "the tick that was asked for")

    run(main)
