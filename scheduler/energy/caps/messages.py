"""What does the controller want done, and what does it hear of it? Actions and events, as the scheduler's own."""

from __future__ import annotations

from typing import Literal, NamedTuple

MovedBy = Literal["us", "other"]


class SetCap(NamedTuple):
    """Have each GPU of the engine limited to so many watts, all together. Answered by `CapApplied`."""

    engine: str
    watts: float
    """Of each GPU."""
    reason: str


class SetClock(NamedTuple):
    """Hold each GPU's SM clock at or under this; None = let it run free. Answered by `CapApplied`."""

    engine: str
    highest_mhz: float | None
    watts: float
    """Of each GPU: the cap that it stands for; comes back as `requested` of CapApplied."""
    reason: str


class CapApplied(NamedTuple):
    """What became of a wish, or (`by` other) what somebody else did. Watts of each GPU; of several, the strictest.

    The two watts and what was asked for are three numbers: a limit is clamped to what the card allows, and the driver
    may still say something else.
    """

    engine: str
    requested: float | None
    """As the action had it; None where it was not ours."""
    clamped: float | None
    applied: float | None
    """Read back from the driver; None: it failed, and the limit is what it was."""
    at: float
    by: MovedBy = "us"
    detail: str = ""
