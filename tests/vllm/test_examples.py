"""Every example as its reader starts it: one command, against a gateway before a real vLLM. And the graph it leaves."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import networkx as nx
import pytest

from tests.vllm.children import ROOT, Gateway
from tests.vllm.wire import ask

EXAMPLES = ROOT / "examples"
ESSAY = nx.DiGraph([("plan", "opening"), ("plan", "ending"), ("opening", "review"), ("ending", "review")])
MINUTES_5 = 300


@pytest.fixture(scope="module")
def looking(engine: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A gateway that looks at contents, with a place for files."""
    folder = tmp_path_factory.mktemp("examples")
    environment = {"JOULEGATE_WORKFLOWS__INFERENCE": "on", "JOULEGATE_STATE_DIR": str(folder / "state")}
    child = Gateway(folder / "log", ["--engine", engine], environment)
    try:
        child.wait_ready_to_serve()
        yield child.url
    finally:
        child.end()
    assert "Traceback" not in child.text()


def run(*command: str) -> str:
    """What an example prints; it ends well and complains of nothing."""
    interpreter = [sys.executable] if command[0].endswith(".py") else []
    done = subprocess.run(
        [*interpreter, str(EXAMPLES / command[0]), *command[1:]],
        capture_output=True,
        text=True,
        timeout=MINUTES_5,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def left(url: str, workflow_id: str, *, by_order: bool = False) -> dict[str, Any]:
    """The graph as the gateway shows it: a plan, two parts beside each other, one review; all finished.

    `by_order`: the calls say no more than whose they are, so that two which did not overlap seem to follow each other.
    """
    answer = ask(url, "GET", f"/v1/workflows/{workflow_id}")
    assert answer.status == 200, answer.body
    document: dict[str, Any] = answer.json()
    assert [node["state"] for node in document["nodes"]] == ["finished"] * 4
    edges = [(edge["from"], edge["to"]) for edge in document["edges"]]
    graph = nx.DiGraph(edges)
    one_after_another = nx.is_isomorphic(graph, nx.path_graph(4, create_using=nx.DiGraph))
    assert nx.is_isomorphic(graph, ESSAY) or (by_order and one_after_another), edges
    return document


def kinds(document: dict[str, Any]) -> set[str]:
    return {edge["kind"] for edge in document["edges"]}


def test_no_example_is_left_out() -> None:
    tested = {"workflow_curl.sh", "openai_hints.py", "langgraph_agent.py", "parrot_http.py", "batch.py"}
    tested |= {"longest_wait_policy.py", "ab_traffic.py"}  # by tests/e2e, which need no engine for them
    assert {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".sh")} == tested


def test_curl(looking: str) -> None:
    printed = run("workflow_curl.sh", looking)
    found = re.search(r'"id": ?"(essay-[^"]+)"', printed)
    assert found and re.search(r'"status": ?"completed"', printed)
    drawing = printed.partition("flowchart TD")[2]
    assert all(name in drawing for name in ESSAY)
    document = left(looking, found[1])
    assert set(document["outputs"]) == {"review"} and kinds(document) == {"data"}


def test_openai_python_with_hints(looking: str) -> None:
    printed = run("openai_hints.py", looking)
    found = re.search(r"--- workflow (\S+),", printed)
    assert found and re.search(r"review +after opening, ending +finished, [1-9]\d* \+ [1-9]\d* tokens", printed)
    document = left(looking, found[1])
    assert kinds(document) == {"declared"} and document["status"] == "closed", "the last call said so"


@pytest.mark.parametrize("options", [(), ("--plain",)], ids=["base URL", "plain"])
def test_langgraph_with_nothing_changed_but_the_base_url(looking: str, options: tuple[str, ...]) -> None:
    printed = run("langgraph_agent.py", looking, *options)
    found = re.search(r"--- workflow (\S+),", printed)
    assert found and found[1].startswith("essay-") is not bool(options)
    assert "flowchart TD" in printed
    assert kinds(left(looking, found[1], by_order=not options)) == {"inferred"}


def test_langgraph_where_nobody_looks_at_contents(gateway: str) -> None:
    assert "does not look at contents" in run("langgraph_agent.py", gateway, "--plain")


def test_parrots_api(looking: str) -> None:
    printed = run("parrot_http.py", looking)
    assert printed.startswith("part 1: ") and "\nthe whole: " in printed
    newest = ask(looking, "GET", "/v1/workflows?limit=1").json()["data"][0]["id"]
    document = ask(looking, "GET", f"/v1/workflows/{newest}").json()
    maps = [node["id"] for node in document["nodes"] if node["id"].startswith("map")]
    (reduce,) = (node["id"] for node in document["nodes"] if node["id"].startswith("reduce"))
    assert {(edge["from"], edge["to"]) for edge in document["edges"]} == {(name, reduce) for name in maps}
    assert len(maps) >= 2


def test_a_batch(looking: str) -> None:
    printed = run("batch.py", looking)
    assert all(f"{country}: " in printed for country in ("Chile", "Ghana", "Peru"))
