"""A workflow as JSON, DOT and Mermaid: valid whatever its names are, the critical path marked."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.events import CallArrived, CallFinished
from scheduler.workflow import NodeSpec, Workflow, WorkflowBook, WorkflowSpec
from scheduler.workflow.describe import to_json
from scheduler.workflow.draw import to_dot, to_mermaid


def example() -> tuple[WorkflowBook, Workflow]:
    """`a` has finished, `b` runs, a tool acts, `sum` waits for all."""
    book = WorkflowBook()
    nodes = (
        NodeSpec("a"), NodeSpec("b", ("a",), (), 400), NodeSpec("look", ("a",), tool=True),
        NodeSpec("sum", ("look",), ("b",)),
    )  # fmt: skip
    workflow = book.declare(WorkflowSpec("key", "wf", "report", nodes=nodes, deadline_seconds=60.0), 10.0)
    book.call_arrived(CallArrived("c1", "key", "m", "wf", 100, node="a"), 11.0)
    book.call_started("c1", 11.0)
    book.call_finished(CallFinished("c1", 120, 100, 30), 13.0)
    book.call_arrived(CallArrived("c2", "key", "m", "wf", 100, node="b"), 13.0)
    book.call_started("c2", 14.0)
    return book, workflow


def test_json_says_what_is_known_and_what_is_not() -> None:
    book, workflow = example()
    shown = to_json(workflow, 15.0)
    assert json.loads(json.dumps(shown)) == shown
    assert (shown["id"], shown["name"], shown["status"], shown["class"]) == ("wf", "report", "running", "standard")
    assert (shown["age_seconds"], shown["deadline_seconds"], shown["ended_seconds"]) == (5.0, 60.0, None)
    assert (shown["prompt_tokens"], shown["cached_tokens"], shown["output_tokens"]) == (120, 100, 30)
    assert (shown["energy_joules"], shown["energy_source"]) == (None, "unavailable")
    assert shown["critical_path"] == ["a", "b", "sum"]
    by_id = {node["id"]: node for node in shown["nodes"]}
    assert [by_id[name]["state"] for name in ("a", "b", "look", "sum")] == ["finished", "running", "acting", "planned"]
    assert [by_id[name]["critical"] for name in ("a", "b", "look", "sum")] == [True, True, False, True]
    assert (by_id["a"]["started_seconds"], by_id["a"]["finished_seconds"]) == (1.0, 3.0)
    assert (by_id["a"]["slack_seconds"], by_id["look"]["kind"]) == (None, "tool")
    assert by_id["b"]["energy_joules"] is None and by_id["b"]["energy_source"] == "unavailable"
    assert {"from": "b", "to": "sum", "kind": "data", "confidence": 1.0} in shown["edges"]
    book.cancel("key", "wf", 16.0)
    shown = to_json(workflow, 20.0)
    assert (shown["status"], shown["ended_seconds"], shown["projected_end_seconds"]) == ("cancelled", 6.0, None)


def test_json_of_a_workflow_whose_client_is_at_work() -> None:
    book = WorkflowBook()
    book.call_arrived(CallArrived("c", "key", "m", "wf", 10), 0.0)
    book.call_finished(CallFinished("c", 10, 0, 10), 1.0)
    workflow = book.workflow("key", "wf")
    assert workflow is not None
    shown = to_json(workflow, 2.0)
    assert (shown["status"], shown["client_returns_seconds"]) == ("acting", {"median": 2.0, "upper": 2.0})
    assert shown["critical_path"] == ["call-1"]


def test_the_pictures_mark_the_critical_path() -> None:
    _, workflow = example()
    dot = to_dot(workflow, 15.0).splitlines()
    red = [line.split(" [")[0].strip() for line in dot if 'color="#c62828"' in line]
    assert red == ["n0", "n1", "n3", "n0 -> n1", "n1 -> n3"]
    mermaid = to_mermaid(workflow, 15.0).splitlines()
    assert "  class n0,n1,n3 critical" in mermaid
    edges = [line for line in mermaid if re.search(r" (-->|==>|-\.->)", line)]
    marked = next(line.split()[1] for line in mermaid if line.strip().startswith("linkStyle"))
    assert [edges[int(number)].strip() for number in marked.split(",")] == ["n0 --> n1", "n1 ==> n3"]


def test_guesses_are_dashed_and_say_how_sure_they_are() -> None:
    book = WorkflowBook()
    for call in ("c1", "c2"):
        book.call_arrived(CallArrived(call, "key", "m", "wf", 10), 0.0)
        book.call_finished(CallFinished(call, 10, 0, 10), 1.0)
    workflow = book.workflow("key", "wf")
    assert workflow is not None
    assert '  n0 -> n1 [style=dashed, color="#c62828", penwidth=2, label="0.9"];' in to_dot(workflow, 1.0)
    assert "  n0 -.->|0.9| n1\n" in to_mermaid(workflow, 1.0)


# --- whatever the names are ---

DOT_STRING = r'"(?:[^"\\]|\\["\\])*"'
DOT_VALUE = rf"(?:{DOT_STRING}|[a-z0-9.]+)"
DOT_LINES = [
    re.compile(rf"digraph {DOT_STRING} {{"),
    re.compile(r"  rankdir=TB;"),
    re.compile(rf"  (?:n\d+|node|n\d+ -> n\d+) \[\w+={DOT_VALUE}(?:, \w+={DOT_VALUE})*\];"),
    re.compile(r"}"),
]
MERMAID_TEXT = r'"(?:[^"#;<>&`\\\[\]{}()|%]|#\d+;)*"'
MERMAID_LINES = [
    re.compile(r"flowchart TD"),
    re.compile(rf"  n\d+(?:\[{MERMAID_TEXT}\]|\{{\{{{MERMAID_TEXT}\}}\}}):::\w+"),
    re.compile(r"  n\d+ (?:-->|==>|-\.->)(?:\|[0-9.]+\|)? n\d+"),
    re.compile(r"  classDef \w+ [\w:#,-]+"),
    re.compile(r"  class n\d+(?:,n\d+)* critical"),
    re.compile(r"  linkStyle \d+(?:,\d+)* [\w:#,-]+"),
]
NAMES = st.lists(st.text(max_size=30), unique=True, min_size=1, max_size=6)
HOSTILE = [
    '"',
    "\\",
    'a"]; evil [x="',
    "end",
    "graph",
    "</b>",
    "a\nb",
    "\x00",
    "`x`",
    "#quot;",
    "n0",
    "%%",
    "{{x}}",
    "\\N",
]


def fits(text: str, forms: list[re.Pattern[str]]) -> None:
    assert text.endswith("\n")
    for line in text[:-1].split("\n"):
        assert any(form.fullmatch(line) for form in forms), repr(line)


def drawn(names: list[str]) -> tuple[str, str]:
    nodes = tuple(NodeSpec(name, tuple(names[:number]), tool=number % 3 == 2) for number, name in enumerate(names))
    book = WorkflowBook()
    workflow = book.declare(WorkflowSpec("key", names[0], nodes=nodes), 0.0)
    json.dumps(to_json(workflow, 1.0))
    return to_dot(workflow, 1.0), to_mermaid(workflow, 1.0)


@given(NAMES)
def test_pictures_are_valid_for_any_names(names: list[str]) -> None:
    dot, mermaid = drawn(names)
    fits(dot, DOT_LINES)
    fits(mermaid, MERMAID_LINES)


def test_pictures_are_valid_for_hostile_names() -> None:
    dot, mermaid = drawn(HOSTILE)
    fits(dot, DOT_LINES)
    fits(mermaid, MERMAID_LINES)
    labels = re.findall(r"label=\"((?:[^\"\\]|\\.)*)\"", dot)
    shown = [re.sub(r"\\(.)", r"\1", label).rpartition(" (")[0] for label in labels]
    assert shown == [name.replace("\n", "\ufffd").replace("\x00", "\ufffd") for name in HOSTILE]
    texts = re.findall(r"(?:\[|\{\{)\"(.*)\"(?:\]|\}\})", mermaid)
    plain = [re.sub(r"#(\d+);", lambda found: chr(int(found[1])), text).rpartition(" (")[0] for text in texts]
    assert plain == shown


@pytest.mark.parametrize(
    ("text", "forms"),
    [('digraph "a"b" {\n', DOT_LINES), ('flowchart TD\n  n0["a"b"]:::x\n', MERMAID_LINES)],
)
def test_the_rules_would_notice(text: str, forms: list[re.Pattern[str]]) -> None:
    with pytest.raises(AssertionError):
        fits(text, forms)
