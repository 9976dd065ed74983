"""Submitted workflows when something goes wrong, or comes at a bad moment. Real sockets, a scripted engine."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import TYPE_CHECKING, Any

from tests.e2e.harness import EngineRequest, RunningGateway, configuration, engine, gateway, post, run, until
from tests.e2e.test_workflows_native import echo, events_of, get, node

if TYPE_CHECKING:
    from proxy.inner import InnerCall
    from proxy.workflows.runner import Runner

TOOL: dict[str, Any] = {"id": "t", "tool": True}


def key(name: str, **limits: Any) -> dict[str, Any]:
    return {"name": name, "sha256": hashlib.sha256(name.encode()).hexdigest(), **limits}


def bearer(name: str) -> str:
    return f"authorization: Bearer {name}\r\n"


def runner_of(running: RunningGateway) -> Runner:
    return running.app.own.workflows.runner


async def waits(request: EngineRequest) -> None:
    await request.gone.wait()


# --- a call and its run end at the same time ---


def test_cancelling_a_call_that_has_just_ended_is_told_once() -> None:
    """DELETE comes between the answer's last byte and the turn of the loop in which the run hears of it."""

    async def main() -> None:
        async with engine(echo) as upstream, gateway(upstream) as running:
            runner, table = runner_of(running), running.app.own.workflows.table
            calls: list[InnerCall] = []

            async def ends_and_is_cancelled(request: EngineRequest) -> None:
                (call,) = running.app.gateway.inner.running
                told = call.answered

                def answered(*, keep_alive: bool) -> None:
                    told(keep_alive=keep_alive)
                    calls.append(call)
                    (under_way,) = table.running
                    runner.cancel(under_way)

                call.answered = answered  # type: ignore[method-assign]
                await echo(request)

            upstream.answer = ends_and_is_cancelled
            answer = await running.post("/v1/workflows", {"nodes": [node("a")]})
            assert answer.json["status"] == "cancelled" and calls
            assert runner.running == 0 and not running.app.gateway.inner.running
            upstream.answer = echo
            assert (await running.post("/v1/workflows", {"nodes": [node("a")]})).json["status"] == "completed"

    run(main)


def test_an_answer_that_is_too_long_and_ends_in_the_same_read() -> None:
    """The call is cancelled from within the exchange that is about to complete it."""

    async def long(request: EngineRequest) -> None:
        chunk = {"choices": [{"index": 0, "delta": {"content": "x" * 2_000}}]}
        body = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n".encode()
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        await request.send(head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))

    async def main() -> None:
        raised: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: raised.append(context))
        async with engine(long) as upstream, gateway(upstream, limits={"inner_answer_bytes": 1_000}) as running:
            answer = await running.post("/v1/workflows", {"stream": True, "nodes": [node("a")]})
            told = dict(events_of(answer.body))
            assert told["node.failed"]["error"]["code"] == "answer_too_large"
            assert told["workflow.finished"]["status"] == "failed"
            assert runner_of(running).running == 0 and not raised

    run(main)


def test_what_an_engine_said_before_it_died_is_void() -> None:
    """After a good head and half an answer it resets the connection; the node is tried again, or has failed."""

    async def main() -> None:
        async def dies(request: EngineRequest) -> None:
            await request.begin_stream()
            chunk = {"choices": [{"index": 0, "delta": {"content": "half"}}]}
            await request.chunk(f"data: {json.dumps(chunk)}\n\n".encode())
            if len(upstream.requests) > 1 and "again" in request.body.decode():
                await request.chunk(b"data: [DONE]\n\n")
                await request.end_stream()
            else:
                request.writer.transport.abort()

        async with engine(dies) as upstream, gateway(upstream) as running:
            answer = await running.post("/v1/workflows", {"stream": True, "nodes": [node("a", "again", retry=1)]})
            told = events_of(answer.body)
            names = [name for name, _ in told if name.startswith("node.")]
            assert names == [
                *("node.started", "node.delta", "node.retrying", "node.started", "node.delta", "node.finished"),
            ]
            assert told[-1][1]["outputs"] == {"a": "half"}
            answer = await running.post("/v1/workflows", {"stream": True, "nodes": [node("a", "once")]})
            error = dict(events_of(answer.body))["node.failed"]["error"]
            assert (error["status"], error["code"]) == (502, "engine_reset")

    run(main)


def test_what_was_cancelled_is_not_run_again_by_the_same_submission() -> None:
    async def main() -> None:
        async with engine(waits) as upstream, gateway(upstream) as running:
            body = {"id": "w", "background": True, "nodes": [node("a")]}
            assert (await running.post("/v1/workflows", body, "idempotency-key: k\r\n")).json["status"] == "running"
            await until(lambda: len(upstream.requests) == 1, "the call")
            await get(running, "/v1/workflows/w", "DELETE")
            again = await running.post("/v1/workflows", body, "idempotency-key: k\r\n")
            assert (again.status, again.json["status"]) == (202, "cancelled") and len(upstream.requests) == 1
            (await running.post("/v1/workflows", body)).assert_error(409, "workflow_exists")

    run(main)


# --- turns ---


def test_a_key_that_is_full_is_not_asked_a_thousand_times() -> None:
    async def main() -> None:
        keys = [key("k", requests_per_minute=5), key("other")]
        async with engine(echo) as upstream, gateway(upstream, keys=keys) as running:
            nodes = [node(f"n{at}") for at in range(500)]
            sent = await running.post("/v1/workflows", {"id": "w", "nodes": nodes, "background": True}, bearer("k"))
            assert sent.status == 202
            await until(lambda: len(upstream.requests) == 5, "what the key may have")
            asked = running.app.gateway._ids
            other = await running.post("/v1/workflows", {"nodes": [node("a")]}, bearer("other"))
            assert other.json["status"] == "completed"
            assert running.app.gateway._ids - asked < 100
            assert (await get(running, "/v1/workflows/w", "DELETE", bearer("k"))).json["failed"] == []

    run(main)


