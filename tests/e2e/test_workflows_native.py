"""Workflows submitted whole: the gateway runs the graph. Real sockets; the engine answers as the test wants."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import TYPE_CHECKING, Any

from tests.e2e.harness import EngineRequest, RunningGateway, engine, gateway, post, run, until

if TYPE_CHECKING:
    from tests.e2e.harness import Answer, Client


def node(name: str, content: str = "hi", **more: Any) -> dict[str, Any]:
    return {"id": name, "request": {"model": "m", "messages": [{"role": "user", "content": content}]}, **more}


def completion(text: str) -> bytes:
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}}
    return json.dumps({"choices": [{"index": 0, "message": message}], "usage": usage}).encode()


def asked(request: EngineRequest) -> str:
    return str(request.json["messages"][0]["content"])


async def echo(request: EngineRequest) -> None:
    await request.answer(completion(f"[{asked(request)}]"))


def events_of(body: bytes) -> list[tuple[str, Any]]:
    found = []
    for block in body.decode().split("\n\n"):
        if block.startswith("event: "):
            name, data = block.removeprefix("event: ").split("\ndata: ")
            found.append((name, json.loads(data)))
    return found


DIAMOND = [node("a", "start"), node("b", "b of {{a}}"), node("c", "c of {{a}}"), node("d", "{{b}}+{{c}}")]


def by_id(body: Any) -> dict[str, Any]:
    return {item["id"]: item for item in body["nodes"]}


def test_a_graph_runs_in_its_order_and_the_answer_has_all() -> None:
    async def main() -> None:
        async with engine(echo) as upstream, gateway(upstream) as running:
            answer = await running.post("/v1/workflows", {"id": "w1", "name": "diamond", "nodes": DIAMOND})
            assert answer.status == 200 and answer.header("x-workflow-id") == "w1"
            body = answer.json
            assert body["status"] == "completed"
            assert body["outputs"] == {"d": "[[b of [start]]+[c of [start]]]"}
            assert body["usage"] == {"prompt_tokens": 28, "cached_tokens": 8, "output_tokens": 12}
            assert (body["energy_joules"], body["energy_source"]) == (None, "unavailable")
            nodes = by_id(body)
            assert nodes["b"]["output"] == "[b of [start]]" and nodes["b"]["state"] == "finished"
            assert asked(upstream.requests[0]) == "start"
            assert asked(upstream.requests[-1]) == "[b of [start]]+[c of [start]]"
            assert all("workflow" not in request.json for request in upstream.requests)
            assert (await get(running, "/v1/workflows/w1")).json["outputs"] == body["outputs"]
            edges = {(edge["from"], edge["to"], edge["kind"]) for edge in body["edges"]}
            assert edges == {("a", "b", "data"), ("a", "c", "data"), ("b", "d", "data"), ("c", "d", "data")}

    run(main)


async def get(running: RunningGateway, path: str, method: str = "GET", headers: str = "") -> Answer:
    return await running.request(f"{method} {path} HTTP/1.1\r\nhost: x\r\n{headers}\r\n".encode())


def test_events_tell_the_story() -> None:
    async def streams(request: EngineRequest) -> None:
        assert request.json["stream"] is True and request.json["stream_options"] == {"include_usage": True}
        await request.begin_stream()
        for text in (asked(request), "!"):
            chunk = {"choices": [{"index": 0, "delta": {"content": text}}]}
            await request.chunk(f"data: {json.dumps(chunk)}\n\n".encode())
        usage = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}
        await request.chunk(f"data: {json.dumps(usage)}\n\ndata: [DONE]\n\n".encode())
        await request.end_stream()

    async def main() -> None:
        async with engine(streams) as upstream, gateway(upstream) as running:
            nodes = [node("a", "one"), node("b", "two {{a}}")]
            answer = await running.post("/v1/workflows", {"nodes": nodes, "stream": True})
            assert answer.complete and (answer.header("content-type") or "").startswith("text/event-stream")
            told = events_of(answer.body)
            names = [name for name, _ in told]
            assert names[0] == "workflow.started" and names[-1] == "workflow.finished"
            assert [data["node"] for name, data in told if name == "node.started"] == ["a", "b"]
            said = dict.fromkeys("ab", "")
            for name, data in told:
                if name == "node.delta":
                    said[data["node"]] += data["delta"]
            assert said == {"a": "one!", "b": "two one!!"}
            finished = [data for name, data in told if name == "node.finished"]
            assert [item["output"] for item in finished] == ["one!", "two one!!"]
            assert finished[0]["usage"] == {"prompt_tokens": 5, "cached_tokens": None, "output_tokens": 2}
            assert told[-1][1]["outputs"] == {"b": "two one!!"} and told[-1][1]["status"] == "completed"

    run(main)


def test_a_failure_stops_what_is_behind_it_and_nothing_else() -> None:
    async def main() -> None:
        async def answers(request: EngineRequest) -> None:
            if "bad" in asked(request):
                await request.answer(b'{"error": {"message": "maximum context length is 8"}}', status="400 Bad Request")
            else:
                await echo(request)

        async with engine(answers) as upstream, gateway(upstream) as running:
            nodes = [node("a"), node("bad", "bad {{a}}"), node("c", "{{bad}}"), node("d", "{{c}}"), node("e", "{{a}}")]
            body = (await running.post("/v1/workflows", {"nodes": nodes})).json
            found = by_id(body)
            assert {name: item["state"] for name, item in found.items()} == {
                "a": "finished", "bad": "failed", "c": "skipped", "d": "skipped", "e": "finished"
            }  # fmt: skip
            assert found["bad"]["error"] == {
                "status": 400, "code": "engine_4xx", "message": "maximum context length is 8"
            }  # fmt: skip
            assert found["d"]["error"]["node"] == "bad" and "bad" in found["d"]["error"]["message"]
            assert (body["status"], body["failed"], body["skipped"]) == ("failed", ["bad"], ["c", "d"])
            assert len(upstream.requests) == 3

    run(main)


def test_a_node_is_tried_again_as_often_as_it_says() -> None:
    async def main() -> None:
        tries = 0

        async def answers(request: EngineRequest) -> None:
            nonlocal tries
            tries += 1
            if tries < 3:
                await request.answer(b'{"error": {"message": "no"}}', status="500 Internal Server Error")
            else:
                await echo(request)

        async with engine(answers) as upstream, gateway(upstream) as running:
            body = (await running.post("/v1/workflows", {"nodes": [node("a", retry=2)]})).json
            assert body["status"] == "completed" and by_id(body)["a"]["attempts"] == 3
            tries = 0
            body = (await running.post("/v1/workflows", {"nodes": [node("a", retry=1)]})).json
            assert body["status"] == "failed" and by_id(body)["a"]["error"]["status"] == 500

    run(main)


def test_the_same_submission_runs_once() -> None:
    async def main() -> None:
        release = asyncio.Event()

        async def waits(request: EngineRequest) -> None:
            await release.wait()
            await echo(request)

        async with engine(waits) as upstream, gateway(upstream) as running:
            token = "idempotency-key: k1\r\n"
            first = asyncio.ensure_future(running.post("/v1/workflows", {"nodes": [node("a")]}, token))
            await until(lambda: len(upstream.requests) == 1, "the first call")
            second = asyncio.ensure_future(running.post("/v1/workflows", {"nodes": [node("a")]}, token))
            other = await running.post("/v1/workflows", {"nodes": [node("b")]}, token)
            other.assert_error(422, "idempotency_key_reused")
            release.set()
            one, two = (await first).json, (await second).json
            assert one["id"] == two["id"] and one["status"] == two["status"] == "completed"
            again = (await running.post("/v1/workflows", {"nodes": [node("a")]}, token)).json
            assert again["id"] == one["id"] and len(upstream.requests) == 1

    run(main)


def test_leaving_ends_it_unless_it_is_to_go_on() -> None:
    async def main() -> None:
        async def waits(request: EngineRequest) -> None:
            await request.gone.wait()

        async def leave(running: RunningGateway, data: bytes) -> Client:
            client = await running.connect()
            await client.send(data)
            await until(lambda: len(running.app.gateway.exchanges) == 1, "the call")
            client.abort()
            return client

        async with engine(waits) as upstream, gateway(upstream) as running:
            await leave(running, post("/v1/workflows", {"id": "w1", "nodes": [node("a")]}))
            await until(lambda: not running.app.gateway.exchanges, "the call's end")
            assert (await get(running, "/v1/workflows/w1")).json["status"] == "cancelled"
            await leave(running, post("/v1/workflows", {"id": "w2", "nodes": [node("a")]}, "idempotency-key: k\r\n"))
            assert (await get(running, "/v1/workflows/w2")).json["status"] == "running"
            gone = await get(running, "/v1/workflows/w2", "DELETE")
            assert gone.status == 200 and gone.json["status"] == "cancelled"
            await until(upstream.requests[-1].gone.is_set, "the engine is free")
            started = await running.post("/v1/workflows", {"id": "w3", "nodes": [node("a")], "background": True})
            assert started.status == 202 and started.json["status"] == "running"
            assert (await get(running, "/v1/workflows/w3", "DELETE")).json["status"] == "cancelled"

    run(main)


def test_a_tool_is_the_clients_own_work() -> None:
    async def main() -> None:
        async with engine(echo) as upstream, gateway(upstream) as running:
            nodes = [node("a", "plan"), {"id": "t", "tool": True, "after": ["a"]}, node("b", "found {{t}}")]
            await running.post("/v1/workflows", {"id": "w", "nodes": nodes, "background": True})
            path = "/v1/workflows/w/nodes/t"
            while (early := await running.post(path, {"output": "x"})).status == 409:
                early.assert_error(409, "tool_not_acting")
            assert early.status == 200 and early.json["state"] == "finished"
            (await running.post(path, {"output": "y"})).assert_error(409, "tool_not_acting")
            (await running.post("/v1/workflows/w/nodes/a", {"output": "y"})).assert_error(404, "unknown_node")
            (await running.post(path, {"result": "y"})).assert_error(400, "invalid_tool_result")
            await until(lambda: len(upstream.requests) == 2, "the call behind the tool")
            assert asked(upstream.requests[1]) == "found x"
            await until(lambda: not running.app.gateway.exchanges, "the end")
            assert (await get(running, "/v1/workflows/w")).json["status"] == "completed"

    run(main)


def test_other_peoples_workflows_do_not_exist() -> None:
    keys = [{"name": name, "sha256": hashlib.sha256(name.encode()).hexdigest()} for name in ("alice", "bob")]

    async def main() -> None:
        async with engine(echo) as upstream, gateway(upstream, keys=keys) as running:
            alice, bob = ("authorization: Bearer alice\r\n", "authorization: Bearer bob\r\n")
            assert (await running.post("/v1/workflows", {"id": "w", "nodes": [node("a")]}, alice)).status == 200
            (await running.post("/v1/workflows", {"nodes": [node("a")]})).assert_error(401)
            foreign = await get(running, "/v1/workflows/w", headers=bob)
            unknown = await get(running, "/v1/workflows/x", headers=bob)
            foreign.assert_error(404, "unknown_workflow")
            assert foreign.body.replace(b"'w'", b"'x'") == unknown.body
            (await get(running, "/v1/workflows/w", "DELETE", bob)).assert_error(404, "unknown_workflow")
            assert (await running.post("/v1/workflows", {"id": "w", "nodes": [node("a")]}, bob)).status == 200
            (await running.post("/v1/workflows", {"id": "w", "nodes": [node("a")]}, bob)).assert_error(409)
            assert [item["id"] for item in (await get(running, "/v1/workflows", headers=bob)).json["data"]] == ["w"]

    run(main)


def test_bad_submissions_leave_nothing_behind() -> None:
    async def main() -> None:
        async with engine(echo) as upstream, gateway(upstream, workflows={"nodes": 4}) as running:
            cycle = [node("a", "{{c}}"), node("b", after=["a"]), node("c", after=["b"])]
            fault = (await running.post("/v1/workflows", {"id": "w", "nodes": cycle})).assert_error(400, "cycle")
            assert all(name in fault["message"] for name in "abc")
            big = [node(f"n{at}") for at in range(5)]
            (await running.post("/v1/workflows", {"nodes": big})).assert_error(413, "workflow_too_large")
            (await running.post("/v1/workflows", b"[]")).assert_error(400, "invalid_body")
            (await running.post("/v1/workflows", b"{")).assert_error(400, "invalid_json")
            (await get(running, "/v1/workflows/w")).assert_error(404)
            (await get(running, "/v1/workflows", "PUT")).assert_error(405, "method")
            (await get(running, "/v1/workflows/w/x/y")).assert_error(404, "not_found")
            assert not upstream.requests and not len(running.app.own.workflows.table)

    run(main)


def test_a_full_key_makes_nodes_wait_and_not_fail() -> None:
    keys = [{"name": "k", "sha256": hashlib.sha256(b"k").hexdigest(), "max_concurrency": 2}]

    async def main() -> None:
        at_once = most = 0

        async def counts(request: EngineRequest) -> None:
            nonlocal at_once, most
            at_once += 1
            most = max(most, at_once)
            await asyncio.sleep(0)
            await echo(request)
            at_once -= 1

        async with engine(counts) as upstream, gateway(upstream, keys=keys) as running:
            nodes = [node(f"n{at}") for at in range(50)]
            answer = await running.post("/v1/workflows", {"nodes": nodes}, "authorization: Bearer k\r\n")
            assert answer.json["status"] == "completed" and most <= 2
            assert all(item["attempts"] == 1 for item in answer.json["nodes"])
            assert len(upstream.requests) == 50

    run(main)


def test_declared_workflows_are_run_by_their_client() -> None:
    async def main() -> None:
        async with engine(echo) as upstream, gateway(upstream) as running:
            nodes = [{"id": "a"}, {"id": "b", "after": ["a"]}]
            told = await running.post("/v1/workflows", {"id": "w", "mode": "declared", "nodes": nodes})
            assert told.status == 201
            for name in "ab":
                place = f"x-workflow-id: w\r\nx-workflow-node: {name}\r\n"
                answer = await running.post("/v1/chat/completions", node(name)["request"], place)
                assert answer.status == 200
            shown = by_id((await get(running, "/v1/workflows/w")).json)
            assert {name: item["state"] for name, item in shown.items()} == {"a": "finished", "b": "finished"}
            assert shown["b"]["output_tokens"] == 3

    run(main)


def test_hinted_calls_are_a_graph_that_can_be_drawn_and_cancelled() -> None:
    async def main() -> None:
        async def answers(request: EngineRequest) -> None:
            if asked(request) == "wait":
                await request.gone.wait()
            await echo(request)

        async with engine(answers) as upstream, gateway(upstream) as running:
            ask = node("a")["request"]
            for place in ("x-workflow-node: a\r\n", "x-workflow-node: b\r\nx-workflow-after: a\r\n"):
                await running.post("/v1/chat/completions", ask, f"x-workflow-id: h\r\n{place}")
            dot = await get(running, "/v1/workflows/h?format=dot")
            assert dot.status == 200 and dot.body.startswith(b"digraph")
            assert (await get(running, "/v1/workflows/h?format=mermaid")).body.startswith(b"flowchart")
            (await get(running, "/v1/workflows/h?format=png")).assert_error(400, "invalid_format")
            waiting = asyncio.ensure_future(
                running.post("/v1/chat/completions", node("c", "wait")["request"], "x-workflow-id: h\r\n")
            )
            await until(lambda: len(upstream.requests) == 3, "the call")
            assert (await get(running, "/v1/workflows/h", "DELETE")).status == 200
            (await waiting).assert_error(409, "workflow_cancelled")
            await until(upstream.requests[2].gone.is_set, "the engine is free")

    run(main)
