"""What a policy is: given the held calls and the engines, which call runs next, where, and when to look again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from difflib import get_close_matches
from typing import TYPE_CHECKING, ClassVar, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scheduler.energy.caps.desk import CapsDesk
    from scheduler.energy.desk import EnergyDesk
    from scheduler.patience import Patience
    from scheduler.state import CallState, EngineState, ReadyCalls
    from scheduler.workflow.book import WorkflowBook


class Choice(NamedTuple):
    """Run this call on this engine now. `priority` as vLLM means it: lower runs first, None = say nothing."""

    call: CallState
    engine: EngineState
    priority: int | None = None


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


class Policy(ABC):
    """A policy decides one call at a time: the core carries a choice out and asks again until there is none.

    It sees the state and changes nothing; it has no clock and no randomness, so that a log of events replays. What
    happens to calls is told to it as it happens, so that it need not look through them all for a decision.
    """

    name: ClassVar[str]
    uses_workflows: ClassVar[bool] = False
    """It decides by what is known of workflows: then those are looked for in calls that say nothing of them, too."""
    options: ClassVar[dict[str, str]] = {}
    """The option names it takes and what each means; all are positive whole numbers so far."""

    @abstractmethod
    def __init__(self, options: Mapping[str, object]) -> None: ...

    @abstractmethod
    def next(self, ready: ReadyCalls, engines: Sequence[EngineState], now: float) -> Choice | float | None:
        """The next call to run; or a time at which to look again; or None: nothing until something happens."""

    def begin(self, view: View, now: float) -> None:
        """It decides from now on. There may be held and running calls already."""

    def arrived(self, call: CallState, now: float) -> None:
        """A call is held: it came, or an attempt failed and it is to be sent again."""

    def sent(self, call: CallState, engine: EngineState, now: float) -> None:
        """Its choice was carried out."""

    def ended(self, call: CallState, now: float) -> None:
        """A call is over, or its attempt has failed; `call.engine` says where it was, None: it was held."""

    @classmethod
    def options_errors(cls, options: Mapping[str, object]) -> list[tuple[str, str]]:
        """(option, what is wrong with it and the way out) for each bad option."""
        errors = []
        for option, value in options.items():
            if option not in cls.options:
                near = get_close_matches(option, ["name", *cls.options], n=1)
                takes = ", ".join(sorted(cls.options)) or "none"
                hint = f'; did you mean "{near[0]}"?' if near else f"; the options of {cls.name} are: {takes}"
                errors.append((option, f"unknown option{hint}"))
            elif type(value) is not int or value < 1:
                errors.append((option, f"must be a whole number from 1 on, not {value!r}"))
        return errors


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