def test_who_waits_for_a_turn_is_not_idle() -> None:
    """Nothing is heard of the second run for long, but the gateway is to blame and not its client."""

    async def main() -> None:
        limits = {"idle_seconds": 1e-6, "running_calls": 1}
        async with engine(waits) as upstream, gateway(upstream, workflows=limits) as running:
            for name in ("one", "two"):
                body = {"id": name, "background": True, "nodes": [node("a"), TOOL]}
                assert (await running.post("/v1/workflows", body)).status == 202
            await running.post("/v1/workflows", {"id": "tool", "background": True, "nodes": [TOOL]})
            await until(lambda: len(upstream.requests) == 1, "the first call")
            running.app.own.tick()
            running.app.gateway.scheduler.workflows.expire(asyncio.get_running_loop().time() + 1e6)
            states = {item["id"]: item["status"] for item in (await get(running, "/v1/workflows")).json["data"]}
            assert (await get(running, "/v1/workflows/two")).json["status"] == "running", states
            assert (await get(running, "/v1/workflows/two")).json["origin"] == "declared"
            assert (await get(running, "/v1/workflows/tool")).json["status"] == "cancelled"
            for name in ("one", "two"):
                await get(running, f"/v1/workflows/{name}", "DELETE")

    run(main)


# --- keys and the end of the process ---


def test_a_key_that_is_taken_away_makes_no_further_calls() -> None:
    async def main() -> None:
        go = asyncio.Event()

        async def held(request: EngineRequest) -> None:
            await go.wait()
            await echo(request)

        async with engine(held) as upstream, gateway(upstream, keys=[key("a"), key("b")]) as running:
            body = {"id": "w", "nodes": [node("a"), node("b", "{{a}}", retry=3)]}
            client = await running.connect()
            await client.send(post("/v1/workflows", body, bearer("a")))
            await until(lambda: len(upstream.requests) == 1, "the first call")
            running.app._reload = lambda: configuration(upstream, keys=[key("b")])
            running.app.reload()
            go.set()
            answer = (await client.answer()).json
            assert answer["failed"] == ["b"] and len(upstream.requests) == 1
            (error,) = [item["error"] for item in answer["nodes"] if item["id"] == "b"]
            assert (error["status"], error["code"]) == (401, "invalid_api_key")
            client.close()

    run(main)


def test_a_process_that_goes_down_waits_for_calls_and_for_no_tool() -> None:
    async def main() -> None:
        go = asyncio.Event()

        async def held(request: EngineRequest) -> None:
            await go.wait()
            await echo(request)

        async with engine(held) as upstream, gateway(upstream) as running:
            bodies = ({"nodes": [TOOL]}, {"nodes": [node("a"), node("b", "{{a}}", retry=3)]})
            clients = [await running.connect() for _ in bodies]
            for client, body in zip(clients, bodies, strict=True):
                await client.send(post("/v1/workflows", body))
            await until(lambda: len(running.app.own.workflows.table.running) == 2, "both")
            await until(lambda: len(upstream.requests) == 1, "the call")
            running.app.stop()
            assert (await clients[0].answer()).json["status"] == "cancelled"
            go.set()
            answer = (await clients[1].answer()).json
            assert [item["state"] for item in answer["nodes"]] == ["finished", "failed"]
            assert answer["nodes"][1]["error"]["code"] == "draining"

    run(main)


# --- declared ones ---


def test_a_declaration_comes_twice_and_is_one() -> None:
    async def main() -> None:
        async with engine(echo) as upstream, gateway(upstream) as running:
            body = {"mode": "declared", "nodes": [{"id": "a"}]}
            first, second = [await running.post("/v1/workflows", body, "idempotency-key: k\r\n") for _ in range(2)]
            assert (first.status, second.status) == (201, 201) and first.json["id"] == second.json["id"]
            other = await running.post("/v1/workflows", {**body, "name": "x"}, "idempotency-key: k\r\n")
            other.assert_error(422, "idempotency_key_reused")

    run(main)


def test_the_id_of_a_run_is_taken_for_declarations_too() -> None:
    async def main() -> None:
        async with engine(echo) as upstream, gateway(upstream) as running:
            assert (await running.post("/v1/workflows", {"id": "w", "nodes": [node("a")]})).status == 200
            again = await running.post("/v1/workflows", {"id": "w", "mode": "declared", "nodes": [node("b")]})
            again.assert_error(409, "workflow_exists")
            assert [item["id"] for item in (await get(running, "/v1/workflows/w")).json["nodes"]] == ["a"]

    run(main)


def test_a_hint_ends_no_workflow_that_runs_here() -> None:
    async def main() -> None:
        async with engine(echo) as upstream, gateway(upstream) as running:
            await running.post("/v1/workflows", {"id": "w", "background": True, "nodes": [TOOL, node("b", "{{t}}")]})
            hints = "x-workflow-id: w\r\nx-workflow-node: mine\r\nx-workflow-final: true\r\n"
            assert (await running.post("/v1/chat/completions", node("x")["request"], hints)).status == 200
            await running.post("/v1/workflows/w/nodes/t", {"output": "x"})
            table = running.app.own.workflows.table
            await until(lambda: not table.running, "the end")
            shown = (await get(running, "/v1/workflows/w")).json
            assert shown["status"] == "completed" and shown["origin"] == "declared"
            assert [item["id"] for item in shown["nodes"]] == ["t", "b", "mine"]
            assert {"from": "t", "to": "b", "kind": "data", "confidence": 1.0} in shown["edges"]

    run(main)
