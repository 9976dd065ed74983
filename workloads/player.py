"""How does a client play workflows over HTTP? Each call is sent when those it waits for are answered.

It speaks to any OpenAI-compatible address: a gateway, an engine, the twin. Times are the event loop's, in seconds.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp

from workloads.text import prose

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from workloads.shapes import CallShape, WorkflowShape

TIMEOUT_SECONDS = 600.0
ERROR_CHARACTERS = 300


class Arrival(NamedTuple):
    """A workflow that begins so many seconds after the play did."""

    seconds: float
    workflow: WorkflowShape


class PlayedCall(NamedTuple):
    """What became of one call. `status` 0: no answer; `error` is empty for a good one."""

    node: str
    intended_at: float
    """When what it waits for was there: sent later than that, it waited for a place among `concurrency`."""
    sent_at: float
    answered_at: float
    status: int
    error: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    """As the engine counts; 0 where it did not say."""

    @property
    def good(self) -> bool:
        """Was it answered?"""
        return not self.error


class PlayedWorkflow(NamedTuple):
    """A workflow that is over: all its calls answered, or some failed and those behind them never sent."""

    workflow: WorkflowShape
    intended_at: float
    finished_at: float
    calls: tuple[PlayedCall, ...]

    @property
    def complete(self) -> bool:
        """Was every call of it answered?"""
        return len(self.calls) == len(self.workflow.calls) and all(call.good for call in self.calls)

    @property
    def seconds(self) -> float:
        """From when it should have begun to its last answer."""
        return self.finished_at - self.intended_at


class Player:
    """A client with at most `concurrency` calls under way; `on_call` hears of each that is over."""

    def __init__(
        self,
        url: str,
        model: str,
        *,
        concurrency: int = 256,
        timeout_seconds: float = TIMEOUT_SECONDS,
        on_call: Callable[[PlayedCall], None] | None = None,
    ) -> None:
        self._url = f"{url}/v1/chat/completions"
        self._model = model
        self._places = asyncio.Semaphore(concurrency)
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        self._on_call = on_call
        self.running = 0
        """Calls under way."""

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
            for arrival in arrivals:
                intended_at = began + arrival.seconds
                await asyncio.sleep(intended_at - loop.time())
                tasks.append(group.create_task(self._workflow(session, intended_at, arrival.workflow)))
        return [task.result() for task in tasks]

    async def _workflow(
        self, session: aiohttp.ClientSession, intended_at: float, workflow: WorkflowShape
    ) -> PlayedWorkflow:
        answers: dict[str, str] = {}
        calls: list[PlayedCall] = []
        sent: set[str] = set()

        async with asyncio.TaskGroup() as group:

            def send_ready(since: float) -> None:
                for call in workflow.calls:
                    if call.node not in sent and all(node in answers for node in call.after):
                        sent.add(call.node)
                        group.create_task(one(call, since))

            async def one(call: CallShape, since: float) -> None:
                played, answer = await self._call(session, workflow.id, call, answers, since)
                calls.append(played)
                if self._on_call is not None:
                    self._on_call(played)
                if played.good:
                    answers[call.node] = answer
                    send_ready(played.answered_at)

            send_ready(intended_at)
        finished_at = max(call.answered_at for call in calls)
        return PlayedWorkflow(workflow, intended_at, finished_at, tuple(calls))

    async def _call(
        self,
        session: aiohttp.ClientSession,
        workflow_id: str,
        call: CallShape,
        answers: Mapping[str, str],
        intended_at: float,
    ) -> tuple[PlayedCall, str]:
        """What became of it, and its answer. Only being cancelled ends it otherwise."""
        clock = asyncio.get_running_loop().time
        headers, body = request_of(workflow_id, call, answers, self._model)
        status, document, error = 0, None, ""
        async with self._places:
            self.running += 1
            sent_at = clock()
            try:
                async with session.post(self._url, json=body, headers=headers) as response:
                    status = response.status
                    if status == 200:
                        document = await response.json()
                    else:
                        error = f"{status}: {(await response.text())[:ERROR_CHARACTERS]}"
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as fault:
                error = f"{type(fault).__name__}: {fault}"[:ERROR_CHARACTERS]
            finally:
                self.running -= 1
            answered_at = clock()
        text, tokens = "", (0, 0, 0)
        if not error:
            try:
                text, tokens = read_answer(document)
            except (KeyError, IndexError, TypeError, AttributeError) as fault:
                error = f"not an answer: {fault!r} in {document!r}"[:ERROR_CHARACTERS]
        return PlayedCall(call.node, intended_at, sent_at, answered_at, status, error, *tokens), text


def request_of(
    workflow_id: str, call: CallShape, answers: Mapping[str, str], model: str
) -> tuple[dict[str, str], dict[str, Any]]:
    """Headers and body of a call: its parts as paragraphs of one message, earlier answers word for word.

    `ignore_eos` is vLLM's: answers as long as the workload says, so that two plays of it are comparable.
    """
    headers = {"x-workflow-id": workflow_id, "x-workflow-node": call.node}
    if call.after:
        headers["x-workflow-after"] = ",".join(call.after)
    parts = [
        prose(part.text, part.tokens) if part.output_of is None else answers[part.output_of] for part in call.prompt
    ]
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "\n\n".join(parts)}],
        "max_tokens": call.output_tokens,
        "ignore_eos": True,
        "temperature": 0,
    }
    return headers, body


def read_answer(document: Any) -> tuple[str, tuple[int, int, int]]:
    """Text, and the tokens of prompt, cache and output. KeyError and the like for what is no chat completion."""
    text = document["choices"][0]["message"]["content"]
    if not isinstance(text, str):
        raise TypeError("content is no text")
    usage = document.get("usage") or {}
    details = usage.get("prompt_tokens_details") or {}
    return text, (
        int(usage.get("prompt_tokens") or 0),
        int(details.get("cached_tokens") or 0),
        int(usage.get("completion_tokens") or 0),
    )


def failures(workflows: Sequence[PlayedWorkflow]) -> list[PlayedCall]:
    """The calls that failed."""
    return [call for workflow in workflows for call in workflow.calls if not call.good]
