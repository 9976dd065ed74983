"""What will work cost in time and energy? A model of one engine that learns from windows."""

from __future__ import annotations

from scheduler.energy.model.core import EnergyModel
from scheduler.energy.model.prior import CapPrior, Prices, Prior
from scheduler.energy.model.results import CallCost, Interval, Learned, StepCost, TokenCost, WindowCost

__all__ = [
    "CallCost",
    "CapPrior",
    "EnergyModel",
    "Interval",
    "Learned",
    "Prices",
    "Prior",
    "StepCost",
    "TokenCost",
    "WindowCost",
]
