"""What is taken as a workflow, and where exactly it is wrong if not."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import RequestFault
from proxy.workflows.nodes import Bounds
from proxy.workflows.placeholders import Template, template
from proxy.workflows.run import HeldBytes, WorkflowRun
from proxy.workflows.submission import parse

BOUNDS = Bounds(nodes=100, request_bytes=10_000, all_bytes=20_000)
ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}


def node(name: str, content: str = "hi", **more: Any) -> dict[str, Any]:
    return {"id": name, "request": {"messages": [{"role": "user", "content": content}]}, **more}


def refused(body: dict[str, Any], bounds: Bounds = BOUNDS) -> RequestFault:
    with pytest.raises(RequestFault) as caught:
        parse(body, bounds)
    return caught.value


def test_edges_are_what_is_said_and_what_is_quoted() -> None:
    nodes = [node("a"), node("b", after=["a"]), node("c", "sum up {{a}} and {{ b }} and {{a}}: {{input.ask}}")]
    found = parse({"nodes": nodes, "inputs": {"ask": '{{a}} "quoted"\n'}}, BOUNDS)
    a, b, c = found.specs
    assert (a.after, a.data_from) == ((), ())
    assert (b.after, b.data_from) == (("a",), ())
    assert (c.after, c.data_from) == ((), ("a", "b"))
    assert found.outputs == ()
    assert [
        name for name, run in WorkflowRun("w", "k", found, 0.0, HeldBytes()).nodes.items() if not run.consumers
    ] == ["c"]
    request = found.requests[2]
    assert isinstance(request, Template)
    filled = json.loads(request.fill({"a": 'A "1"\n{{b}}', "b": "é\u2028"}))
    assert filled["messages"][0]["content"] == (
        'sum up A "1"\n{{b}} and é\u2028 and A "1"\n{{b}}: {{a}} "quoted"\n'  # neither outputs nor inputs are templates
    )


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({}, 400, "nodes"),
        ({"nodes": []}, 400, "nodes"),
        ({"nodes": [1]}, 400, "nodes[0]"),
        ({"nodes": [{}]}, 400, "nodes[0].id"),
        ({"nodes": [node("a b")]}, 400, "nodes[0].id"),
        ({"nodes": [node("a"), node("b"), node("a")]}, 400, "nodes[2].id"),
        ({"nodes": [{"id": "a"}]}, 400, "nodes[0].request"),
        ({"nodes": [node("a", tool=True)]}, 400, "nodes[0].request"),
        ({"nodes": [node("a", after=["b"])]}, 400, "nodes[0].after[0]"),
        ({"nodes": [node("a"), node("b", after=["a", "b"])]}, 400, "nodes[1].after[1]"),
        ({"nodes": [node("a"), node("b", "{{a}} {{nobody}}")]}, 400, "nodes[1].request.messages[0].content"),
        ({"nodes": [node("a", "{{input.x}}")], "inputs": {"y": "1"}}, 400, "nodes[0].request.messages[0].content"),
        ({"nodes": [node("a", "{{a}}")]}, 400, "nodes[0].request"),
        ({"nodes": [node("a", retry=11)]}, 400, "nodes[0].retry"),
        ({"nodes": [node("a", retry=True)]}, 400, "nodes[0].retry"),
        ({"nodes": [node("a", endpoint="/v1/embeddings")]}, 400, "nodes[0].endpoint"),
        ({"nodes": [node("a", expected_output_tokens=-1)]}, 400, "nodes[0].expected_output_tokens"),
        ({"nodes": [node("a", colour="red")]}, 400, "nodes[0].colour"),
        ({"nodes": [{"id": "a", "request": {"model": 1}}]}, 400, "nodes[0].request.model"),
        ({"nodes": [node("a")], "outputs": ["b"]}, 400, "outputs[0]"),
        ({"nodes": [node("a")], "deadline_ms": float("nan")}, 400, "deadline_ms"),
        ({"nodes": [node("a")], "mode": "dry"}, 400, "mode"),
        ({"nodes": [node("a")], "id": "with blank"}, 400, "id"),
        ({"nodes": [node("a")], "stream": "yes"}, 400, "stream"),
        ({"nodes": [node("a")], "surprise": 1}, 400, "surprise"),
        ({"nodes": [node(f"n{at}") for at in range(101)]}, 413, "nodes"),
    ],
)
def test_what_is_wrong_is_named(body: dict[str, Any], status: int, param: str) -> None:
    fault = refused(body)
    assert (fault.status, fault.param) == (status, param)
    assert param in fault.message


def test_declared_nodes_need_no_request() -> None:
    found = parse({"mode": "declared", "nodes": [{"id": "a"}, {"id": "b", "after": ["a"]}]}, BOUNDS)
    assert found.declared and [spec.id for spec in found.specs] == ["a", "b"] and not found.requests


def test_braces_that_are_no_placeholders_stay() -> None:
    text = "{{ a + b }} {{}} {{{a}}} {a} {{a b}} {{é}}"
    request = {"messages": [{"content": text}]}
    cut = template(request, orjson.dumps(request), {}, {"a"}, "request")
    assert isinstance(cut, Template)
    assert cut.references == ("a",)
    assert json.loads(cut.fill({"a": "!"}))["messages"][0]["content"] == text.replace("{{a}}", "!", 1)
    (request,) = parse({"nodes": [node("a", text, placeholders=False)]}, BOUNDS).requests
    assert isinstance(request, bytes)
    assert json.loads(request)["messages"][0]["content"] == text


@pytest.mark.parametrize("content", ["hi", "{{ no placeholder }}", "{{input.x}}", "{{n-0}}"])
def test_requests_take_the_memory_that_is_counted(content: str) -> None:
    """And not 4 KiB each, which is what orjson hands over for however short a text."""
    nodes = [node("n-0"), *[node(f"n-{number}", content) for number in range(1, 500)]]
    body, bounds = {"nodes": nodes, "inputs": {"x": "1"}}, Bounds(1_000, 10_000, 1_000_000)
    parse(body, bounds)
    tracemalloc.start()
    found = parse(body, bounds)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found.requests) == 500
    assert taken < found.request_bytes + 500 * 1_000


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(st.sampled_from('a\n,"\\{}é'), max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
REQUESTS = st.dictionaries(st.sampled_from(["x", "stream", "workflow", "\n,\n", "stop"]), VALUES, max_size=4)


@given(st.lists(REQUESTS | st.none(), min_size=1, max_size=300))
def test_requests_written_together_are_those_written_alone(requests: list[dict[str, Any] | None]) -> None:
    items = [{"id": f"n{at}", "request": request, "placeholders": False} for at, request in enumerate(requests)]
    items = [item if item["request"] is not None else {"id": item["id"], "tool": True} for item in items]
    found = parse({"nodes": items}, Bounds(1_000, 1_000_000, 1_000_000))
    wanted = [
        None if request is None else orjson.dumps({k: v for k, v in request.items() if k not in {"stream", "workflow"}})
        for request in requests
    ]
    assert found.requests == wanted
    assert found.request_bytes == sum(len(text) for text in wanted if text is not None)


@pytest.mark.parametrize(
    ("members", "limit"),
    [
        ({}, None),
        ({"max_tokens": 7}, 7),
        ({"max_tokens": 0}, None),
        ({"max_tokens": "7"}, None),
        ({"max_tokens": 7, "n": 3}, 21),
        ({"n": 3}, None),
        ({"max_completion_tokens": 5, "max_tokens": 7}, 5),
        ({"max_completion_tokens": None, "max_tokens": 7}, 7),
        ({"max_output_tokens": 9, "stream": True}, 9),
    ],
)
def test_the_most_that_a_request_may_give(members: dict[str, Any], limit: int | None) -> None:
    (spec,) = parse({"nodes": [{"id": "a", "request": {**ASK, **members}}]}, BOUNDS).specs
    assert spec.max_output_tokens == limit


TEXTS = st.text(st.sampled_from('xy" \\\né}'), max_size=30)  # no opening brace: what is filled in is all there is


@given(st.lists(TEXTS, min_size=1, max_size=4), st.text(max_size=30), st.text(max_size=30))
def test_filling_is_replacing(texts: list[str], one: str, two: str) -> None:
    """Against the plain way: each text on its own, on Python strings."""
    request = {"messages": [{"content": f"{{{{n1}}}}{text}{{{{n2}}}}"} for text in texts], "stop": ["{{n1}}"]}
    cut = template(request, orjson.dumps(request), {}, {"n1", "n2"}, "request")
    assert isinstance(cut, Template)
    filled = json.loads(cut.fill({"n1": one, "n2": two}))
    assert [message["content"] for message in filled["messages"]] == [f"{one}{text}{two}" for text in texts]
    assert filled["stop"] == [one]
