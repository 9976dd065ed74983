"""What a policy is: given the held calls and the engines, which call runs next, where, and when to look again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scheduler.decisions import DecisionLog, Why
    from scheduler.energy.caps.desk import CapsDesk
    from scheduler.energy.desk import EnergyDesk
    from scheduler.parking import Parking
    from scheduler.patience import Patience
    from scheduler.policies.options import Option
    from scheduler.quotas import Quotas
    from scheduler.state import CallState, EngineState, ReadyCalls
    from scheduler.workflow.book import WorkflowBook
    from scheduler.workflow.node import Node


class Choice(NamedTuple):
    """Run this call on this engine now. `priority` as vLLM means it: lower runs first, None = say nothing.

    `why`: for the log of decisions, where the policy has more to say than "it was its turn".
    """

    call: CallState
    engine: EngineState
    priority: int | None = None
    why: Why | None = None


class View(NamedTuple):
    """All that the scheduler knows: to be looked at, not to be changed."""

    engines: Mapping[str, EngineState]
    calls: Mapping[str, CallState]
    """Held and running."""
    ready: ReadyCalls
    """Held."""
    workflows: WorkflowBook
    energy: EnergyDesk
    patience: Patience
    """How long each may be held at most."""
    caps: CapsDesk
    """Told, by `propose`, what slack a policy leaves for a slower engine."""
    decisions: DecisionLog
    """`decisions.held(call, why, now)` says why a call is held back: the one thing here that a policy writes."""
    quotas: Quotas
    """`quotas.weight_of(key)`: of two keys under load, one of weight 2 gets twice the work of one of weight 1."""
    parking: Parking
    """Which engines sleep. `parking.wish(model)`: one engine more would be of use."""


class Policy(ABC):
    """A policy decides one call at a time: the core carries a choice out and asks again until there is none.

    It sees the state and changes nothing; it has no clock and no randomness, so that a log of events replays. What
    happens to calls is told to it as it happens, so that it need not look through them all for a decision. One that
    raises is relieved by `passthrough`.
    """

    name: ClassVar[str]
    """Lower-case letters, digits, `_` and `-`."""
    uses_workflows: ClassVar[bool] = False
    """It decides by what is known of workflows: then those are looked for in calls that say nothing of them, too."""
    options: ClassVar[Mapping[str, Option]] = {}
    """What can be set of it."""

    @abstractmethod
    def __init__(self, options: Mapping[str, Any]) -> None:
        """`options`: a value for each of `options`, checked."""

    @abstractmethod
    def next(self, ready: ReadyCalls, engines: Sequence[EngineState], now: float) -> Choice | float | None:
        """The next call to run; or a time at which to look again; or None: nothing until something happens."""

    # What follows need not be there (B027): a policy that looks at the queue alone wants to be told nothing.

    def begin(self, view: View, now: float) -> None:  # noqa: B027
        """It decides from now on. There may be held and running calls already."""

    def end(self, now: float) -> None:  # noqa: B027
        """Another decides from now on: what was changed outside of this object is to be put back."""

    def validate(self) -> None:  # noqa: B027
        """Every invariant of its own. AssertionError otherwise."""

    def arrived(self, call: CallState, now: float) -> None:  # noqa: B027
        """A call is held: it came, or an attempt failed and it is to be sent again."""

    def sent(self, call: CallState, engine: EngineState, now: float) -> None:  # noqa: B027
        """Its choice was carried out."""

    def ended(self, call: CallState, now: float) -> None:  # noqa: B027
        """A call is over, or its attempt has failed; `call.engine` says where it was, None: it was held."""

    def holds_for(self, engine: str) -> bool:
        """Whether calls are held that are to run on this very engine: then it is not parked."""
        return False

    def said_by(self, call: CallState) -> str:
        """The policy that chose this call, for the log of decisions."""
        return self.name


class ImpossibleChoiceError(RuntimeError):
    """A policy chose a call that is not held, or an engine that has no room for it."""


def check_choice(choice: Choice, ready: ReadyCalls, engines: Sequence[EngineState], now: float) -> None:
    """ImpossibleChoiceError if it cannot be carried out."""
    call, engine, _, _ = choice
    if not (ready.holds(call) and engine.has_room(now) and engine in engines):
        raise ImpossibleChoiceError(f"{call.arrived.call_id!r} to {engine.name!r}")


def place_of(call: CallState) -> Node | None:
    """The call's node, as long as its workflow's graph has it: a workflow may be cancelled while calls of it live."""
    node = call.node
    return None if node is None or node.over else node


def with_room(engines: Sequence[EngineState], now: float, limit: int) -> list[EngineState]:
    """The engines that may be sent a call now and have fewer than `limit` in flight."""
    return [engine for engine in engines if engine.in_flight < limit and engine.has_room(now)]


def fit_for(call: CallState, room: Sequence[EngineState]) -> list[EngineState]:
    """The engines of `room` (one at least) that may take the call: not the one that failed it, nor one that no probe
    has found healthy yet, unless there is no other."""
    model, avoid = call.arrived.model, call.avoid
    fit = [engine for engine in room if engine.serves(model)]
    if len(fit) > 1 and avoid is not None:
        fit = [engine for engine in fit if engine.name != avoid]
    if len(fit) > 1:
        fit = [engine for engine in fit if engine.seen_healthy] or fit
    return fit


def awake_first(fit: list[EngineState]) -> list[EngineState]:
    """Of engines that may take a call: those that are awake, if there are any."""
    return [engine for engine in fit if not engine.resting] or fit


def oldest_that_fits(ready: ReadyCalls, room: Sequence[EngineState]) -> CallState | None:
    """The call that has waited longest among those whose model one of these engines serves."""
    oldest: CallState | None = None
    for group in ready.by_model.values():
        call = next(iter(group.values()))
        if oldest is None or call.sequence < oldest.sequence:
            model = call.arrived.model
            for engine in room:
                if engine.serves(model):
                    oldest = call
                    break
    return oldest
