"""Which engines are there, what is known of each, and how do they come and go?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scheduler.actions import Reject
from scheduler.breaker import Breaker, BreakerRule
from scheduler.state import EngineState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scheduler.actions import Action
    from scheduler.events import BreakersChanged, EngineLoad, EnginesChanged, EngineSpec, EngineStatus


MODEL_SHOWN_CHARACTERS = 256
"""Of an unknown model's name in the refusal: it may be as long as a body."""


class EngineTable:
    """The engines by name. Its methods that take `(event, now, actions)` are the scheduler's handlers."""

    def __init__(self, specs: Sequence[EngineSpec], rule: BreakerRule) -> None:
        self.rule = rule
        self.by_name: dict[str, EngineState] = {}
        self._set(specs)

    def status(self, event: EngineStatus, now: float, actions: list[Action]) -> None:
        """A probe has ended."""
        engine = self.by_name.get(event.engine)
        if engine is None:
            return
        engine.breaker.probed(event.healthy, now)
        engine.seen_healthy = engine.seen_healthy or event.healthy
        if event.models is not None:
            engine.models = frozenset(event.models)

    def load(self, event: EngineLoad, now: float, actions: list[Action]) -> None:
        """An engine's own metrics."""
        if (engine := self.by_name.get(event.engine)) is not None:
            engine.load = event

    def changed(self, event: EnginesChanged, now: float, actions: list[Action]) -> None:
        """Other engines are configured."""
        self._set(event.engines)

    def breakers_changed(self, event: BreakersChanged, now: float, actions: list[Action]) -> None:
        """Another rule for the breakers."""
        self.rule = BreakerRule(event.failures_to_open, event.open_seconds)
        for engine in self.by_name.values():
            engine.breaker.follow(self.rule, now)

    def left(self, name: str) -> None:
        """A call is not with this engine any more."""
        engine = self.by_name[name]
        engine.in_flight -= 1
        if engine.removed and engine.in_flight == 0:
            del self.by_name[name]

    def refusal(self, call_id: str, model: str | None) -> Reject | None:
        """Why no call for this model can be taken now: nobody has it, or nobody who has it is up."""
        known = False
        for engine in self.by_name.values():
            if not engine.removed and engine.serves(model):
                known = True
                if not engine.lost:
                    return None
        if known:
            return self.no_engine(call_id, model)
        shown = (model or "")[:MODEL_SHOWN_CHARACTERS]
        message = f"The model `{shown}` does not exist; there are: {', '.join(self.models())}"
        return Reject(call_id, 404, "unknown_model", message, param="model")

    def no_engine(self, call_id: str, model: str | None) -> Reject:
        """For a call for which there is no use in waiting."""
        for engine in self.by_name.values():
            if engine.unwakeable and not engine.removed and engine.serves(model) and engine.breaker.state != "open":
                message = f"the engine {engine.name} sleeps and could not be woken: {engine.unwakeable}"
                return Reject(call_id, 503, "wake_failed", f"{message}; see /admin/engines of the control port", 5.0)
        message = "no engine is up for this model; see /ready of the control port"
        return Reject(call_id, 503, "no_engine", message, self.rule.open_seconds)

    def models(self) -> list[str]:
        """All models that any engine is known to serve."""
        return sorted({name for engine in self.by_name.values() for name in engine.models or ()})

    def _set(self, specs: Sequence[EngineSpec]) -> None:
        wanted = {spec.name for spec in specs}
        for engine in list(self.by_name.values()):
            if engine.name not in wanted:
                engine.removed = True
                if engine.in_flight == 0:
                    del self.by_name[engine.name]
        for spec in sorted(specs, key=lambda spec: spec.name):
            if (known := self.by_name.get(spec.name)) is not None:
                known.max_in_flight, known.removed = spec.max_in_flight, False
            else:
                self.by_name[spec.name] = EngineState(spec.name, spec.max_in_flight, Breaker(self.rule))
