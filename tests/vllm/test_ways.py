"""One workflow over a real vLLM, four ways in: one graph. And what only a real engine shows of submitted workflows."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.graphs import assert_one_graph, assert_twins_apart, get, play, shapes
from tests.vllm.children import (
    GATEWAY_START_SECONDS,
    MAX_MODEL_LEN,
    ROOT,
    SERVED_NAME,
    Child,
    free_port,
    joulegate_command,
    wait_until,
)
from tests.vllm.wire import Answer, ask, receive, running, send
from workloads.ways import WAYS

KEYS = ("alice", "bob", "carol")
PATIENCE_SECONDS = 30.0
LONG = MAX_MODEL_LEN - 64
"""Tokens whose decoding outlasts every test."""


@pytest.fixture(scope="module")
def looking(engine: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A gateway with keys that looks at contents."""
    folder = tmp_path_factory.mktemp("looking")
    port, control = free_port(), free_port()
    lines = [f"[listen]\nport = {port}\ncontrol_port = {control}", f'[[engines]]\nurl = "{engine}"']
    lines += [f'[[keys]]\nname = "{name}"\nsha256 = "{hashlib.sha256(name.encode()).hexdigest()}"' for name in KEYS]
    (folder / "joulegate.toml").write_text("\n".join([*lines, '[workflows]\ninference = "on"\n']))
    command = [*joulegate_command(), "serve", "--config", str(folder / "joulegate.toml")]
    child = Child(command, folder / "log", {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"})
    try:
        child.wait_ready(f"http://127.0.0.1:{control}/ready", GATEWAY_START_SECONDS)
        yield f"http://127.0.0.1:{port}"
    finally:
        child.end()
    assert "Traceback" not in child.text()


# --- the graph ---


async def test_every_way_shows_the_same_graph_of_the_same_workflow(looking: str) -> None:
    by_way = {way: await play(looking, SERVED_NAME, way, shapes(), key="alice") for way in WAYS}
    assert_one_graph(by_way)
    listed = (await get(looking, "/v1/workflows?limit=100", "alice"))["data"]
    assert len(listed) == len(WAYS) * len(shapes()), "a call stands outside its workflow"


async def test_two_keys_with_the_same_texts_are_two_workflows(looking: str) -> None:
    (shape,) = shapes(("map-reduce",), 1)
    await assert_twins_apart(looking, SERVED_NAME, shape, ("bob", "carol"))


# --- submitted workflows ---


def node(name: str, content: str, max_tokens: int = 8, **more: Any) -> dict[str, Any]:
    request = {
        "model": SERVED_NAME,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": max_tokens,
        "ignore_eos": True,
        "temperature": 0,
    }
    return {"id": name, "request": request, **more}


PAIR = [node("plan", "a plan for a small house"), node("write", "write it down: {{plan}}")]


def submit(url: str, nodes: list[dict[str, Any]], headers: dict[str, str] | None = None, **more: Any) -> Answer:
    return ask(url, "POST", "/v1/workflows", {"nodes": nodes, **more}, headers)


def by_id(document: Any) -> dict[str, Any]:
    return {item["id"]: item for item in document["nodes"]}


def answered(engine: str) -> float:
    """Calls that vLLM has answered so far."""
    lines = ask(engine, "GET", "/metrics").body.decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:request_success_total{"))


def events(answer: Answer) -> list[tuple[str, Any]]:
    """Name and data of each event."""
    blocks = [block for block in answer.body.decode().split("\n\n") if block.startswith("event: ")]
    pairs = [block.removeprefix("event: ").split("\ndata: ") for block in blocks]
    return [(name, json.loads(data)) for name, data in pairs]


def test_the_same_submission_twice_runs_once(gateway: str, idle_engine: str) -> None:
    token = {"idempotency-key": uuid.uuid4().hex}
    before = answered(idle_engine)
    waiting = [send(gateway, "POST", "/v1/workflows", {"nodes": PAIR}, token) for _ in range(2)]
    one, two = (receive(connection).json() for connection in waiting)
    assert one["id"] == two["id"] and one["outputs"] == two["outputs"] and one["outputs"]["write"]
    assert submit(gateway, PAIR, token).json()["outputs"] == one["outputs"]
    assert answered(idle_engine) == before + len(PAIR)
    other = submit(gateway, PAIR[:1], token)
    assert other.status == 422 and other.json()["error"]["code"] == "idempotency_key_reused"


def test_events_tell_of_each_node_and_of_what_it_says(gateway: str) -> None:
    whole = submit(gateway, PAIR).json()
    answer = submit(gateway, PAIR, stream=True)
    assert answer.status == 200 and (answer.header("content-type") or "").startswith("text/event-stream")
    told = events(answer)
    names = [name for name, _ in told]
    assert names[0] == "workflow.started" and names[-1] == "workflow.finished"
    assert [data["node"] for name, data in told if name == "node.started"] == ["plan", "write"]
    finished = {data["node"]: data for name, data in told if name == "node.finished"}
    for name, said in by_id(whole).items():
        deltas = [data["delta"] for event, data in told if event == "node.delta" and data["node"] == name]
        assert "".join(deltas) == finished[name]["output"] == said["output"]
        assert finished[name]["usage"]["output_tokens"] == said["usage"]["output_tokens"] == 8
        assert finished[name]["usage"]["prompt_tokens"] == said["usage"]["prompt_tokens"]
    assert told[-1][1]["status"] == "completed" and told[-1][1]["outputs"] == whole["outputs"]


def test_a_result_too_large_for_the_next_prompt_fails_there_with_vllms_words(gateway: str) -> None:
    """Eight outputs of which each fits, and which do not fit together."""
    parts = [node(f"part-{number}", f"part {number}", 40) for number in range(8)]
    everything = "\n".join(f"{{{{{part['id']}}}}}" for part in parts)
    join = node("join", "\n".join([everything] * (MAX_MODEL_LEN // 200)))
    nodes = [*parts, join, node("after", "{{join}}"), node("beside", "{{part-0}}")]
    document = submit(gateway, nodes).json()
    found = by_id(document)
    assert document["status"] == "failed"
    assert (document["failed"], document["skipped"]) == (["join"], ["after"])
    assert found["beside"]["state"] == "finished"
    error = found["join"]["error"]
    assert error["status"] == 400 and str(MAX_MODEL_LEN) in error["message"], error
    assert found["join"]["attempts"] == 1, "what cannot fit is not tried again"


def test_delete_frees_the_engine(gateway: str, idle_engine: str) -> None:
    nodes = [node(f"long-{number}", f"number {number}", LONG) for number in range(3)]
    started = submit(gateway, [*nodes, node("behind", "{{long-0}}")], background=True)
    assert started.status == 202
    path = f"/v1/workflows/{started.json()['id']}"
    wait_until(lambda: running(idle_engine) == 3, PATIENCE_SECONDS, "the three calls run")
    deleted = ask(gateway, "DELETE", path)
    assert deleted.status == 200 and deleted.json()["status"] == "cancelled"
    wait_until(lambda: running(idle_engine) == 0, PATIENCE_SECONDS, "the engine is free")
    document = ask(gateway, "GET", path).json()
    assert {item["state"] for item in document["nodes"]} == {"cancelled"}


def test_leaving_a_stream_frees_the_engine(gateway: str, idle_engine: str) -> None:
    connection = send(gateway, "POST", "/v1/workflows", {"nodes": [node("long", "on and on", LONG)], "stream": True})
    wait_until(lambda: running(idle_engine) == 1, PATIENCE_SECONDS, "the call runs")
    connection.close()
    wait_until(lambda: running(idle_engine) == 0, PATIENCE_SECONDS, "the engine is free")


@pytest.mark.parametrize("form", ["mermaid", "dot"])
def test_the_graph_is_drawn(gateway: str, form: str) -> None:
    workflow_id = submit(gateway, PAIR).json()["id"]
    drawn = ask(gateway, "GET", f"/v1/workflows/{workflow_id}?format={form}")
    assert drawn.status == 200
    assert {"mermaid": "flowchart", "dot": "digraph"}[form] in drawn.body.decode()
    assert "plan" in drawn.body.decode() and "write" in drawn.body.decode()
