"""Which power limit should an engine's cards have? Decisions alone: who sets it is no question here."""

from __future__ import annotations

from scheduler.energy.caps.answers import Answers
from scheduler.energy.caps.claims import Claim, Savings
from scheduler.energy.caps.controller import CapController
from scheduler.energy.caps.decision import Decision
from scheduler.energy.caps.fleet import CapFleet
from scheduler.energy.caps.recent import Recent
from scheduler.energy.caps.rules import CapRules, CapRulesError
from scheduler.energy.caps.view import CardLimits, CostModel, EngineView, Load, Slack

__all__ = [
    "Answers",
    "CapController",
    "CapFleet",
    "CapRules",
    "CapRulesError",
    "CardLimits",
    "Claim",
    "CostModel",
    "Decision",
    "EngineView",
    "Load",
    "Recent",
    "Savings",
    "Slack",
]
