"""Which graph does a gateway show of a workflow? Fetched over HTTP, and compared without the names of nodes."""

from __future__ import annotations

import asyncio
import random
from typing import Any, NamedTuple

import aiohttp
import networkx as nx

from workloads.player import Arrival, Player, failures
from workloads.presets import CPU
from workloads.prompts import Manner
from workloads.shapes import WorkflowShape

VARIED = {"presence_penalty": 2.0}
"""A random model that only repeats itself says the same to everybody, and nothing tells whose answer it was."""
COMPARED = ("chain", "map-reduce", "coding", "copilot", "chat")


class Shown(NamedTuple):
    """A workflow as `GET /v1/workflows/{id}` shows it, beside the shape that was played."""

    shape: WorkflowShape
    description: dict[str, Any]


def shapes(kinds: tuple[str, ...] = COMPARED, each: int = 2, seed: int = 7) -> list[WorkflowShape]:
    """Several small workflows of each kind, no two of the same sizes by design."""
    rng = random.Random(seed)
    return [CPU[kind](f"{kind}-{number}", rng) for number in range(each) for kind in kinds]


async def play(
    url: str, model: str, way: str, workflows: list[WorkflowShape], *, key: str | None = None
) -> list[Shown]:
    """Play all of them at once by one way, each under an id of its own, and fetch what the gateway shows of each."""
    player = Player(url, model, way=way, api_key=key, manner=Manner(sampling=VARIED))
    played = await player.play([Arrival(0.0, shape._replace(id=f"{way}-{shape.id}")) for shape in workflows])
    assert not failures(played), failures(played)[0]
    assert all(workflow.complete for workflow in played)
    return [
        Shown(shape, await get(url, f"/v1/workflows/{workflow.workflow_id}", key))
        for shape, workflow in zip(workflows, played, strict=True)
    ]


async def get(url: str, path: str, key: str | None = None, status: int = 200) -> Any:
    """The JSON of an answer with this status."""
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession() as session, session.get(url + path, headers=headers) as answer:
        assert answer.status == status, await answer.text()
        return await answer.json()


def graph_of(description: dict[str, Any]) -> nx.DiGraph[str]:
    """Nodes with their tokens, edges whatever their kind. Every node has finished."""
    graph: nx.DiGraph[str] = nx.DiGraph()
    for node in description["nodes"]:
        assert node["state"] == "finished", node
        graph.add_node(node["id"], label=(node["prompt_tokens"], node["output_tokens"]))
    edges = [(edge["from"], edge["to"]) for edge in description["edges"]]
    assert len(edges) == len(set(edges)) and all(end in graph for edge in edges for end in edge)
    graph.add_edges_from(edges)
    return graph


def edges_of(shape: WorkflowShape) -> set[tuple[str, str]]:
    """By the names of the shape's nodes."""
    return {(before, call.node) for call in shape.calls for before in call.after}


def same(one: nx.DiGraph[str], other: nx.DiGraph[str]) -> bool:
    """Are they one graph, but for names?"""
    return bool(nx.is_isomorphic(one, other, node_match=lambda a, b: a["label"] == b["label"]))


def assert_one_graph(by_way: dict[str, list[Shown]]) -> None:
    """What was played by hints is what its shape says, and every other way shows the same."""
    for at, hinted in enumerate(by_way["hinted"]):
        shape, graph = hinted.shape, graph_of(hinted.description)
        assert set(graph.edges) == edges_of(shape)
        assert {name: data["label"][1] for name, data in graph.nodes(data=True)} == {
            call.node: call.output_tokens for call in shape.calls
        }
        for way, all_shown in by_way.items():
            shown = graph_of(all_shown[at].description)
            assert same(graph, shown), f"{shape.id} by {way}: {sorted(shown.edges)}, hinted: {sorted(graph.edges)}"


async def assert_twins_apart(url: str, model: str, shape: WorkflowShape, keys: tuple[str, str]) -> None:
    """Two keys play the same texts at the same time and say nothing: each has one whole graph, and sees no other."""
    one, two = await asyncio.gather(*(play(url, model, "bare", [shape], key=key) for key in keys))
    ids = [shown.description["id"] for (shown,) in (one, two)]
    assert ids[0] != ids[1]
    for (shown,), key, foreign in ((one, keys[0], ids[1]), (two, keys[1], ids[0])):
        assert len(shown.description["nodes"]) == len(shape.calls)
        assert nx.is_isomorphic(graph_of(shown.description), nx.DiGraph(sorted(edges_of(shape))))
        assert (await get(url, f"/v1/workflows/{foreign}", key, status=404))["error"]["code"] == "unknown_workflow"
        (listed,) = (await get(url, "/v1/workflows", key))["data"]
        assert listed["id"] == shown.description["id"]
