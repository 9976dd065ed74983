"""How does a client play a workflow call by call? Each is sent when those it waits for are answered."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from workloads.played import PlayedCall, PlayedWorkflow
from workloads.prompts import chat_body, prompt_of
from workloads.ways.line import no_answer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from workloads.shapes import CallShape, WorkflowShape
    from workloads.ways.line import Line


async def play_hinted(line: Line, workflow: WorkflowShape, intended_at: float) -> PlayedWorkflow:
    """Each call says which it is and what it comes after."""
    return await _Play(line, workflow, hints=True).play(intended_at)


async def play_bare(line: Line, workflow: WorkflowShape, intended_at: float) -> PlayedWorkflow:
    """No call says anything of a workflow."""
    return await _Play(line, workflow, hints=False).play(intended_at)


class _Play:
    """One workflow under way."""

    def __init__(self, line: Line, workflow: WorkflowShape, *, hints: bool) -> None:
        self._line = line
        self._workflow = workflow
        self._hints = hints
        self._answers: dict[str, str] = {}
        self._calls: list[PlayedCall] = []
        self._sent: set[str] = set()
        self._workflow_id = ""

    async def play(self, intended_at: float) -> PlayedWorkflow:
        async with asyncio.TaskGroup() as group:
            self._send_ready(group, intended_at)
        finished_at = max(call.answered_at for call in self._calls)
        return PlayedWorkflow(self._workflow, intended_at, finished_at, tuple(self._calls), self._workflow_id)

    def _send_ready(self, group: asyncio.TaskGroup, since: float) -> None:
        for call in self._workflow.calls:
            if call.node not in self._sent and all(node in self._answers for node in call.after):
                self._sent.add(call.node)
                group.create_task(self._one(group, call, since))

    async def _one(self, group: asyncio.TaskGroup, call: CallShape, since: float) -> None:
        headers, body = request_of(self._workflow.id, call, self._answers, self._line.model, self._line.sampling)
        reply = await self._line.ask("POST", "/v1/chat/completions", body, headers if self._hints else None)
        text, tokens, error = "", (0, 0, 0), reply.error
        if not error:
            try:
                text, tokens = read_answer(reply.document)
            except (KeyError, IndexError, TypeError, AttributeError) as fault:
                error = no_answer(fault, reply.document)
        self._workflow_id = self._workflow_id or reply.workflow_id
        played = PlayedCall(call.node, since, reply.sent_at, reply.answered_at, reply.status, error, *tokens)
        self._calls.append(played)
        self._line.told(played)
        if played.good:
            self._answers[call.node] = text
            self._send_ready(group, played.answered_at)


def request_of(
    workflow_id: str,
    call: CallShape,
    answers: Mapping[str, str],
    model: str,
    sampling: Mapping[str, float] | None = None,
) -> tuple[dict[str, str], dict[str, Any]]:
    """Headers and body of a call, with the earlier answers that it quotes."""
    headers = {"x-workflow-id": workflow_id, "x-workflow-node": call.node}
    if call.after:
        headers["x-workflow-after"] = ",".join(call.after)
    return headers, chat_body(model, prompt_of(call, answers.__getitem__), call.output_tokens, sampling or {})


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
