"""How does a client play a workflow call by call? Each is sent when those it waits for are answered."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, Any

from workloads.played import Arrival, PlayedCall, PlayedWorkflow, Tokens
from workloads.prompts import PLAIN, Manner, chat_body, prompt_of
from workloads.ways.line import no_answer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from workloads.shapes import CallShape
    from workloads.ways.line import Line, Reply


async def play_hinted(line: Line, arrival: Arrival, intended_at: float) -> PlayedWorkflow:
    """Each call says which it is and what it comes after."""
    return await _Play(line, arrival, hints=True).play(intended_at)


async def play_bare(line: Line, arrival: Arrival, intended_at: float) -> PlayedWorkflow:
    """No call says anything of a workflow."""
    return await _Play(line, arrival, hints=False).play(intended_at)


class _Play:
    """One workflow under way."""

    def __init__(self, line: Line, arrival: Arrival, *, hints: bool) -> None:
        self._line = line
        self._arrival = arrival
        self._hints = hints
        self._answers: dict[str, str] = {}
        self._calls: list[PlayedCall] = []
        self._waits = {call.node: len(call.after) for call in arrival.workflow.calls}
        self._workflow_id = ""
        self._unsent = len(arrival.workflow.calls)

    async def play(self, intended_at: float) -> PlayedWorkflow:
        try:
            async with asyncio.TaskGroup() as group:
                for call in self._arrival.workflow.calls:
                    if not call.after:
                        group.create_task(self._one(group, call, intended_at))
        except asyncio.CancelledError:
            self._line.cut_off(self._played(intended_at))
            raise
        return self._played(intended_at)

    def _played(self, intended_at: float) -> PlayedWorkflow:
        finished_at = max((call.answered_at for call in self._calls), default=intended_at)
        return PlayedWorkflow(self._arrival.workflow, intended_at, finished_at, tuple(self._calls), self._workflow_id)

    async def _one(self, group: asyncio.TaskGroup, call: CallShape, since: float) -> None:
        line = self._line
        if call.pause_seconds > 0:
            since += call.pause_seconds
            await asyncio.sleep(since - monotonic())
        self._unsent -= 1
        last = not self._unsent
        headers, body = request_of(self._arrival, call, self._answers, line.model, line.manner, last=last)
        if not self._hints:
            headers = {}
        elif line.manner.tell_lengths:
            headers, body["workflow"] = {}, _told(self._arrival, call, line.manner.tag, last=last)
        reply = await line.ask("POST", "/v1/chat/completions", body, headers, streamed=line.manner.streamed)
        text, tokens, error = "", Tokens(), reply.error
        if not error:
            try:
                text, tokens = read_answer(reply.document)
            except (KeyError, IndexError, TypeError, AttributeError, ValueError) as fault:
                error = no_answer(fault, reply.document)
        self._workflow_id = self._workflow_id or reply.workflow_id
        played = played_call(call.node, since, reply, error, tokens)
        self._calls.append(played)
        line.told(played)
        if played.good:
            self._answers[call.node] = text
            for child in self._arrival.workflow.calls:
                if call.node in child.after:
                    self._waits[child.node] -= 1
                    if not self._waits[child.node]:
                        group.create_task(self._one(group, child, played.answered_at))


def played_call(node: str, since: float, reply: Reply, error: str, tokens: Tokens) -> PlayedCall:
    """With what the answer's head and usage say of holding and of joules."""
    usage = reply.document.get("usage") if isinstance(reply.document, dict) else None
    joules, source = reply.energy
    if isinstance(usage, dict) and usage.get("energy_source") is not None:
        joules, source = usage.get("energy_joules"), str(usage["energy_source"])
    return PlayedCall(
        node, since, reply.sent_at, reply.answered_at, reply.status, error, *tokens,
        first_token_at=reply.first_token_at, held_seconds=reply.held_seconds, engine=reply.engine,
        energy_joules=joules, energy_source=source,
    )  # fmt: skip


def request_of(
    arrival: Arrival,
    call: CallShape,
    answers: Mapping[str, str],
    model: str,
    manner: Manner = PLAIN,
    *,
    last: bool = False,
) -> tuple[dict[str, str], dict[str, Any]]:
    """Headers and body of a call, with the earlier answers that it quotes. `last`: none of its workflow comes after."""
    body = chat_body(model, prompt_of(call, answers.__getitem__, manner), call.output_tokens, manner)
    if manner.streamed:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return _hints(arrival, call, manner.tag, last=last), body


def _hints(arrival: Arrival, call: CallShape, tag: str, *, last: bool) -> dict[str, str]:
    """As headers."""
    headers = {"x-workflow-id": tag + arrival.workflow.id, "x-workflow-node": call.node}
    if last:
        headers["x-workflow-final"] = "true"
    if call.after:
        headers["x-workflow-after"] = ",".join(call.after)
    if arrival.deadline_seconds is not None:
        headers["x-workflow-deadline-ms"] = f"{arrival.deadline_seconds * 1e3:.3f}"
    if arrival.workflow_class is not None:
        headers["x-workflow-class"] = arrival.workflow_class
    return headers


def _told(arrival: Arrival, call: CallShape, tag: str, *, last: bool) -> dict[str, Any]:
    """As the body's `workflow`, which says the length as well and takes the headers' place."""
    said: dict[str, Any] = {"id": tag + arrival.workflow.id, "node": call.node, "after": list(call.after)}
    if arrival.deadline_seconds is not None:
        said["deadline_ms"] = arrival.deadline_seconds * 1e3
    if arrival.workflow_class is not None:
        said["class"] = arrival.workflow_class
    if last:
        said["final"] = True
    return said | {"expected_output_tokens": call.output_tokens}


def read_answer(document: Any) -> tuple[str, Tokens]:
    """Text and tokens. KeyError and the like for what is no chat completion."""
    text = document["choices"][0]["message"]["content"]
    if not isinstance(text, str):
        raise TypeError("content is no text")
    usage = document.get("usage") or {}
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
    return text, Tokens(*map(_count, (usage.get("prompt_tokens"), cached, usage.get("completion_tokens"))))


def _count(value: Any) -> int | None:
    return None if value is None else int(value)
