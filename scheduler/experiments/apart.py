"""What may a policy see that only looks on? The scheduler's view, with everything that a policy writes set apart."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Any, cast

from scheduler.decisions import DecisionLog
from scheduler.parking import Parking, ParkingRules
from scheduler.state import EngineState, ReadyCalls

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scheduler.policies.base import View
    from scheduler.state import CallState
    from scheduler.workflow.book import WorkflowBook


class _Peeking:
    """A table whose entries are read without being kept longer for it."""

    def __init__(self, table: Any) -> None:
        self._table = table

    def get(self, key: Any) -> Any:
        """The entry, if there is one."""
        return self._table.peek(key)


class _Silent:
    """The caps desk, to which nothing is proposed."""

    def __init__(self, desk: Any) -> None:
        self._desk = desk

    def __getattr__(self, name: str) -> Any:
        return getattr(self._desk, name)

    def propose(
        self, engine: str, stretch: float, now: float, least_watts: float = 0.0, need_watts: float = 0.0
    ) -> None:
        """Not passed on."""


def _book(book: WorkflowBook) -> WorkflowBook:
    """Workflows and what was learned of them, as they are; durations (which a policy may replace) are its own."""
    mine = copy(book)
    mine.forecasts = copy(book.forecasts)
    mine.forecasts.places = _Peeking(book.forecasts.places)  # type: ignore[assignment]
    mine.forecasts.models = _Peeking(book.forecasts.models)  # type: ignore[assignment]
    mine.templates = copy(book.templates)
    mine.templates.table = _Peeking(book.templates.table)  # type: ignore[assignment]
    return mine


class Apart:
    """Engines and calls of a world of its own, beside the real one."""

    def __init__(self, view: View) -> None:
        self._real = view.engines
        self.engines: dict[str, EngineState] = {}
        self.calls: dict[str, CallState] = {}
        self.ready = ReadyCalls()
        self.follow()
        self.view = view._replace(
            engines=self.engines, calls=self.calls, ready=self.ready, workflows=_book(view.workflows),
            caps=cast("Any", _Silent(view.caps)), decisions=(decisions := DecisionLog(1)),
            parking=Parking(ParkingRules(), self.engines, self.ready, decisions, lambda name, now: False),
        )  # fmt: skip

    def follow(self) -> None:
        """Bring engines up to date; the calls that they have here are this world's."""
        real: Mapping[str, EngineState] = self._real
        for name in [name for name in self.engines if name not in real]:
            del self.engines[name]
        for name, engine in real.items():
            mine = self.engines.get(name)
            if mine is None:
                mine = self.engines[name] = EngineState(name, engine.max_in_flight, copy(engine.breaker))
                # Of its name there was one before, of which calls are left here that are over in the real world.
                mine.in_flight = sum(call.engine == name for call in self.calls.values())
            mine.max_in_flight, mine.models, mine.load = engine.max_in_flight, engine.models, engine.load
            mine.removed, mine.seen_healthy = engine.removed, engine.seen_healthy
            if mine.breaker.state != engine.breaker.state:
                mine.breaker = copy(engine.breaker)
