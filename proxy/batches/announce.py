"""What does the scheduler learn of a batch as a whole, beside its calls?"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from scheduler.events import WorkflowDeclared, WorkflowEnded
from scheduler.workflow.spec import WorkflowSpec

if TYPE_CHECKING:
    from proxy.gateway import Gateway


class Announcement(NamedTuple):
    """A batch whose lines are about to be called, first or after a restart."""

    batch_id: str
    """Its calls' workflow id."""
    key_name: str
    endpoint: str
    model: str | None
    """If it is the same in all lines."""
    calls: int
    """Lines that are not done."""
    deadline_seconds: float
    """Until its window ends."""


def announce(gateway: Gateway, announcement: Announcement) -> None:
    """A batch begins: so many calls will come, none waits for another, and all have until the deadline.

    Its lines become nodes as they are called: 50,000 of them at once would only say that they are many.
    """
    batch_id = announcement.batch_id
    spec = WorkflowSpec(
        announcement.key_name,
        batch_id,
        f"batch {announcement.endpoint}",
        "batch",
        announcement.deadline_seconds,
        run_here=True,
    )
    # Refused (there is no room): then its calls grow a graph of their own as they come.
    gateway.ask(WorkflowDeclared(batch_id, spec), batch_id)


def retire(gateway: Gateway, key_name: str, batch_id: str) -> None:
    """A batch makes no more calls: it has ended, or this process does."""
    gateway.tell(WorkflowEnded(key_name, batch_id, "closed"))
