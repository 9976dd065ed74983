"""What does every way speak over? One client: an address, a model, a key, and a limit of requests under way."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from workloads.played import PlayedCall

ERROR_CHARACTERS = 300


class Reply(NamedTuple):
    """What came back. `status` 0: nothing did; `error` is empty for a good one."""

    sent_at: float
    answered_at: float
    status: int
    document: Any
    error: str
    workflow_id: str
    """As its header says."""


class Line:
    """One client's requests."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        model: str,
        api_key: str | None,
        concurrency: int,
        sampling: Mapping[str, float],
        on_call: Callable[[PlayedCall], None] | None = None,
    ) -> None:
        self.model = model
        self.sampling = sampling
        self.api_key = api_key
        self.running = 0
        """Requests under way."""
        self._session = session
        self._on_call = on_call
        self._url = url
        self._headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
        self._places = asyncio.Semaphore(concurrency)

    def told(self, call: PlayedCall) -> None:
        """To be told of each call that is over."""
        if self._on_call is not None:
            self._on_call(call)

    async def ask(self, method: str, path: str, body: Any, headers: Mapping[str, str] | None = None) -> Reply:
        """One request with a body in JSON, sent when there is a place for it. Nothing but being cancelled raises."""
        clock = asyncio.get_running_loop().time
        status, document, error, workflow_id = 0, None, "", ""
        async with self._places:
            self.running += 1
            sent_at = clock()
            try:
                async with self._session.request(
                    method, self._url + path, json=body, headers={**self._headers, **(headers or {})}
                ) as response:
                    status, workflow_id = response.status, response.headers.get("x-workflow-id", "")
                    if 200 <= status < 300:
                        document = await response.json()
                    else:
                        error = f"{status}: {(await response.text())[:ERROR_CHARACTERS]}"
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as fault:
                error = f"{type(fault).__name__}: {fault}"[:ERROR_CHARACTERS]
            finally:
                self.running -= 1
            return Reply(sent_at, clock(), status, document, error, workflow_id)


def no_answer(fault: Exception, document: Any) -> str:
    """The words for an answer that is not what was asked for."""
    return f"not an answer: {fault!r} in {document!r}"[:ERROR_CHARACTERS]
