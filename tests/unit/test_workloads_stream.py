"""Streamed answers, plays by users, plays that are broken off: what the player keeps of each."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from workloads.player import Arrival, PlayedWorkflow, Player
from workloads.prompts import Manner, prompt_of
from workloads.shapes import CallShape, Part, WorkflowShape, chat, map_reduce
from workloads.ways.native import submission
from workloads.ways.sse import StreamFault, document_of

Handle = Callable[[web.Request, Any], Awaitable[web.StreamResponse]]
STREAMED = Manner(streamed=True)


def events(*texts: str, usage: dict[str, Any] | None = None, done: bool = True) -> bytes:
    found = [{"choices": [{"index": 0, "delta": {"content": text}}]} for text in texts]
    if usage is not None:
        found.append({"choices": [], "usage": usage})  # type: ignore[dict-item]
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in found)
    return (body + ("data: [DONE]\n\n" if done else "")).encode()


async def serve(handle: Handle, use: Callable[[str], Awaitable[None]]) -> None:
    async def respond(request: web.Request) -> web.StreamResponse:
        return await handle(request, await request.json())

    app = web.Application()
    app.router.add_post("/v1/chat/completions", respond)
    async with asyncio.timeout(20), TestServer(app) as server:
        await use(str(server.make_url("")).rstrip("/"))


def test_events_come_to_the_document_that_there_would_have_been() -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 0}}
    document = document_of(b": a comment\r\n\r\n" + events("so ", "it ", "is", usage=usage))
    assert document["choices"][0]["message"]["content"] == "so it is" and document["usage"] == usage


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (events("so ", done=False), "broke off"),
        (events("so ") + b'data: {"error": {"message": "engine died"}}\n\n', "engine died"),
        (b"", "broke off"),
    ],
)
def test_a_stream_that_does_not_end_well_is_a_fault(body: bytes, words: str) -> None:
    with pytest.raises(StreamFault, match=words):
        document_of(body)


def test_a_streamed_call_has_its_first_token_and_what_the_gateway_says() -> None:
    seen: list[Any] = []
    played: list[PlayedWorkflow] = []

    async def handle(request: web.Request, body: Any) -> web.StreamResponse:
        seen.append((dict(request.headers), body))
        heads = {"x-joulegate-decision": "fifo; engine=gpu-0; held_ms=12.5", "x-energy-source": "unavailable"}
        response = web.StreamResponse(headers=heads)
        await response.prepare(request)
        usage = {"prompt_tokens": 9, "completion_tokens": 2, "energy_joules": 3.5, "energy_source": "modelled"}
        for piece in (events("a", done=False), events("b", usage=usage)):
            await response.write(piece)
        return response

    async def use(url: str) -> None:
        player = Player(url, "m", manner=STREAMED)
        arrival = Arrival(0.0, chat("c", random.Random(1)), deadline_seconds=1.5, workflow_class="batch")
        played.extend(await player.play([arrival]))

    asyncio.run(serve(handle, use))
    (heads, body), (call,) = seen[0], played[0].calls
    assert heads["x-workflow-deadline-ms"] == "1500.000" and heads["x-workflow-class"] == "batch"
    assert body["stream"] and body["stream_options"] == {"include_usage": True}
    assert body["min_tokens"] == body["max_tokens"] and body["ignore_eos"]
    assert call.first_token_at is not None and call.sent_at <= call.first_token_at <= call.answered_at
    assert (call.held_seconds, call.engine, call.energy_joules, call.energy_source) == (
        0.0125,
        "gpu-0",
        3.5,
        "modelled",
    )
    assert (call.prompt_tokens, call.cached_tokens, call.output_tokens) == (9, None, 2)


def test_a_free_running_call_may_end_by_itself() -> None:
    seen: list[Any] = []

    async def handle(request: web.Request, body: Any) -> web.StreamResponse:
        seen.append(body)
        return web.json_response({"choices": [{"message": {"content": "x"}}]})

    async def use(url: str) -> None:
        await Player(url, "m", manner=Manner(free_running=True)).play([Arrival(0.0, chat("c", random.Random(1)))])

    asyncio.run(serve(handle, use))
    assert "ignore_eos" not in seen[0] and "min_tokens" not in seen[0] and seen[0]["max_tokens"] > 0


def test_users_take_one_workflow_after_the_other() -> None:
    running = most = 0
    played: list[PlayedWorkflow] = []

    async def handle(request: web.Request, body: Any) -> web.StreamResponse:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(3):
            await asyncio.sleep(0)
        running -= 1
        return web.json_response({"choices": [{"message": {"content": "x"}}]})

    async def use(url: str) -> None:
        arrivals = [Arrival(0.0, chat(f"c{n}", random.Random(n))) for n in range(7)]
        played.extend(await Player(url, "m").play(arrivals, users=2))

    asyncio.run(serve(handle, use))
    assert most <= 2 and [each.workflow.id for each in played] == [f"c{n}" for n in range(7)]
    ends = {each.finished_at for each in played}
    assert sum(each.intended_at in ends for each in played) == 5  # all but the users' first ones follow on another


def test_a_play_that_is_broken_off_keeps_what_was_answered() -> None:
    async def handle(request: web.Request, body: Any) -> web.StreamResponse:
        if request.headers["x-workflow-node"] == "reduce":
            await asyncio.Event().wait()
        return web.json_response({"choices": [{"message": {"content": "x"}}]})

    kept: list[PlayedWorkflow] = []

    async def use(url: str) -> None:
        three = asyncio.Event()
        over: list[str] = []

        def on_call(call: Any) -> None:
            over.append(call.node)
            if len(over) == 4:
                three.set()

        player = Player(url, "m", on_call=on_call)
        shapes = [map_reduce("wf", random.Random(1), chunks=(3, 3), chunk_tokens=(5, 5)), chat("c", random.Random(1))]
        playing = asyncio.create_task(player.play([Arrival(0.0, shape) for shape in shapes]))
        await three.wait()
        playing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await playing
        kept.extend(player.played)

    asyncio.run(serve(handle, use))
    by_name = {each.workflow.id: each for each in kept}
    assert by_name["c"].complete and not by_name["wf"].complete
    assert sorted(call.node for call in by_name["wf"].calls) == ["map-0", "map-1", "map-2"]


def test_a_salt_stands_before_every_prompt_and_changes_nothing_behind_it() -> None:
    call = CallShape("n", (), (Part("head", 40), Part("own", 30)), 5)
    plain = prompt_of(call, str)
    one, two = (prompt_of(call, str, Manner(salt=salt)) for salt in ("a 1", "a 2"))
    assert one != two and one.endswith("\n\n" + plain) and two.endswith("\n\n" + plain)
    assert one == prompt_of(call, str, Manner(salt="a 1"))


def test_a_call_waits_for_the_pause_of_its_tool() -> None:
    """The pause is part of the workflow: a call is intended behind it."""
    played: list[PlayedWorkflow] = []

    async def handle(request: web.Request, body: Any) -> web.StreamResponse:
        return web.json_response({"choices": [{"message": {"content": "x"}}]})

    async def use(url: str) -> None:
        part = (Part("p", 5),)
        shape = WorkflowShape("w", "k", (CallShape("a", (), part, 2), CallShape("b", ("a",), part, 2, 0.05)))
        played.extend(await Player(url, "m").play([Arrival(0.0, shape)]))

    asyncio.run(serve(handle, use))
    first, second = played[0].calls
    assert second.intended_at == pytest.approx(first.answered_at + 0.05) and second.sent_at >= second.intended_at


def test_lengths_are_told_in_the_body_in_the_headers_place() -> None:
    seen: list[tuple[dict[str, str], Any]] = []

    async def handle(request: web.Request, body: Any) -> web.StreamResponse:
        seen.append((dict(request.headers), body))
        return web.json_response({"choices": [{"message": {"content": "x"}}]})

    shape = WorkflowShape("w", "k", (CallShape("a", (), (Part("p", 5),), 7),))

    async def use(url: str) -> None:
        await Player(url, "m", manner=Manner(tell_lengths=True)).play([Arrival(0.0, shape, 2.0, "standard")])

    asyncio.run(serve(handle, use))
    ((heads, body),) = seen
    told = {"id": "w", "node": "a", "after": [], "deadline_ms": 2000.0, "class": "standard"}
    assert body["workflow"] == told | {"expected_output_tokens": 7, "final": True}
    assert not any(name.lower().startswith("x-workflow") for name in heads)
    (node,) = submission(Arrival(0.0, shape, 2.0, "standard"), "m", Manner(tell_lengths=True))["nodes"]
    assert node["expected_output_tokens"] == 7


def test_the_call_behind_which_none_comes_says_so() -> None:
    """Whichever of two that run beside each other is sent last."""
    finals: dict[str, str | None] = {}

    async def handle(request: web.Request, body: Any) -> web.StreamResponse:
        finals[request.headers["x-workflow-node"]] = request.headers.get("x-workflow-final")
        return web.json_response({"choices": [{"message": {"content": "x"}}]})

    part = (Part("p", 5),)
    calls = (CallShape("a", (), part, 2), CallShape("b", ("a",), part, 2), CallShape("c", ("a",), part, 2))

    async def use(url: str) -> None:
        await Player(url, "m").play([Arrival(0.0, WorkflowShape("w", "k", calls))])

    asyncio.run(serve(handle, use))
    assert finals.keys() == {"a", "b", "c"} and finals["a"] is None
    assert sorted(map(str, (finals["b"], finals["c"]))) == ["None", "true"]
