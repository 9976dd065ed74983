"""What is the scheduler told of a call that has arrived?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.identity import NOTHING_SAID
from scheduler.events import CallArrived

if TYPE_CHECKING:
    from proxy.call import Call

BYTES_A_TOKEN = 4


def arrived(call: Call, *, watched: bool) -> CallArrived:
    """Most calls say nothing of a workflow, and pay little for what could be said. `watched`: see CallArrived."""
    identity, prompt_tokens = call.identity, call.request_bytes // BYTES_A_TOKEN
    if identity is NOTHING_SAID:
        return CallArrived(
            call.id,
            call.key_name,
            call.model,
            "",
            prompt_tokens,
            call.max_output_tokens,
            watched=watched,
            streamed=call.stream,
        )
    return CallArrived(
        call.id,
        call.key_name,
        call.model,
        identity.workflow_id,
        prompt_tokens,
        call.max_output_tokens,
        identity.node,
        identity.after,
        identity.deadline_ms,
        identity.workflow_class,
        identity.expected_output_tokens,
        identity.priority_hint,
        identity.final,
        identity.source,
        identity.parent_id,
        identity.energy_budget_joules,
        identity.strict_priority,
        identity.speculative_prefill,
        watched,
        call.stream,
    )
