"""How does a client play workflows over HTTP? Each begins at its time, and goes in by one of the ways.

It speaks to any OpenAI-compatible address call by call (a gateway, an engine, the twin), and to a gateway in the other
ways too. Times are the event loop's, in seconds.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

import aiohttp

from workloads.played import PlayedCall, PlayedWorkflow, failures
from workloads.ways import WAYS
from workloads.ways.calls import read_answer, request_of
from workloads.ways.line import Line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from workloads.shapes import WorkflowShape

TIMEOUT_SECONDS = 600.0

__all__ = ["Arrival", "PlayedCall", "PlayedWorkflow", "Player", "failures", "read_answer", "request_of"]


class Arrival(NamedTuple):
    """A workflow that begins so many seconds after the play did."""

    seconds: float
    workflow: WorkflowShape


class Player:
    """A client with at most `concurrency` requests under way; `on_call` hears of each call that is over.

    `way`: one of WAYS. Of a workflow that goes in whole, the calls are told at its end. `sampling`: members of every
    request beside those of the workload, as OpenAI and Parrot both name them: `temperature`, `presence_penalty`, …
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        way: str = "hinted",
        api_key: str | None = None,
        sampling: Mapping[str, float] | None = None,
        concurrency: int = 256,
        timeout_seconds: float = TIMEOUT_SECONDS,
        on_call: Callable[[PlayedCall], None] | None = None,
    ) -> None:
        """KeyError for a way that there is not."""
        self._url = url
        self._model = model
        self._way = WAYS[way]
        self._api_key = api_key
        self._sampling = sampling or {}
        self._concurrency = concurrency
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        self._on_call = on_call
        self._line: Line | None = None

    @property
    def running(self) -> int:
        """Requests under way."""
        return 0 if self._line is None else self._line.running

    async def play(self, arrivals: Iterable[Arrival]) -> list[PlayedWorkflow]:
        """Play them all, in the order of their times; returns when the last is over."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        tasks: list[asyncio.Task[PlayedWorkflow]] = []
        # No limit of its own, which would hide a wait: `concurrency` is the limit.
        connector = aiohttp.TCPConnector(limit=0)
        async with (
            aiohttp.ClientSession(connector=connector, timeout=self._timeout) as session,
            asyncio.TaskGroup() as group,
        ):
            line = Line(
                session, self._url, self._model, self._api_key, self._concurrency, self._sampling, self._on_call
            )
            self._line = line
            for arrival in arrivals:
                intended_at = began + arrival.seconds
                await asyncio.sleep(intended_at - loop.time())
                tasks.append(group.create_task(self._way(line, arrival.workflow, intended_at)))
        return [task.result() for task in tasks]
