"""How is a whole workflow submitted at once? One request; the gateway runs the graph and answers at its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workloads.played import PlayedCall, PlayedWorkflow, Tokens
from workloads.prompts import PLAIN, chat_body, prompt_of
from workloads.ways.line import ERROR_CHARACTERS, no_answer

if TYPE_CHECKING:
    from workloads.played import Arrival
    from workloads.prompts import Manner
    from workloads.ways.line import Line, Reply

NEVER_RUN = ("skipped", "cancelled")
"""What stood behind a failed node."""


async def play_native(line: Line, arrival: Arrival, intended_at: float) -> PlayedWorkflow:
    """Submit it and wait."""
    workflow = arrival.workflow
    reply = await line.ask("POST", "/v1/workflows", submission(arrival, line.model, line.manner))
    error = reply.error
    calls: tuple[PlayedCall, ...] = ()
    if not error:
        try:
            calls = _calls(reply)
        except (KeyError, TypeError, AttributeError) as fault:
            error = no_answer(fault, reply.document)
    if error:  # refused whole: said of the first call, and the others were never sent
        first = workflow.calls[0].node
        calls = (PlayedCall(first, intended_at, reply.sent_at, reply.answered_at, reply.status, error),)
    for call in calls:
        line.told(call)
    return PlayedWorkflow(workflow, intended_at, reply.answered_at, calls, reply.workflow_id)


def submission(arrival: Arrival, model: str, manner: Manner = PLAIN) -> dict[str, Any]:
    """The body of POST /v1/workflows. Where an answer is quoted stands `{{node}}`; prose has no braces of its own."""
    workflow = arrival.workflow
    nodes = [
        {
            "id": call.node,
            "after": list(call.after),
            "request": chat_body(model, prompt_of(call, "{{{{{}}}}}".format, manner), call.output_tokens, manner),
            **({"expected_output_tokens": call.output_tokens} if manner.tell_lengths else {}),
        }
        for call in workflow.calls
    ]
    body: dict[str, Any] = {"id": manner.tag + workflow.id, "name": workflow.kind, "nodes": nodes}
    if arrival.deadline_seconds is not None:
        body["deadline_ms"] = arrival.deadline_seconds * 1e3
    if arrival.workflow_class is not None:
        body["class"] = arrival.workflow_class
    return body


def _calls(reply: Reply) -> tuple[PlayedCall, ...]:
    """What became of each node that was run. KeyError and the like for what is no workflow."""
    nodes = reply.document["nodes"]
    return tuple([_call(node, reply) for node in nodes if node["state"] not in NEVER_RUN])


def _call(node: dict[str, Any], reply: Reply) -> PlayedCall:
    """The gateway tells its times from when the submission came in; here that is when it was sent."""
    times = [node.get(name) for name in ("ready_seconds", "started_seconds", "finished_seconds")]
    ready, started, finished = [reply.answered_at if time is None else reply.sent_at + time for time in times]
    if node["state"] != "finished":
        fault = node["error"]
        words = f"{fault['code']}: {fault['message']}"[:ERROR_CHARACTERS]
        return PlayedCall(node["id"], ready, started, finished, fault["status"] or 0, words)
    usage = node["usage"]
    tokens = Tokens(usage["prompt_tokens"], usage["cached_tokens"], usage["output_tokens"])
    return PlayedCall(
        node["id"], ready, started, finished, 200, "", *tokens, held_seconds=started - ready,
        energy_joules=node.get("energy_joules"), energy_source=node.get("energy_source"),
    )  # fmt: skip
