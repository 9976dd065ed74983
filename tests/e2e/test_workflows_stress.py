"""Submitted workflows under everything at once: whatever happens, nothing is left of them, and each ends."""

from __future__ import annotations

import asyncio
import json
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.harness import engine, gateway, post, run, until
from tests.e2e.test_workflows_native import completion, get, node

if TYPE_CHECKING:
    from tests.e2e.harness import EngineRequest, RunningGateway

OVER = {"completed", "failed", "cancelled"}


class Chaos:
    """Seeded clients and an engine that does what it likes."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)

    async def answer(self, request: EngineRequest) -> None:
        kind = self.random.choice(("good", "good", "good", "bad", "full", "dies", "half"))
        stream = request.json.get("stream")
        for _ in range(self.random.randrange(4)):
            await asyncio.sleep(0)
        if kind == "bad":
            await request.answer(b'{"error": {"message": "no"}}', status="400 Bad Request")
        elif kind == "full":
            await request.answer(b'{"error": {"message": "later"}}', status="429 Too Many Requests")
        elif kind == "dies":
            request.writer.transport.abort()
        elif not stream:
            await request.answer(completion("text"))
        else:
            await request.begin_stream()
            chunk = {"choices": [{"index": 0, "delta": {"content": "text"}}]}
            await request.chunk(f"data: {json.dumps(chunk)}\n\n".encode())
            if kind == "half":
                request.writer.transport.abort()
                return
            await request.chunk(b"data: [DONE]\n\n")
            await request.end_stream()

    def body(self, number: int) -> dict[str, Any]:
        random = self.random
        nodes: list[dict[str, Any]] = []
        for at in range(random.randrange(1, 8)):
            before = [item["id"] for item in random.sample(nodes, min(len(nodes), random.randrange(3)))]
            if random.random() < 0.2:
                nodes.append({"id": f"n{at}", "tool": True, "after": before})
            else:
                nodes.append(node(f"n{at}", " ".join(f"{{{{{name}}}}}" for name in before), retry=random.randrange(2)))
        body: dict[str, Any] = {"id": f"w{number}", "nodes": nodes}
        body |= random.choice(({}, {"stream": True}, {"background": True}))
        return body

    async def client(self, running: RunningGateway, number: int) -> None:
        """Submit one; then read, leave, cancel, or give results of tools that may or may not act."""
        random, body = self.random, self.body(number)
        token = f"idempotency-key: k{number}\r\n" if random.random() < 0.3 else ""
        client = await running.connect()
        await client.send(post("/v1/workflows", body, token))
        for _ in range(random.randrange(6)):
            await asyncio.sleep(0)
        if random.random() < 0.3:
            client.abort()
        for item in body["nodes"]:
            if item.get("tool") and random.random() < 0.7:
                await running.post(f"/v1/workflows/w{number}/nodes/{item['id']}", {"output": "done"})
        if random.random() < 0.2:
            await get(running, f"/v1/workflows/w{number}", "DELETE")
        if token and random.random() < 0.5:
            again = await running.connect()
            await again.send(post("/v1/workflows", body, token))
            again.abort()


@pytest.mark.parametrize("seed", range(6))
def test_nothing_is_left(seed: int) -> None:
    async def main() -> None:
        chaos = Chaos(seed)
        limits = {"failures_to_open": 1_000_000}
        async with engine(chaos.answer) as upstream, gateway(upstream, health=limits) as running:
            await asyncio.gather(*[chaos.client(running, number) for number in range(40)])
            table, runner = running.app.own.workflows.table, running.app.own.workflows.runner
            await until(lambda: all(item.waits_for_client for item in table.running), "all that can go on has gone on")
            for item in table.running:
                assert not item.calls and not item.ready
                runner.cancel(item)
            await until(lambda: not running.app.gateway.exchanges, "the calls' end")
            assert (runner.running, runner._running_of_key, bool(runner._turns)) == (0, {}, False)
            assert not running.app.gateway.inner.running
            runs = [table.get("-", f"w{number}") for number in range(40)]
            kept = [item for item in runs if item is not None]
            assert kept and all(item.status in OVER and not item.unfinished for item in kept)
            outputs = [each.output or "" for item in kept for each in item.nodes.values()]
            assert table.held.count == sum(map(len, outputs))
            workflows = running.app.gateway.scheduler.workflows.tables
            assert not workflows.named, "the scheduler was told of each end"
            for client in running.clients:
                client.abort()
            await until(lambda: not any(item.listeners[1:] for item in kept), "nobody listens any more")

    run(main)
