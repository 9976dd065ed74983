"""A LangGraph agent of which the gateway sees a workflow: nothing but its base URL is changed.

    python examples/langgraph_agent.py [URL] [--plain] [--model MODEL] [--key KEY]

A plan, two parts written side by side, one review of both. With `/w/{workflow-id}/v1` as the base URL all calls are of
that workflow, and their order tells what follows what. With `--plain` the base URL is `/v1`, as for any server: then
the gateway can find the graph in the texts (`[workflows] inference = "on"`), since each call quotes those before it.
"""
# ruff: noqa: T201  (it is a program: what it prints is its result)

from __future__ import annotations

import argparse
import json
import os
import urllib.error
import urllib.request
import uuid
from typing import Any, TypedDict

from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, StateGraph

URL = os.environ.get("GATEWAY_URL", "http://127.0.0.1:8080")
KEY = os.environ.get("GATEWAY_API_KEY", "none")
SYSTEM = "You write short, plain essays."


class Essay(TypedDict, total=False):
    """The agent's state; each step adds to it."""

    subject: str
    plan: str
    opening: str
    ending: str
    review: str
    workflow_id: str


def agent(model: ChatOpenAI) -> Any:
    """An ordinary LangGraph program. It knows nothing of the gateway."""

    def ask(prompt: str) -> tuple[str, str]:
        answer = model.invoke([("system", SYSTEM), ("user", prompt)])
        return str(answer.content), answer.response_metadata["headers"].get("x-workflow-id", "")

    def plan(state: Essay) -> Essay:
        text, workflow_id = ask(f"Plan an essay about {state['subject']} in two parts.")
        return {"plan": text, "workflow_id": workflow_id}

    def opening(state: Essay) -> Essay:
        return {"opening": ask(f"Write the first part of this plan.\n\n{state['plan']}")[0]}

    def ending(state: Essay) -> Essay:
        return {"ending": ask(f"Write the second part of this plan.\n\n{state['plan']}")[0]}

    def review(state: Essay) -> Essay:
        return {"review": ask(f"Review this essay in two sentences.\n\n{state['opening']}\n\n{state['ending']}")[0]}

    graph = StateGraph(Essay)
    for name, step in {"plan": plan, "opening": opening, "ending": ending, "review": review}.items():
        graph.add_node(f"{name}_step", step)
    graph.add_edge(START, "plan_step")
    for part in ("opening_step", "ending_step"):
        graph.add_edge("plan_step", part)
    graph.add_edge(["opening_step", "ending_step"], "review_step")
    graph.add_edge("review_step", END)
    return graph.compile()


def fetch(url: str, key: str) -> str:
    """GET, as text."""
    request = urllib.request.Request(url, headers={"authorization": f"Bearer {key}"})  # noqa: S310  (the user's URL)
    with urllib.request.urlopen(request, timeout=600) as answer:  # noqa: S310
        return str(answer.read().decode())


def main() -> None:
    parser = argparse.ArgumentParser(description="write a short essay with a LangGraph agent of four calls")
    parser.add_argument("url", nargs="?", default=URL, help=f"of the gateway (default: {URL})")
    parser.add_argument("--plain", action="store_true", help="say nothing of a workflow, not even in the base URL")
    parser.add_argument("--model", help="default: the first that the gateway serves")
    parser.add_argument("--key", default=KEY, help="an API key of the gateway, if it has any")
    options = parser.parse_args()
    url, key = options.url.rstrip("/"), options.key
    base_url = f"{url}/v1" if options.plain else f"{url}/w/essay-{uuid.uuid4().hex[:12]}/v1"
    model = ChatOpenAI(
        base_url=base_url,
        api_key=key,
        model=options.model or json.loads(fetch(f"{url}/v1/models", key))["data"][0]["id"],
        max_completion_tokens=64,
        include_response_headers=True,  # only to know the workflow's id below
    )
    essay = agent(model).invoke({"subject": "a lighthouse at the end of winter"})
    print(f"{essay['opening']}\n\n{essay['ending']}\n\n--- review ---\n{essay['review']}\n")
    print(f"--- workflow {essay['workflow_id']}, as the gateway saw it ---")
    try:
        print(fetch(f"{url}/v1/workflows/{essay['workflow_id']}?format=mermaid", key))
    except urllib.error.HTTPError as error:
        if error.code != 404 or not options.plain:
            raise
        print("(nothing: it does not look at contents, see `inference` in the table [workflows] of its configuration)")


if __name__ == "__main__":
    main()
