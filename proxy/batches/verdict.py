"""Is a line's answer its last, or is it asked again, and when?"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from proxy.call import Outcome

if TYPE_CHECKING:
    from proxy.inner import InnerAnswer

WAIT_SECONDS_MIN = 1.0
WAIT_SECONDS_MAX = 300.0
"""A budget may be used up for a day; it may also be raised by a reload."""
_BUSY = (429, 503)
_LOST = (429, 502, 503, 504)


class Again(NamedTuple):
    """It is asked again. `refused`: the gateway had no place for it, which is no attempt and says that fewer should be
    under way."""

    seconds: float
    refused: bool


def judge(answer: InnerAnswer, tries: int, attempts: int) -> Again | None:
    """None: it is the last. `tries`: how often it has been tried, this time counted."""
    call = answer.call
    if answer.status in _BUSY and (call is None or call.outcome is Outcome.REFUSED):
        return Again(_asked_seconds(answer), refused=True)
    if tries >= attempts or answer.fault_reason == "answer_too_large":
        return None
    if answer.status in _LOST or not answer.whole:
        return Again(max(_asked_seconds(answer), min(2.0 ** (tries - 1), WAIT_SECONDS_MAX)), refused=False)
    return None


def _asked_seconds(answer: InnerAnswer) -> float:
    value = answer.headers.get(b"retry-after", b"")
    return min(max(float(value), WAIT_SECONDS_MIN), WAIT_SECONDS_MAX) if value.isdigit() else WAIT_SECONDS_MIN
