"""A workflow with openai-python: each call says with headers which it is, and what it comes after.

    python examples/openai_hints.py [URL] [--model MODEL] [--key KEY]

A plan, two parts written side by side, one review of both: the client makes the calls, as it always did. The gateway
learns from three headers that they belong together, and what waits for what.
"""
# ruff: noqa: T201  (it is a program: what it prints is its result)

from __future__ import annotations

import argparse
import asyncio
import os
import uuid
from typing import Any

from openai import AsyncOpenAI

URL = os.environ.get("GATEWAY_URL", "http://127.0.0.1:8080")
KEY = os.environ.get("GATEWAY_API_KEY", "none")


class Workflow:
    """One run: its id is all that its calls have in common."""

    def __init__(self, client: AsyncOpenAI, model: str) -> None:
        self.id = f"essay-{uuid.uuid4().hex[:12]}"
        self._client = client
        self._model = model

    async def call(self, node: str, prompt: str, *, after: tuple[str, ...] = (), final: bool = False) -> str:
        """One call of it. `final`: no other will come."""
        headers = {"x-workflow-id": self.id, "x-workflow-node": node}
        if after:
            headers["x-workflow-after"] = ",".join(after)
        if final:
            headers["x-workflow-final"] = "true"
        answer = await self._client.chat.completions.create(
            model=self._model,
            messages=[{"role": "user", "content": prompt}],
            max_tokens=64,
            extra_headers=headers,
        )
        return answer.choices[0].message.content or ""


async def essay(client: AsyncOpenAI, model: str, subject: str) -> str:
    """Write it; returns the workflow's id."""
    workflow = Workflow(client, model)
    plan = await workflow.call("plan", f"Plan a short essay about {subject} in two parts.")
    opening, ending = await asyncio.gather(
        workflow.call("opening", f"Write the first part of this plan.\n\n{plan}", after=("plan",)),
        workflow.call("ending", f"Write the second part of this plan.\n\n{plan}", after=("plan",)),
    )
    review = await workflow.call(
        "review",
        f"Review this essay in two sentences.\n\n{opening}\n\n{ending}",
        after=("opening", "ending"),
        final=True,
    )
    print(f"{opening}\n\n{ending}\n\n--- review ---\n{review}\n")
    return workflow.id


async def main() -> None:
    parser = argparse.ArgumentParser(description="write a short essay as a workflow of four calls")
    parser.add_argument("url", nargs="?", default=URL, help=f"of the gateway (default: {URL})")
    parser.add_argument("--model", help="default: the first that the gateway serves")
    parser.add_argument("--key", default=KEY, help="an API key of the gateway, if it has any")
    options = parser.parse_args()
    async with AsyncOpenAI(base_url=f"{options.url.rstrip('/')}/v1", api_key=options.key) as client:
        model = options.model or (await client.models.list()).data[0].id
        workflow_id = await essay(client, model, "a lighthouse at the end of winter")
        graph: Any = await client.get(f"/workflows/{workflow_id}", cast_to=object)
    print(f"--- workflow {workflow_id}, as the gateway saw it ---")
    for node in graph["nodes"]:
        before = [edge["from"] for edge in graph["edges"] if edge["to"] == node["id"]]
        tokens = f"{node['prompt_tokens']} + {node['output_tokens']} tokens"
        print(f"{node['id']:<8} after {', '.join(before) or '-':<16} {node['state']}, {tokens}")


if __name__ == "__main__":
    asyncio.run(main())
