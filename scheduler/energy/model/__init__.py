"""What will work cost in time and energy? A model of one engine that learns from windows.

`EnergyModel` is imported when it is first asked for: numpy comes with it, whose memory only those pay who measure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scheduler.energy.model.prior import CapPrior, Prices, Prior
from scheduler.energy.model.results import CallCost, Interval, Learned, StepCost, TokenCost, WindowCost
from scheduler.energy.model.steps import StepPrices

if TYPE_CHECKING:
    from scheduler.energy.model.core import EnergyModel

__all__ = [
    "CallCost",
    "CapPrior",
    "EnergyModel",
    "Interval",
    "Learned",
    "Prices",
    "Prior",
    "StepCost",
    "StepPrices",
    "TokenCost",
    "WindowCost",
]


def __getattr__(name: str) -> Any:
    if name == "EnergyModel":
        from scheduler.energy.model.core import EnergyModel

        return EnergyModel
    raise AttributeError(name)
