"""Which events are for the energy desk, and what comes of them?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scheduler.energy.budgets import JouleQuota
from scheduler.events import EnergyPrior, EngineCounted, JouleBudgetsRestored, JouleQuotasChanged, MeterRead

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from scheduler.actions import Action
    from scheduler.energy.caps.desk import CapsDesk
    from scheduler.energy.desk import EnergyDesk


class EnergyEvents:
    """Handlers of the scheduler's: what is measured, counted and believed of engines."""

    def __init__(self, desk: EnergyDesk, caps: CapsDesk) -> None:
        self._desk = desk
        self._caps = caps
        self.handlers: dict[type, Callable[[Any, float, list[Action]], None]] = {
            MeterRead: self._read,
            EngineCounted: self._counted,
            EnergyPrior: self._prior,
            JouleQuotasChanged: self._quotas,
            JouleBudgetsRestored: self._restored,
            **caps.handlers,
        }

    def _read(self, event: MeterRead, now: float, actions: list[Action]) -> None:
        self._desk.sampled(event.engine, self._caps.as_limited(event.engine, event.sample), now)

    def _counted(self, event: EngineCounted, now: float, actions: list[Action]) -> None:
        self._desk.counted(event.engine, event.counters, event.progress, now)

    def _prior(self, event: EnergyPrior, now: float, actions: list[Action]) -> None:
        self._desk.believe(event.engine, event.prior, event.state, now, simulated=event.simulated)

    def _quotas(self, event: JouleQuotasChanged, now: float, actions: list[Action]) -> None:
        self._desk.budgets.change([JouleQuota(*quota) for quota in event.quotas], now)

    def _restored(self, event: JouleBudgetsRestored, now: float, actions: list[Action]) -> None:
        self._desk.budgets.restore(event.budgets, now)
