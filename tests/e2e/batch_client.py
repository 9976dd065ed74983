"""What the tests of batches stand on: the batch API of a running gateway, as one client sees it, and a clock."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

from proxy.batches.config import BatchesConfig
from proxy.batches.door import BatchDoor, register
from proxy.own.router import Router
from tests.e2e.harness import Answer, RunningGateway, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.e2e.harness import EngineRequest

URL = "/v1/chat/completions"
DAY = 86_400.0


class Clock:
    """The time as batches see it."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class Api:
    """The batch API of one gateway, as the client of one key sees it."""

    def __init__(self, running: RunningGateway, door: BatchDoor, clock: Clock, key: str = "") -> None:
        self.running, self.door, self.clock = running, door, clock
        self.headers = f"authorization: Bearer {key}\r\n" if key else ""

    def with_key(self, key: str) -> Api:
        """The same door for another client."""
        return Api(self.running, self.door, self.clock, key)

    async def send(self, method: str, path: str, body: bytes = b"", kind: str = "application/json") -> Answer:
        head = f"{method} {path} HTTP/1.1\r\nhost: gateway\r\n{self.headers}content-type: {kind}\r\n"
        return await self.running.request(head.encode() + b"content-length: %d\r\n\r\n" % len(body) + body)

    async def get(self, path: str) -> Any:
        answer = await self.send("GET", path)
        assert answer.status == 200, answer.body
        return answer.json

    async def upload(self, data: bytes, **fields: str) -> Answer:
        boundary = "----b0undary"
        parts = (
            [f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n']
            if ("purpose" not in fields)
            else []
        )
        parts += [
            f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
            for name, value in fields.items()
        ]
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="in.jsonl"\r\n\r\n'
        body = "".join(parts).encode() + head.encode() + data + f"\r\n--{boundary}--\r\n".encode()
        return await self.send("POST", "/v1/files", body, f"multipart/form-data; boundary={boundary}")

    async def create(self, file_id: str, **more: Any) -> Answer:
        order = {"input_file_id": file_id, "endpoint": URL, "completion_window": "24h", **more}
        return await self.send("POST", "/v1/batches", json.dumps(order).encode())

    async def begin(self, data: bytes, **more: Any) -> str:
        file = (await self.upload(data)).json
        answer = await self.create(file["id"], **more)
        assert answer.status == 200, answer.body
        assert answer.json["status"] in ("validating", "in_progress")
        return str(answer.json["id"])

    async def ended(self, batch_id: str, status: str) -> Any:
        """Wait for a batch's end."""
        await until(lambda: not self.door.work.table.unfinished(), "the batch's end")
        batch = await self.get(f"/v1/batches/{batch_id}")
        assert batch["status"] == status, batch
        return batch

    async def lines(self, file_id: str | None) -> list[dict[str, Any]]:
        """The lines of a file of results."""
        if file_id is None:
            return []
        answer = await self.send("GET", f"/v1/files/{file_id}/content")
        assert answer.status == 200 and answer.complete
        return [json.loads(line) for line in answer.body.splitlines()]


@contextlib.asynccontextmanager
async def door(
    running: RunningGateway, state_dir: Path | None = None, clock: Clock | None = None, key: str = "", **config: Any
) -> AsyncIterator[Api]:
    """The batch API on a router of its own, started; closed at the end as at a shutdown."""
    clock = clock or Clock()
    running.app.gateway.router = Router(running.app.gateway.faults)
    opened = register(running.app.gateway.router, running.app.gateway, BatchesConfig(**config), state_dir, clock=clock)
    await opened.start()
    try:
        yield Api(running, opened, clock, key)
    finally:
        await opened.close()
        assert opened.counters().lines_in_flight == 0


def line(custom_id: str, **more: Any) -> dict[str, Any]:
    """A good line."""
    body = {"model": "m", "messages": [{"role": "user", "content": custom_id}], **more.pop("body", {})}
    return {"custom_id": custom_id, "method": "POST", "url": URL, "body": body, **more}


def jsonl(*lines: dict[str, Any]) -> bytes:
    """Lines as a file."""
    return b"".join(json.dumps(value).encode() + b"\n" for value in lines)


def asked(request: EngineRequest) -> str:
    """The custom_id that a request of `line` is about."""
    return str(request.json["messages"][0]["content"])


async def echo(request: EngineRequest) -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}}
    await request.answer(json.dumps({"id": "x", "said": asked(request), "usage": usage}).encode())


async def waits(request: EngineRequest) -> None:
    await request.gone.wait()
