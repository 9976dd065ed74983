"""The player: a client that follows a workflow's graph, keeps to its limit and keeps every failure."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port

from workloads.player import Arrival, PlayedCall, PlayedWorkflow, Player, failures
from workloads.shapes import WorkflowShape, chain, chat, map_reduce

Respond = Callable[[web.Request, Any], Awaitable[web.Response]]


def answer(text: str) -> web.Response:
    """A chat completion of 7 tokens after a prompt of 40, 16 of them cached."""
    usage = {"prompt_tokens": 40, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 16}}
    return web.json_response({"choices": [{"message": {"role": "assistant", "content": text}}], "usage": usage})


def play(respond: Respond, *workflows: WorkflowShape, **options: Any) -> list[PlayedWorkflow]:
    """Play them all at once against an engine that responds so."""

    async def handle(request: web.Request) -> web.Response:
        return await respond(request, await request.json())

    async def main() -> list[PlayedWorkflow]:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", handle)
        async with asyncio.timeout(20), TestServer(app) as server:
            player = Player(str(server.make_url("")).rstrip("/"), "m", **options)
            played = await player.play([Arrival(0.0, workflow) for workflow in workflows])
            assert player.running == 0
            return played

    return asyncio.run(main())


def small_map_reduce() -> WorkflowShape:
    """Three maps and their reduce."""
    return map_reduce("wf", random.Random(1), chunks=(3, 3), chunk_tokens=(20, 20), summary_tokens=(7, 7))


def test_a_call_waits_for_its_predecessors_and_quotes_them() -> None:
    seen: list[tuple[str, Any]] = []

    async def respond(request: web.Request, body: Any) -> web.Response:
        node = request.headers["x-workflow-node"]
        assert request.headers["x-workflow-id"] == "wf"
        assert request.headers.get("x-workflow-after") == ("map-0,map-1,map-2" if node == "reduce" else None)
        seen.append((node, body))
        return answer(f"summary of {node}")

    (played,) = play(respond, small_map_reduce())
    nodes, bodies = [node for node, _ in seen], [body for _, body in seen]
    assert sorted(nodes[:3]) == ["map-0", "map-1", "map-2"] and nodes[3:] == ["reduce"]
    assert all(body["model"] == "m" and body["max_tokens"] == 7 and body["ignore_eos"] for body in bodies)
    assert bodies[3]["messages"][0]["content"].endswith("summary of map-0\n\nsummary of map-1\n\nsummary of map-2")
    assert played.complete and not failures([played])
    *maps, reduce = played.calls
    assert [call.prompt_tokens + call.cached_tokens + call.output_tokens for call in played.calls] == [63] * 4
    assert reduce.intended_at == max(call.answered_at for call in maps)
    assert all(call.intended_at <= call.sent_at <= call.answered_at <= played.finished_at for call in played.calls)
    assert played.intended_at == maps[0].intended_at


def test_workflows_of_one_kind_share_what_their_shapes_share() -> None:
    prompts: list[str] = []

    async def respond(request: web.Request, body: Any) -> web.Response:
        prompts.append(body["messages"][0]["content"])
        return answer("x")

    play(respond, small_map_reduce())
    heads = {prompt.split("\n\n")[0] for prompt in prompts[:3]}
    assert len(heads) == 1 and len(set(prompts)) == 4


def test_what_waits_for_a_failed_call_is_never_sent() -> None:
    async def respond(request: web.Request, body: Any) -> web.Response:
        if request.headers["x-workflow-node"] == "summary-1":
            return web.Response(status=503, text="queue_full")
        return answer("x")

    heard: list[PlayedCall] = []
    workflow = chain("wf", random.Random(1), chunks=(4, 4), chunk_tokens=(20, 20))
    (played,) = play(respond, workflow, on_call=heard.append)
    assert [(call.node, call.status) for call in played.calls] == [("summary-0", 200), ("summary-1", 503)]
    assert not played.complete and heard == list(played.calls)
    (failed,) = failures([played])
    assert failed.error == "503: queue_full"


def test_no_more_calls_than_allowed_are_under_way() -> None:
    running, most = 0, 0
    two = asyncio.Event()

    async def respond(request: web.Request, body: Any) -> web.Response:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == 2:
            two.set()
        await two.wait()
        running -= 1
        return answer("x")

    played = play(respond, *(chat(f"c{n}", random.Random(n)) for n in range(6)), concurrency=2)
    assert most == 2 and all(workflow.complete for workflow in played)


def test_an_answer_that_is_none_is_a_failure() -> None:
    async def respond(request: web.Request, body: Any) -> web.Response:
        return web.json_response({"choices": []})

    (played,) = play(respond, chat("c", random.Random(1)))
    assert played.calls[0].status == 200 and played.calls[0].error.startswith("not an answer: ")


def test_nobody_there_is_a_failure() -> None:
    async def main() -> list[PlayedWorkflow]:
        player = Player(f"http://127.0.0.1:{unused_port()}", "m")
        return await player.play([Arrival(0.0, chat("c", random.Random(1)))])

    (played,) = asyncio.run(main())
    assert played.calls[0].status == 0 and "Connect" in played.calls[0].error
