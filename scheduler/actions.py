"""What the scheduler wants done: its only output."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Any


class Dispatch(NamedTuple):
    """Send the call to the engine now. `priority` (lower runs first) is told to vLLM; None = say nothing."""

    call_id: str
    engine: str
    priority: int | None = None


class Reject(NamedTuple):
    """Answer the call with an error. `reason` is the machine-readable word, `message` says the way out, `param` names
    the field that is wrong."""

    call_id: str
    status: int
    reason: str
    message: str
    retry_after_seconds: float | None = None
    param: str | None = None


class Abort(NamedTuple):
    """Close the call's connection to its engine, which frees the engine's slot."""

    call_id: str
    engine: str


class WakeAt(NamedTuple):
    """Send a `Tick` at this time of the events' clock, in seconds.

    Only the earliest that has not come yet counts: after each tick, what is still to be waited for is asked for anew.
    """

    at: float


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


class PolicyFailed(NamedTuple):
    """The policy raised, or chose what cannot be done: `passthrough` decides from now on. Say so loudly; nothing else
    is to be done. `hook`: the method."""

    policy: str
    hook: str
    error: str


class BlocksClosed(NamedTuple):
    """Blocks of an experiment are over: keep their rows (`BlockRow.as_json`); they are said once."""

    experiment: str
    rows: tuple[dict[str, Any], ...]


class ExperimentEnded(NamedTuple):
    """An experiment is finished or stopped; its control's policy decides from now on."""

    experiment: str
    state: str
    why: str | None
    """It was stopped."""


class ResetPrefixCache(NamedTuple):
    """Have the engine forget all that it has cached. Answered by `PrefixCacheReset`."""

    engine: str


class Park(NamedTuple):
    """Put the engine to sleep: nothing runs there, and nothing is sent until it is awake again. Answered by
    `EngineParked`."""

    engine: str


class Wake(NamedTuple):
    """Wake the engine up. Answered by `EngineWoken`."""

    engine: str
    why: str


ExperimentAction = BlocksClosed | ExperimentEnded | ResetPrefixCache
"""What an experiment says, or wants done."""
Action = Dispatch | Reject | Abort | WakeAt | SetCap | SetClock | PolicyFailed | Park | Wake | ExperimentAction
