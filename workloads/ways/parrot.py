"""How is a workflow said in Parrot's HTTP API? A session, a semantic call for each node, then asking for the last ones.

Nothing runs before somebody asks for what it writes: so the gateway knows the whole graph before its first call. The
client is told contents and nothing else: neither tokens nor when a call between began and ended.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from workloads.played import PlayedCall, PlayedWorkflow
from workloads.prompts import PLAIN, prompt_of, quoted
from workloads.ways.line import no_answer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from workloads.played import Arrival
    from workloads.prompts import Manner
    from workloads.shapes import CallShape
    from workloads.ways.line import Line, Reply

ANSWER = "answer"
"""The output's name in every template."""


class _Refused(Exception):
    """A request was not answered as asked: what became of its call."""

    def __init__(self, call: PlayedCall) -> None:
        super().__init__(call.error)
        self.call = call


async def play_parrot(line: Line, arrival: Arrival, intended_at: float) -> PlayedWorkflow:
    """Say all calls, ask for the variables that no call reads, then read the others. Parrot knows no deadlines."""
    return await _Session(line, arrival, intended_at).play()


class _Session:
    """One workflow under way."""

    def __init__(self, line: Line, arrival: Arrival, intended_at: float) -> None:
        self._line = line
        self._workflow = arrival.workflow
        self._intended_at = intended_at
        self._id: int | None = None
        self._workflow_id = ""
        self._variables: dict[str, str] = {}
        """By node, the id of what it writes."""
        self._calls: list[PlayedCall] = []

    async def play(self) -> PlayedWorkflow:
        try:
            return await self._play()
        except asyncio.CancelledError:
            self._line.cut_off(self._played())
            raise

    async def _play(self) -> PlayedWorkflow:
        calls = self._workflow.calls
        try:
            await self._begin()
            for call in calls:
                await self._submit(call)
        except _Refused as refused:
            self._over(refused.call)
        else:
            read = {node for call in calls for node in quoted(call)}
            for nodes in ([call.node for call in calls if call.node not in read], sorted(read)):
                async with asyncio.TaskGroup() as group:
                    for node in nodes:
                        group.create_task(self._read(node))
        if self._id is not None:
            await self._line.ask("DELETE", f"/v1/session/{self._id}", {})
        return self._played()

    def _played(self) -> PlayedWorkflow:
        finished_at = max((call.answered_at for call in self._calls), default=self._intended_at)
        return PlayedWorkflow(self._workflow, self._intended_at, finished_at, tuple(self._calls), self._workflow_id)

    async def _begin(self) -> None:
        body = {"api_key": self._line.api_key or ""}
        reply = await self._asked(self._workflow.calls[0].node, "/v1/session", body, "session_id")
        self._id, self._workflow_id = reply.document["session_id"], reply.workflow_id

    async def _submit(self, call: CallShape) -> None:
        body = semantic_call(self._id, call, self._variables, self._line.model, self._line.manner)
        reply = await self._asked(call.node, "/v1/semantic_call", body, "param_info")
        for info in reply.document["param_info"]:
            if info["is_output"]:
                self._variables[call.node] = info["var_id"]

    async def _read(self, node: str) -> None:
        """Wait for what a node writes. One that is read by others has run when they have: asking adds nothing."""
        body = {"session_id": self._id, "criteria": "latency"}
        reply = await self._line.ask("GET", f"/v1/semantic_var/{self._variables[node]}", body)
        self._over(PlayedCall(node, self._intended_at, reply.sent_at, reply.answered_at, reply.status, reply.error))

    async def _asked(self, node: str, path: str, body: dict[str, Any], member: str) -> Reply:
        """An answer that has this member. _Refused if it is none."""
        reply = await self._line.ask("POST", path, body)
        error = reply.error
        if not error and not (isinstance(reply.document, dict) and member in reply.document):
            error = no_answer(KeyError(member), reply.document)
        if error:
            times = self._intended_at, reply.sent_at, reply.answered_at
            raise _Refused(PlayedCall(node, *times, reply.status, error))
        return reply

    def _over(self, call: PlayedCall) -> None:
        self._calls.append(call)
        self._line.told(call)


def semantic_call(
    session_id: int | None, call: CallShape, variables: Mapping[str, str], model: str, manner: Manner = PLAIN
) -> dict[str, Any]:
    """The body of POST /v1/semantic_call. ValueError for a call that waits for one that it does not quote: in Parrot's
    API variables are all that joins calls."""
    sources = quoted(call)
    if unsaid := set(call.after) - set(sources):
        raise ValueError(
            f"{call.node} waits for {', '.join(sorted(unsaid))} without quoting it: Parrot cannot say that"
        )
    names = {node: f"input_{number}" for number, node in enumerate(sources)}
    inputs = [{"name": names[node], "is_output": False, "var_id": variables[node]} for node in sources]
    config = {"temperature": 0, **manner.sampling, "max_gen_length": call.output_tokens}
    if not manner.free_running:
        config["ignore_tokenizer_eos"] = True
    return {
        "session_id": session_id,
        "func_name": call.node,
        "template": prompt_of(call, lambda node: f"{{{{{names[node]}}}}}", manner) + f"{{{{{ANSWER}}}}}",
        "parameters": [*inputs, {"name": ANSWER, "is_output": True, "sampling_config": config}],
        "models": [model],
    }
