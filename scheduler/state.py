"""The scheduler's picture of a call and of an engine. Policies read these; only the core writes them."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scheduler.breaker import Breaker
    from scheduler.decisions import Held, Sent
    from scheduler.events import CallArrived, EngineLoad
    from scheduler.workflow.node import Node


@dataclass(slots=True, eq=False)
class CallState:
    """A live call: held while `engine` is None, else running on that engine."""

    arrived: CallArrived
    arrived_at: float
    sequence: int
    """Order of arrival, unique."""
    engine: str | None = None
    attempts: int = 0
    avoid: str | None = None
    """The engine that failed this call: tried again only if there is no other."""
    answering: bool = False
    """The first byte of an answer was seen."""
    reserved_tokens: int = 0
    """Taken from the key's rate and budget in advance; settled at the end."""
    node: Node | None = None
    """Its place in a workflow, if it has one."""
    held: Held | None = None
    sent: Sent | None = None
    others: tuple[tuple[str, int], ...] = ()
    """What was decided of it, for the log of decisions."""

    @property
    def prefix(self) -> tuple[int, ...]:
        """Hashes of how its prompt begins, as far as its node has any."""
        return () if self.node is None else self.node.prefix


@dataclass(slots=True, eq=False)
class EngineState:
    """An engine as the scheduler sees it. `models` None = not known yet: any model may be tried."""

    name: str
    max_in_flight: int
    breaker: Breaker
    models: frozenset[str] | None = None
    load: EngineLoad | None = None
    in_flight: int = 0
    removed: bool = False
    seen_healthy: bool = False
    """A probe was good once. Before that it may be anything: others are given calls first."""
    used_at: float = float("-inf")
    """When it was sent a call last."""
    resting: bool = False
    """It sleeps, is on its way there or back, or it is not known: it gets no calls. Parking's to write."""
    unwakeable: str = ""
    """Not empty: it sleeps, and waking it failed too often, for this reason. Parking's to write."""

    def serves(self, model: str | None) -> bool:
        """Whether the engine may have this model (None = the engine's default)."""
        return model is None or self.models is None or model in self.models

    @property
    def usable(self) -> bool:
        """It is configured, and nothing is known against it."""
        return not self.removed and self.breaker.state != "open"

    @property
    def lost(self) -> bool:
        """There is no use in waiting for it."""
        return self.breaker.state == "open" or bool(self.unwakeable)

    def has_room(self, now: float) -> bool:
        """Whether one more call may be sent to it at this time."""
        if self.removed or self.resting or self.in_flight >= self.max_in_flight:
            return False
        return self.breaker.state == "closed" or self.breaker.allows(now)


@dataclass(slots=True)
class ReadyCalls:
    """Held calls, first come first, apart for each model: a full engine must not block another model's calls."""

    by_model: dict[str | None, OrderedDict[str, CallState]] = field(default_factory=dict)
    count: int = 0

    def add(self, call: CallState, *, front: bool = False) -> None:
        """Queue a call behind all others of its model, or before them (a retry has waited already)."""
        arrived = call.arrived
        group = self.by_model.get(arrived.model)
        if group is None:
            group = self.by_model[arrived.model] = OrderedDict()
        group[arrived.call_id] = call
        if front:
            group.move_to_end(arrived.call_id, last=False)
        self.count += 1

    def remove(self, call: CallState) -> None:
        """Take a call out. KeyError if it is not held."""
        arrived = call.arrived
        group = self.by_model[arrived.model]
        del group[arrived.call_id]
        if not group:  # models come from clients: an empty group must not stay
            del self.by_model[arrived.model]
        self.count -= 1

    def holds(self, call: CallState) -> bool:
        """Whether it is one of them."""
        group = self.by_model.get(call.arrived.model)
        return group is not None and group.get(call.arrived.call_id) is call

    def heads(self) -> list[CallState]:
        """The first call of each model."""
        return [next(iter(group.values())) for group in self.by_model.values()]

    def __iter__(self) -> Iterator[CallState]:
        for group in self.by_model.values():
            yield from group.values()
