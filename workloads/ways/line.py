"""What does every way speak over? One client: an address, a model, a key, and a limit of requests under way."""

from __future__ import annotations

import asyncio
import re
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp

from workloads.ways.sse import StreamFault, read_stream

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from workloads.played import PlayedCall, PlayedWorkflow
    from workloads.prompts import Manner

ERROR_CHARACTERS = 300
_DECISION = re.compile(r"engine=(?P<engine>[^;]+)(?:; held_ms=(?P<held>[0-9.]+))?")


class Reply(NamedTuple):
    """What came back. `status` 0: nothing did; `error` is empty for a good one."""

    sent_at: float
    answered_at: float
    status: int
    document: Any
    error: str
    workflow_id: str
    """As its header says."""
    first_token_at: float | None = None
    held_seconds: float | None = None
    engine: str | None = None
    energy: tuple[float | None, str | None] = (None, None)
    """Joules and their source, as its headers say."""


class Line:
    """One client's requests."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        model: str,
        api_key: str | None,
        concurrency: int,
        manner: Manner,
        on_call: Callable[[PlayedCall], None] | None = None,
    ) -> None:
        self.model = model
        self.manner = manner
        self.api_key = api_key
        self.running = 0
        """Requests under way."""
        self.broken_off: list[PlayedWorkflow] = []
        """What there is of workflows that were cancelled."""
        self._session = session
        self._on_call = on_call
        self._url = url
        self._headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
        self._places = asyncio.Semaphore(concurrency)

    def told(self, call: PlayedCall) -> None:
        """To be told of each call that is over."""
        if self._on_call is not None:
            self._on_call(call)

    def cut_off(self, workflow: PlayedWorkflow) -> None:
        """To be told of a workflow that is cancelled."""
        self.broken_off.append(workflow)

    async def ask(
        self, method: str, path: str, body: Any, headers: Mapping[str, str] | None = None, *, streamed: bool = False
    ) -> Reply:
        """One request with a body in JSON, sent when there is a place for it. Nothing but being cancelled raises.

        `streamed`: the answer comes as events; its document is the same as if it had not.
        """
        clock = monotonic
        status, document, error, first_at = 0, None, "", None
        heads: Mapping[str, str] = {}
        async with self._places:
            self.running += 1
            sent_at = clock()
            try:
                async with self._session.request(
                    method, self._url + path, json=body, headers={**self._headers, **(headers or {})}
                ) as response:
                    status, heads = response.status, response.headers
                    if not 200 <= status < 300:
                        error = f"{status}: {(await response.text())[:ERROR_CHARACTERS]}"
                    elif streamed:
                        document, first_at = await read_stream(response.content, clock)
                    else:
                        document = await response.json()
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError, StreamFault) as fault:
                error = f"{type(fault).__name__}: {fault}"[:ERROR_CHARACTERS]
            finally:
                self.running -= 1
            workflow_id = heads.get("x-workflow-id", "")
            return Reply(sent_at, clock(), status, document, error, workflow_id, first_at, *_said(heads))


def _said(heads: Mapping[str, str]) -> tuple[float | None, str | None, tuple[float | None, str | None]]:
    """What a gateway says of a call: seconds held, engine, joules with their source."""
    decision = _DECISION.search(heads.get("x-joulegate-decision", ""))
    held = engine = None
    if decision is not None:
        engine = decision["engine"]
        held = None if decision["held"] is None else float(decision["held"]) / 1e3
    joules = heads.get("x-energy-joules")
    return held, engine, (None if joules is None else float(joules), heads.get("x-energy-source"))


def no_answer(fault: Exception, document: Any) -> str:
    """The words for an answer that is not what was asked for."""
    return f"not an answer: {fault!r} in {document!r}"[:ERROR_CHARACTERS]
