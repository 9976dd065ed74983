"""Has a call taken too long? Each wait has a time of its own, and its name is in the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from proxy.call import Call
    from proxy.config import TimeoutsConfig
    from scheduler.core import Scheduler
    from scheduler.workflow.workflow import Workflow


def impossible_header(workflow: Workflow | None) -> tuple[tuple[bytes, bytes], ...]:
    """Says that a workflow could not end by its deadline even alone on the engine, if so: it runs all the same."""
    if workflow is None or workflow.too_short_by_seconds is None:
        return ()
    return ((b"x-joulegate-deadline", b"impossible; too_short_by_ms=%.0f" % (workflow.too_short_by_seconds * 1e3)),)


def impossible_line(scheduler: Scheduler, call_id: str) -> bytes:
    """The same as a header line of a call's answer."""
    call = scheduler.calls.get(call_id)
    workflow = call.node.workflow if call is not None and call.node is not None else None
    return b"".join(b"%b: %b\r\n" % header for header in impossible_header(workflow))


def total_up(call: Call, timeouts: TimeoutsConfig, now: float) -> tuple[str, str] | None:
    """Reason and message if the whole call has taken too long, held or running: also by a later deadline of its own."""
    seconds = max(timeouts.total_seconds, (call.identity.deadline_ms or 0.0) / 1e3)
    if now - call.arrived_at <= seconds:
        return None
    return "total_timeout", f"the call took over {seconds:g} s (timeouts.total_seconds)"


def answer_up(
    call: Call, timeouts: TimeoutsConfig, now: float, *, paused_at: float | None, last_chunk_at: float
) -> tuple[str, str] | None:
    """Reason and message if the answer of a call that was sent has been waited for too long, by us or by its client."""
    if paused_at is not None:
        if now - paused_at > timeouts.idle_seconds:
            return "client_stalled", "the client stopped reading its answer (timeouts.idle_seconds)"
    elif call.first_byte_at is None:
        if call.sent_at is not None and now - call.sent_at > timeouts.first_byte_seconds:
            seconds = timeouts.first_byte_seconds
            return "first_byte_timeout", f"no answer within {seconds:g} s (timeouts.first_byte_seconds)"
    elif now - last_chunk_at > timeouts.idle_seconds:
        return "idle_timeout", f"the engine sent nothing for {timeouts.idle_seconds:g} s (timeouts.idle_seconds)"
    return None
