"""What submitted workflows may take, and how they are refused. Real sockets, a scripted engine."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from proxy.workflows.describing import whole
from proxy.workflows.run import LINKED_A_TURN
from tests.e2e.harness import EngineRequest, engine, gateway, post, run, until
from tests.e2e.test_workflows_native import completion, echo, events_of, get, node
from tests.e2e.test_workflows_trouble import TOOL, waits

# --- what is kept ---


def test_a_body_takes_no_room_while_its_workflow_runs() -> None:
    async def main() -> None:
        async with engine(echo) as upstream, gateway(upstream) as running:
            client = await running.connect()
            await client.send(post("/v1/workflows", {"id": "w", "nodes": [TOOL]}))
            await until(lambda: len(running.app.own.workflows.table) == 1, "the run")
            await until(lambda: running.app.gateway.server.buffered_bytes == 0, "the body is let go of")
            assert (await running.post("/v1/workflows/w/nodes/t", {"output": "x"})).status == 200
            assert (await client.answer()).json["outputs"] == {"t": "x"}
            client.close()

    run(main)


def test_a_result_reaches_its_client_though_there_is_no_room_to_keep_it() -> None:
    async def main() -> None:
        async with engine(echo) as upstream, gateway(upstream, workflows={"held_bytes": 300}) as running:
            answer = await running.post(
                "/v1/workflows", {"id": "w", "nodes": [node("a", "y" * 30), node("b", "{{a}}" * 9)]}
            )
            assert answer.status == 200 and answer.json["status"] == "completed"
            assert len(answer.json["outputs"]["b"]) > 250
            assert len(running.app.own.workflows.table) == 0

    run(main)


def test_a_prompt_that_outputs_make_too_long_fails_alone() -> None:
    async def big(request: EngineRequest) -> None:
        await request.answer(completion("z" * 10_000))

    async def main() -> None:
        async with engine(big) as upstream, gateway(upstream, limits={"body_bytes": 100_000}) as running:
            nodes = [node("a"), node("b", "{{a}}" * 1_000), node("c", "{{a}}")]
            answer = (await running.post("/v1/workflows", {"nodes": nodes})).json
            assert answer["failed"] == ["b"] and set(answer["outputs"]) == {"c"}
            assert answer["nodes"][1]["error"]["code"] == "body_too_large"
            assert len(upstream.requests) == 2

    run(main)


# --- bad input ---


def nested(depth: int) -> Any:
    value: Any = "x"
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"nodes": [{"id": "a", "request": {"messages": nested(400)}}]}, "nodes[0].request"),
        ({"nodes": [node("a")], "inputs": {"x": nested(400)}}, "inputs.x"),
        ({"nodes": [node("a")], "class": "Batch"}, "class"),
        ({"nodes": [node("a", placeholders="no")]}, "nodes[0].placeholders"),
        ({"nodes": [node("a", "{{b}}"), node("b", "{{a}}")]}, "nodes[0].request"),
        ({"nodes": [node("a", "{{b}}"), node("b", after=["a"])]}, "nodes[0].request"),
    ],
)
def test_what_cannot_be_run_is_named(body: dict[str, Any], param: str) -> None:
    async def main() -> None:
        async with engine(echo) as upstream, gateway(upstream) as running:
            fault = (await running.post("/v1/workflows", body)).assert_error(400)
            assert fault["param"] == param
            assert not upstream.requests and not len(running.app.own.workflows.table)

    run(main)


@pytest.mark.parametrize(
    "query", ["limit=%C2%B2", "limit=" + "9" * 5_000, "limit=", "&".join(f"a{n}=1" for n in range(99))]
)
def test_a_list_is_not_had_with_any_query(query: str) -> None:
    async def main() -> None:
        async with engine(echo) as upstream, gateway(upstream) as running:
            (await get(running, f"/v1/workflows?{query}")).assert_error(400)

    run(main)


def test_the_location_of_an_odd_id_leads_there() -> None:
    async def main() -> None:
        async with engine(echo) as upstream, gateway(upstream) as running:
            answer = await running.post("/v1/workflows", {"id": "a/b?c#%41", "nodes": [node("a")]})
            assert (await get(running, answer.header("location") or "")).json["id"] == "a/b?c#%41"

    run(main)


# --- large ones ---


def test_a_large_graph_is_described_between_other_peoples_turns() -> None:
    async def main() -> None:
        async with engine(echo) as upstream, gateway(upstream) as running:
            nodes = [{"id": f"n{at}", "after": [f"n{at - 1}"] if at else []} for at in range(1_000)]
            told = await running.post("/v1/workflows", {"id": "w", "mode": "declared", "nodes": nodes})
            assert told.json["nodes"] == 1_000  # how many; what they are is read when it is wanted
            workflow = running.app.gateway.scheduler.workflows.workflow("-", "w")
            bill = running.app.gateway.scheduler.energy.bill
            describing = asyncio.ensure_future(whole(workflow, None, bill))
            turns = 0
            while not describing.done():
                await asyncio.sleep(0)
                turns += 1
            assert turns >= 10  # of 200 nodes or edges
            shown = (await get(running, "/v1/workflows/w")).json
            assert [item["id"] for item in shown["nodes"]] == [item["id"] for item in nodes]
            assert len(shown["edges"]) == 999 and len(shown["critical_path"]) == 1_000
            bill = running.app.gateway.scheduler.energy.bill
            describing = asyncio.ensure_future(whole(workflow, None, bill))
            await asyncio.sleep(0)
            running.app.gateway.scheduler.workflows.cancel("-", "w", 1e9)
            assert workflow is not None
            running.app.gateway.scheduler.workflows.tables.closed.take(("-", "w"))
            running.app.gateway.scheduler.workflows.tables.drop(workflow)
            shown = orjson.loads(orjson.dumps(await describing))
            assert 0 < len(shown["nodes"]) < 1_000  # what was forgotten meanwhile is left out

    run(main)


def large(**more: Any) -> dict[str, Any]:
    """A run whose nodes are put together behind its answer, in several turns; nothing of it calls an engine."""
    nodes = [TOOL, *[node(f"n{at}", after=["t" if at == 0 else f"n{at - 1}"]) for at in range(5 * LINKED_A_TURN)]]
    return {"id": "w", "nodes": nodes, **more}


def test_a_large_run_that_is_taken_is_there_whole() -> None:
    """A client that goes on as soon as it is answered finds no gap."""

    async def main() -> None:
        async with engine(waits) as upstream, gateway(upstream) as running:
            client = await running.connect()
            tool = post("/v1/workflows/w/nodes/t", {"output": "x"})
            await client.send(post("/v1/workflows", large(background=True)))
            assert (await client.answer()).status == 202
            run_ = running.app.own.workflows.table.get("-", "w")
            assert run_ is not None and not run_.begun and not run_.calls
            await client.send(tool)
            assert (await client.answer()).json["state"] == "finished"
            await until(lambda: len(upstream.requests) == 1, "the call behind the tool")
            states = {item["id"]: item["state"] for item in (await get(running, "/v1/workflows/w")).json["nodes"]}
            assert states.pop("t") == "finished" and states.pop("n0") in {"queued", "running", "ready"}
            assert set(states.values()) == {"planned"} and len(states) == 5 * LINKED_A_TURN - 1
            await get(running, "/v1/workflows/w", "DELETE")
            client.close()

    run(main)


def test_a_large_run_can_be_cancelled_before_it_has_begun() -> None:
    async def main() -> None:
        async with engine(waits) as upstream, gateway(upstream) as running:
            client = await running.connect()
            await client.send(post("/v1/workflows", large(background=True)))
            assert (await client.answer()).status == 202
            ended = running.app.own.workflows.table.get("-", "w")
            assert ended is not None and not ended.begun
            shown = (await get(running, "/v1/workflows/w", "DELETE")).json
            assert shown["status"] == "cancelled" and {item["state"] for item in shown["nodes"]} == {"cancelled"}
            await asyncio.sleep(0)
            assert not upstream.requests and not ended.ready and not ended.calls
            client.close()

    run(main)


def test_a_large_run_is_streamed_from_its_beginning() -> None:
    async def main() -> None:
        async with engine(waits) as upstream, gateway(upstream) as running:
            client = await running.connect()
            await client.send(post("/v1/workflows", large(stream=True)))
            await until(lambda: len(running.app.own.workflows.table) == 1, "the run")
            streamed = running.app.own.workflows.table.get("-", "w")
            assert streamed is not None
            await until(lambda: streamed.begun, "its beginning")
            await get(running, "/v1/workflows/w", "DELETE")
            told = events_of((await client.answer()).body)
            assert [name for name, _ in told[:2]] == ["workflow.started", "tool.started"]
            assert told[0][1]["nodes"] == [item["id"] for item in large()["nodes"]]
            assert {name for name, _ in told[2:-1]} == {"node.cancelled"} and len(told) == 5 * LINKED_A_TURN + 4
            client.close()

    run(main)


def test_those_that_wait_for_one_node_are_told_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.workflows.run.TOLD_A_TURN", 2)
    monkeypatch.setattr("scheduler.workflow.graph.TOLD_AT_ONCE", 2)

    async def main() -> None:
        async with engine(echo) as upstream, gateway(upstream) as running:
            behind = [node(f"b{at}", "{{a}}") for at in range(9)]
            nodes = [node("a"), *behind, node("c", "".join(f"{{{{b{at}}}}}" for at in range(9)))]
            answer = (await running.post("/v1/workflows", {"id": "w", "nodes": nodes})).json
            assert answer["status"] == "completed" and len(upstream.requests) == 11
            workflow = running.app.gateway.scheduler.workflows.workflow("-", "w")
            assert workflow is not None and not workflow.graph.untold
            running.app.gateway.scheduler.workflows.validate()

    run(main)


def test_a_list_says_of_a_run_what_the_run_says() -> None:
    async def main() -> None:
        async with engine(waits) as upstream, gateway(upstream, workflows={"running_calls": 1}) as running:
            for name in ("one", "two"):
                await running.post("/v1/workflows", {"id": name, "background": True, "nodes": [node("a")]})
            await until(lambda: len(upstream.requests) == 1, "the first call")
            listed = (await get(running, "/v1/workflows")).json["data"]
            assert {item["id"]: item["status"] for item in listed} == {"one": "running", "two": "running"}
            for name in ("one", "two"):
                await get(running, f"/v1/workflows/{name}", "DELETE")
            listed = (await get(running, "/v1/workflows")).json["data"]
            assert [item["status"] for item in listed] == ["cancelled", "cancelled"]

    run(main)


def test_of_an_answer_that_is_not_looked_at_no_more_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.exchange.ANSWER_BYTES_MAX", 1_000)

    async def main() -> None:
        go = asyncio.Event()

        async def long(request: EngineRequest) -> None:
            await request.begin_stream()
            for _ in range(5):
                await request.chunk(b"data: " + b"x" * 400 + b"\n\n")
            await go.wait()
            await request.end_stream()

        async with engine(long) as upstream, gateway(upstream, workflows={"inference": "on"}) as running:
            client = await running.connect()
            await client.send(post("/v1/chat/completions", {**node("a")["request"], "stream": True}))
            exchanges = running.app.gateway.exchanges
            await until(lambda: any(item.call.response_bytes > 2_000 for item in exchanges.values()), "the answer")
            (exchange,) = exchanges.values()
            assert exchange._collected is not None and sum(map(len, exchange._collected)) <= 1_000
            go.set()
            assert (await client.answer()).complete
            client.close()

    run(main)
