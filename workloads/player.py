"""How does a client play workflows over HTTP? Each begins at its time, and goes in by one of the ways.

It speaks to any OpenAI-compatible address call by call (a gateway, an engine, the twin), and to a gateway in the other
ways too. Times are the monotonic clock's, in seconds (uvloop's own clock has whole milliseconds).
"""

from __future__ import annotations

import asyncio
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING

import aiohttp

from workloads.played import Arrival, PlayedCall, PlayedWorkflow, failures
from workloads.prompts import PLAIN, Manner
from workloads.ways import WAYS
from workloads.ways.calls import read_answer, request_of
from workloads.ways.line import Line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

TIMEOUT_SECONDS = 600.0
KEEP_SECONDS = 2.0
"""Idle connections are closed before vLLM's server does so (after 5 s): one closed just as it is used is a failure."""

__all__ = ["Arrival", "PlayedCall", "PlayedWorkflow", "Player", "failures", "read_answer", "request_of"]


class Player:
    """A client with at most `concurrency` requests under way; `on_call` hears of each call that is over.

    `way`: one of WAYS. Of a workflow that goes in whole, the calls are told at its end.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        way: str = "hinted",
        api_key: str | None = None,
        manner: Manner = PLAIN,
        concurrency: int = 256,
        timeout_seconds: float = TIMEOUT_SECONDS,
        on_call: Callable[[PlayedCall], None] | None = None,
        on_workflow: Callable[[PlayedWorkflow], None] | None = None,
    ) -> None:
        """KeyError for a way that there is not."""
        self._url = url
        self._model = model
        self._way = WAYS[way]
        self._api_key = api_key
        self._manner = manner
        self._concurrency = concurrency
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        self._on_call = on_call
        self._on_workflow = on_workflow
        self._line: Line | None = None
        self._played: list[PlayedWorkflow] = []

    @property
    def running(self) -> int:
        """Requests under way."""
        return 0 if self._line is None else self._line.running

    @property
    def played(self) -> list[PlayedWorkflow]:
        """What is over by now, in the order of the ends; after a cancelled play, what there is of the others too."""
        return [*self._played, *(self._line.broken_off if self._line is not None else ())]

    async def play(
        self, arrivals: Iterable[Arrival], *, users: int | None = None, think_seconds: float = 0.0
    ) -> list[PlayedWorkflow]:
        """Play them all; returns when the last is over, in the order of the arrivals.

        Each begins at its time; or with `users`, so many of them take one after the other, and pause between two.
        """
        self._played = []
        # No limit of its own, which would hide a wait: `concurrency` is the limit.
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_SECONDS)
        async with aiohttp.ClientSession(connector=connector, timeout=self._timeout) as session:
            self._line = Line(
                session, self._url, self._model, self._api_key, self._concurrency, self._manner, self._on_call
            )
            if users is None:
                return await self._open(arrivals, self._line)
            return await self._closed(arrivals, self._line, users, think_seconds)

    async def _open(self, arrivals: Iterable[Arrival], line: Line) -> list[PlayedWorkflow]:
        began = monotonic()
        tasks: list[asyncio.Task[PlayedWorkflow]] = []
        async with asyncio.TaskGroup() as group:
            for arrival in arrivals:
                intended_at = began + arrival.seconds
                # Behind time, the others have their turn all the same.
                await asyncio.sleep(max(0.0, intended_at - monotonic()))
                tasks.append(group.create_task(self._one(line, arrival, intended_at)))
        return [task.result() for task in tasks]

    async def _closed(
        self, arrivals: Iterable[Arrival], line: Line, users: int, think_seconds: float
    ) -> list[PlayedWorkflow]:
        todo = deque(enumerate(arrivals))
        done: dict[int, PlayedWorkflow] = {}

        async def user() -> None:
            at = monotonic()
            while todo:
                number, arrival = todo.popleft()
                done[number] = played = await self._one(line, arrival, at)
                at = played.finished_at + think_seconds
                await asyncio.sleep(at - monotonic())

        async with asyncio.TaskGroup() as group:
            for _ in range(users):
                group.create_task(user())
        return [done[number] for number in sorted(done)]

    async def _one(self, line: Line, arrival: Arrival, intended_at: float) -> PlayedWorkflow:
        played = await self._way(line, arrival, intended_at)
        self._played.append(played)
        if self._on_workflow is not None:
            self._on_workflow(played)
        return played
