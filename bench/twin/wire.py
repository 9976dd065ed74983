"""Calls to a real engine over HTTP, with the times that its client sees and as little of the client's own as can be."""

from __future__ import annotations

import asyncio
import json
import random
from array import array
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import aiohttp

from bench.programs import BenchError
from bench.twin.crowd import Answer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import SimpleNamespace

    from workloads.shapes import Part

TOKEN_IDS = (10, 120_000)
TIMEOUT_SECONDS = 300.0
PARTS_KEPT = 16_384


class Heard:
    """What a client sees of one call, in the event loop's time."""

    def __init__(self) -> None:
        self.written_at: float | None = None
        """Its whole body is with the kernel."""
        self.events: list[float] = []
        """When each piece of a streamed answer came; the first is the first token."""
        self.first = asyncio.Event()
        """The first piece is there, or the call has ended."""
        self.ended_at: float | None = None
        self.cached_tokens: int | None = None

    @property
    def answer(self) -> Answer:
        return Answer(self.written_at, self.events[0] if self.events else None, self.cached_tokens)


class Wire:
    """Connections to one engine. `failed` says what went wrong with calls."""

    def __init__(self, session: aiohttp.ClientSession, url: str, model: str) -> None:
        self.session = session
        self.url = url
        self.model = model
        self.loop = asyncio.get_running_loop()
        self.failed: list[str] = []
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    async def open(cls, session: aiohttp.ClientSession, url: str) -> Wire:
        """BenchError if no engine answers there."""
        try:
            async with session.get(f"{url}/v1/models") as answer:
                model = (await answer.json())["data"][0]["id"]
        except (aiohttp.ClientError, KeyError, IndexError) as error:
            raise BenchError(f"--engine {url}: no model to be had: {error!r}") from None
        return cls(session, url, model)

    def start(
        self,
        prompt: Iterable[Part],
        output_tokens: int,
        done: Callable[[Heard], None],
        *,
        stream: bool = False,
        heard: Heard | None = None,
    ) -> asyncio.Task[None]:
        """Send a call now; `done` when its answer is complete. Into `heard` goes what is seen meanwhile."""
        body = self._body(prompt, output_tokens, stream)
        task = self.loop.create_task(self._call(body, stream, done, heard or Heard()))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def ask(self, prompt: Iterable[Part], output_tokens: int, *, stream: bool = False) -> Heard:
        """Send a call and wait for its whole answer."""
        heard: list[Heard] = []
        await self.start(prompt, output_tokens, heard.append, stream=stream)
        return heard[0]

    def _body(self, prompt: Iterable[Part], output_tokens: int, stream: bool) -> bytes:
        options: dict[str, Any] = {"max_tokens": output_tokens, "ignore_eos": True, "temperature": 0}
        if stream:
            options |= {"stream": True, "stream_options": {"include_usage": True}}
        rest = json.dumps({"model": self.model, **options})[1:]
        return b'{"prompt": [' + b",".join(map(ids_of, prompt)) + b"], " + rest.encode()

    async def _call(self, body: bytes, stream: bool, done: Callable[[Heard], None], heard: Heard) -> None:
        for attempt in (1, 2):  # the engine may close a kept connection just as it is used
            heard.events.clear()
            try:
                async with self.session.post(
                    f"{self.url}/v1/completions",
                    data=body,
                    headers={"content-type": "application/json"},
                    trace_request_ctx=heard,
                ) as answer:
                    if answer.status != 200:
                        self.failed.append(f"{answer.status}: {(await answer.text())[:200]}")
                    elif stream:
                        await self._read_stream(answer, heard)
                    else:
                        heard.cached_tokens = _cached((await answer.json()).get("usage"))
                break
            except (aiohttp.ClientError, TimeoutError) as error:
                if attempt == 2:
                    self.failed.append(repr(error))
        heard.ended_at = self.loop.time()
        heard.first.set()
        done(heard)

    async def _read_stream(self, answer: aiohttp.ClientResponse, heard: Heard) -> None:
        async for line in answer.content:
            if not line.startswith(b"data: {"):
                continue
            if b'"choices":[]' in line or b'"choices": []' in line:
                heard.cached_tokens = _cached(json.loads(line[6:]).get("usage"))
            else:
                heard.events.append(self.loop.time())
                heard.first.set()


def _cached(usage: dict[str, Any] | None) -> int | None:
    details = (usage or {}).get("prompt_tokens_details") or {}
    tokens = details.get("cached_tokens")
    return tokens if isinstance(tokens, int) else None


def session() -> aiohttp.ClientSession:
    """A session whose calls tell when they were written."""
    trace = aiohttp.TraceConfig()

    async def written(
        _: aiohttp.ClientSession, context: SimpleNamespace, __: aiohttp.TraceRequestChunkSentParams
    ) -> None:
        heard = context.trace_request_ctx
        if heard is not None:
            heard.written_at = asyncio.get_running_loop().time()

    trace.on_request_chunk_sent.append(written)
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=2)
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
    return aiohttp.ClientSession(connector=connector, timeout=timeout, trace_configs=[trace])


@lru_cache(maxsize=PARTS_KEPT)
def ids_of(part: Part) -> bytes:
    """Token ids as they stand in a body: the same text, the same tokens.

    Kept, because making them while a burst goes out would take longer than sending it.
    """
    low, high = TOKEN_IDS
    numbers = array("I", random.Random(part.text).randbytes(4 * part.tokens))
    return ",".join([str(low + number % (high - low)) for number in numbers]).encode()
