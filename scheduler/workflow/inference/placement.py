"""What is found out about a call from its content, and how often."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from scheduler.workflow.spec import PREFIX_BYTES

__all__ = ("LIKELY", "POSSIBLE", "PREFIX_BYTES", "SURE", "WEAK", "Counters", "Placement", "Segment")

Segment = tuple[str, str]
"""One message of a prompt: its role and its text. A bare text, as completions have it, has the role ""."""

SURE = 0.99
"""Word for word, and only one call has said it."""
LIKELY = 0.9
"""Several have said it, one of them in this workflow; or the answer stands behind a history that was edited."""
POSSIBLE = 0.7
"""Several have said it, and the others were used before the last said it; or the answer itself was edited."""
WEAK = 0.6
"""The list goes on from an earlier one, but without its answer."""


class Placement(NamedTuple):
    """Where a call belongs. Confidences are those above: nothing that was found has less than WEAK."""

    turn_of: str | None
    """The call whose next turn this is."""
    turn_confidence: float
    """0 where there is none."""
    data_from: tuple[tuple[str, float], ...]
    """Calls whose output stands in this prompt, in the order in which they stand there; none twice, none `turn_of`."""
    fingerprint: str
    """16 hexadecimal digits: equal for calls of one model with the same leading instructions, across keys and runs."""
    prefix: tuple[int, ...]
    """Hashes of the model and the first PREFIX_BYTES[i] of the prompt, as far as the prompt is that long.

    They depend on no key, as an engine's prefix cache does not: who groups by them decides whether keys may share."""


@dataclass(slots=True)
class Counters:
    """What happened since the start. All are counts; `scanned_bytes` is bytes."""

    calls: int = 0
    outputs: int = 0
    """Outputs kept; of a call that was answered with several, each."""
    turns: int = 0
    data_edges: int = 0
    ambiguous: int = 0
    """Several calls had said the same, and nothing told which was meant: no edge."""
    accidental: int = 0
    """The text was in use before any call said it: no edge."""
    scanned_bytes: int = 0
    candidates: int = 0
    """Places that were compared in full because a sample of the text was a known one."""
    cut_short: int = 0
    """Prompts that were not searched to the end, having too many candidates or bytes."""
    evicted: int = 0
    """Calls forgotten for want of room."""
    expired: int = 0
    """Calls forgotten because of their age."""
