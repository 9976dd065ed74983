"""What does the scheduler learn of a batch as a whole, beside its calls?"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

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
    """A batch begins: so many calls will come, none waits for another, and all have until the deadline."""


def retire(gateway: Gateway, key_name: str, batch_id: str) -> None:
    """A batch makes no more calls: it has ended, or this process does."""
