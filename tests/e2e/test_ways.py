"""One workflow, four ways in: the same prompts reach the engine, and the gateway shows the same graph."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.graphs import assert_one_graph, assert_twins_apart, get, play, shapes
from tests.e2e.harness import EngineRequest, RunningGateway, engine, gateway, run, until
from tests.e2e.twin_process import MODEL, Twin
from workloads.player import Arrival, PlayedWorkflow, Player, failures
from workloads.ways import WAYS

LOOKING = {"inference": "on"}
WORDS = "This model's maximum context length is 8 tokens."


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    child = Twin(tmp_path_factory.mktemp("twin") / "log", "--speed", "50", "--max-model-len", "2048")
    try:
        yield child.wait_ready_to_serve().url
    finally:
        child.end()


def url_of(running: RunningGateway) -> str:
    return f"http://127.0.0.1:{running.port}"


async def engine_is_up(running: RunningGateway) -> None:
    """The first probe was good: calls are taken."""
    engines = running.app.gateway.engines.values()
    await until(lambda: all(state.load is not None for state in engines), "the first probe")


def key(name: str) -> dict[str, Any]:
    return {"name": name, "sha256": hashlib.sha256(name.encode()).hexdigest()}


# --- the graph ---


def test_every_way_shows_the_same_graph_of_the_same_workflow(twin: str) -> None:
    """Ten workflows of five kinds at once, by each way."""

    async def main() -> None:
        async with gateway(twin, workflows=LOOKING) as running:
            await engine_is_up(running)
            by_way = {way: await play(url_of(running), MODEL, way, shapes()) for way in WAYS}
            assert_one_graph(by_way)
            listed = (await get(url_of(running), "/v1/workflows?limit=100"))["data"]
            assert len(listed) == len(WAYS) * len(shapes()), "a call stands outside its workflow"

    run(main)


def test_two_keys_with_the_same_texts_are_two_workflows(twin: str) -> None:
    async def main() -> None:
        keys = [key("alice"), key("bob")]
        async with gateway(twin, workflows=LOOKING, keys=keys) as running:
            await engine_is_up(running)
            for shape in shapes(("map-reduce",), 1):
                await assert_twins_apart(url_of(running), MODEL, shape, ("alice", "bob"))

    run(main)


def test_where_content_is_not_looked_at_bare_calls_are_nobodys(twin: str) -> None:
    async def main() -> None:
        async with gateway(twin, workflows={"inference": "off"}) as running:
            await engine_is_up(running)
            (played,) = await Player(url_of(running), MODEL, way="bare").play(
                [Arrival(0.0, shape) for shape in shapes(("chain",), 1)]
            )
            assert played.complete
            await get(url_of(running), f"/v1/workflows/{played.workflow_id}", status=404)
            assert (await get(url_of(running), "/v1/workflows"))["data"] == []

    run(main)


# --- the prompts ---


def completion(text: str) -> bytes:
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}}
    message = {"role": "assistant", "content": text}
    return json.dumps({"choices": [{"index": 0, "message": message}], "usage": usage}).encode()


async def digests(request: EngineRequest) -> None:
    """Answers with what only this prompt is answered with, in a shape that escaping and trimming would change."""
    digest = hashlib.sha256(request.json["messages"][0]["content"].encode()).hexdigest()
    await request.answer(completion(f'  "{digest}"\n\\ {{{{x}}}} é\t'))


def test_every_way_sends_the_engine_the_same_prompts() -> None:
    async def main() -> None:
        seen: dict[str, Counter[str]] = {}
        for way in WAYS:
            async with engine(digests) as upstream, gateway(upstream) as running:
                player = Player(url_of(running), "m", way=way)
                played = await player.play([Arrival(0.0, shape) for shape in shapes()])
                assert all(workflow.complete for workflow in played)
                seen[way] = Counter(_without_limits(request.json) for request in upstream.requests)
        assert seen["hinted"].total() == sum(len(shape.calls) for shape in shapes())
        for way in WAYS:
            assert seen[way] == seen["hinted"], way

    run(main)


def _without_limits(body: dict[str, Any]) -> str:
    """What the engine makes an answer of; Parrot's API adds `top_p` 1, which is what there is without it, and knows no
    `min_tokens`, which says nothing beside `ignore_eos`."""
    assert body.pop("top_p", 1) == 1
    assert body.pop("min_tokens", body["max_tokens"]) == body["max_tokens"] and body["ignore_eos"]
    return json.dumps(body, sort_keys=True)


# --- failures ---


@pytest.mark.parametrize("way", WAYS)
def test_a_failed_call_is_told_with_the_engines_words(way: str) -> None:
    """The second call of a chain is refused: what came before it is good, what is behind is not run."""
    (chain,) = shapes(("chain",), 1)

    async def refuses(request: EngineRequest) -> None:
        if len(asked) == 1:
            body = json.dumps({"error": {"message": WORDS}}).encode()
            asked.append("refused")
            await request.answer(body, status="400 Bad Request")
        else:
            asked.append("good")
            await digests(request)

    asked: list[str] = []

    async def main() -> PlayedWorkflow:
        async with engine(refuses) as upstream, gateway(upstream) as running:
            (played,) = await Player(url_of(running), "m", way=way).play([Arrival(0.0, chain)])
            return played

    played = run(main)
    assert asked == ["good", "refused"] and not played.complete
    calls = {call.node: call for call in played.calls}
    assert calls["summary-0"].good and not calls["summary-1"].good
    assert calls["summary-1"].status == 400 and WORDS in calls["summary-1"].error
    assert not any(call.good for node, call in calls.items() if node != "summary-0")


@pytest.mark.parametrize("way", WAYS)
def test_a_workflow_that_is_refused_whole_is_a_failure(way: str) -> None:
    async def main() -> PlayedWorkflow:
        async with engine(digests) as upstream, gateway(upstream, keys=[key("alice")]) as running:
            player = Player(url_of(running), "m", way=way, api_key="mallory")
            (played,) = await player.play([Arrival(0.0, shape) for shape in shapes(("chain",), 1)])
            assert not upstream.requests
            return played

    (failed,) = failures([run(main)])
    assert failed.status == 401 and failed.error.startswith("401: ")
