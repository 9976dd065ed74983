"""The ways in, as a server sees them that answers as the test wants; and the small sizes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from workloads.played import PlayedWorkflow
from workloads.player import Arrival, Player, failures
from workloads.presets import CPU
from workloads.prompts import Manner
from workloads.shapes import KINDS, CallShape, Part, WorkflowShape, chain
from workloads.ways import WAYS
from workloads.ways.parrot import semantic_call

CHAIN = chain("wf", random.Random(1), chunks=(3, 3), chunk_tokens=(20, 20), summary_tokens=(7, 7))


def play(
    way: str, respond: Callable[[web.Request, Any], Any], shape: WorkflowShape = CHAIN, **options: Any
) -> PlayedWorkflow:
    """Play it against a server that answers every request with this as JSON."""

    async def handle(request: web.Request) -> web.Response:
        return web.json_response(respond(request, await request.json()), headers={"x-workflow-id": "named-here"})

    async def main() -> PlayedWorkflow:
        app = web.Application()
        app.router.add_route("*", "/{rest:.*}", handle)
        async with asyncio.timeout(20), TestServer(app) as server:
            player = Player(str(server.make_url("")).rstrip("/"), "m", way=way, **options)
            (played,) = await player.play([Arrival(0.0, shape)])
            assert player.running == 0
            return played

    return asyncio.run(main())


def completion(request: web.Request, body: Any) -> Any:
    return {"choices": [{"message": {"content": "said"}}], "usage": {"prompt_tokens": 4, "completion_tokens": 7}}


# --- call by call ---


def test_bare_calls_say_nothing_of_a_workflow() -> None:
    headers: list[dict[str, str]] = []
    bodies: list[Any] = []

    def respond(request: web.Request, body: Any) -> Any:
        headers.append(dict(request.headers))
        bodies.append(body)
        return completion(request, body)

    played = play("bare", respond, api_key="secret", manner=Manner(sampling={"presence_penalty": 2.0}))
    assert played.complete and played.workflow_id == "named-here"
    assert len(bodies) == 3 and all(body["presence_penalty"] == 2.0 for body in bodies)
    assert all(sent["Authorization"] == "Bearer secret" for sent in headers)
    assert not [name for sent in headers for name in sent if name.lower().startswith("x-")]
    assert not any("workflow" in body for body in bodies)


# --- submitted ---


def test_a_submission_names_its_edges_by_placeholders() -> None:
    seen: list[Any] = []

    def respond(request: web.Request, body: Any) -> Any:
        seen.append(body)
        return {"nodes": []}

    played = play("native", respond)
    (body,) = seen
    assert not played.complete and (body["id"], body["name"]) == ("wf", "chain")
    second = body["nodes"][1]
    assert (second["id"], second["after"]) == ("summary-1", ["summary-0"])
    assert second["request"]["messages"][0]["content"].split("\n\n")[1] == "{{summary-0}}"
    assert second["request"]["max_tokens"] == 7 and second["request"]["ignore_eos"]


def test_what_a_submission_came_to_is_read_node_by_node() -> None:
    error = {"status": 400, "code": "engine_4xx", "message": "too long"}
    usage = {"prompt_tokens": 9, "cached_tokens": None, "output_tokens": 7}
    times = {"ready_seconds": 0.0, "started_seconds": 1.0, "finished_seconds": 3.0}
    nodes = [
        {
            "id": "summary-0",
            "state": "finished",
            "usage": usage,
            **times,
            "energy_joules": 2.5,
            "energy_source": "modelled",
        },
        {"id": "summary-1", "state": "failed", "error": error},
        {"id": "summary-2", "state": "skipped", "error": {"status": None, "code": "skipped", "message": "not run"}},
    ]
    told: list[str] = []
    played = play("native", lambda request, body: {"nodes": nodes}, on_call=lambda call: told.append(call.node))
    first, second = played.calls
    assert told == ["summary-0", "summary-1"] and played.workflow_id == "named-here"
    assert (first.prompt_tokens, first.cached_tokens, first.output_tokens) == (9, None, 7)
    assert (first.held_seconds, first.energy_joules, first.energy_source) == (pytest.approx(1.0), 2.5, "modelled")
    assert first.sent_at - first.intended_at == pytest.approx(1.0)
    assert first.answered_at - first.sent_at == pytest.approx(2.0)
    assert (second.status, second.error) == (400, "engine_4xx: too long")
    assert not played.complete and failures([played]) == [second]


# --- Parrot's API ---


def test_calls_are_said_first_and_only_the_last_is_asked_for_before_it_is_there() -> None:
    asked: list[tuple[str, str]] = []

    def respond(request: web.Request, body: Any) -> Any:
        asked.append((request.method, request.path))
        if request.path == "/v1/session":
            return {"session_id": 7, "session_auth": "x"}
        if request.path == "/v1/semantic_call":
            parameters = [{**item, "var_id": body["func_name"]} for item in body["parameters"]]
            return {"request_id": 1, "param_info": parameters}
        return {"content": "said"}

    played = play("parrot", respond)
    variables = [path.rsplit("/", 1)[1] for method, path in asked if method == "GET"]
    assert variables[0] == "summary-2" and sorted(variables[1:]) == ["summary-0", "summary-1"]
    assert [method for method, _ in asked] == ["POST"] * 4 + ["GET"] * 3 + ["DELETE"]
    assert asked[-1][1] == "/v1/session/7" and played.complete


def test_an_order_without_a_text_cannot_be_said_in_parrots_api() -> None:
    call = CallShape("b", ("a",), (Part("text", 5),), 5)
    with pytest.raises(ValueError, match="b waits for a without quoting it"):
        semantic_call(1, call, {"a": "v1"}, "m")


# --- all of them ---


@pytest.mark.parametrize("way", WAYS)
def test_an_answer_that_is_none_is_a_failure_and_ends_nothing_else(way: str) -> None:
    played = play(way, lambda request, body: [])
    (failed,) = played.calls
    assert failed.node == "summary-0" and failed.error.startswith("not an answer: ") and not played.complete


@pytest.mark.parametrize("kind", KINDS)
def test_the_small_sizes_are_small(kind: str) -> None:
    """Estimated tokens; a small vocabulary makes about 1.5 of each."""
    for seed in range(20):
        shape = CPU[kind]("wf", random.Random(seed))
        assert shape == CPU[kind]("wf", random.Random(seed)) and shape.kind == kind
        assert len(shape.calls) <= 16
        for call in shape.calls:
            assert call.prompt_tokens <= 280 and 28 <= call.output_tokens <= 32
