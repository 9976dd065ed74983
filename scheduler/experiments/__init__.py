"""Which arm of an experiment does a workflow get, what came of each block, and when must it stop?"""

from __future__ import annotations

from scheduler.experiments.arms import ArmPolicies
from scheduler.experiments.checks import problems
from scheduler.experiments.definition import (
    CONTROL,
    TREATMENT,
    Arm,
    Definition,
    ExperimentError,
    Guardrail,
    definition_of,
    guardrail_of,
)
from scheduler.experiments.experiment import Assignment, Experiment
from scheduler.experiments.guardrails import Verdict
from scheduler.experiments.metrics import METRICS, Metric
from scheduler.experiments.rows import BlockRow, WorkflowOutcome
from scheduler.experiments.saved import resume, saved
from scheduler.experiments.schedule import Block, Schedule

__all__ = [
    "CONTROL",
    "METRICS",
    "TREATMENT",
    "Arm",
    "ArmPolicies",
    "Assignment",
    "Block",
    "BlockRow",
    "Definition",
    "Experiment",
    "ExperimentError",
    "Guardrail",
    "Metric",
    "Schedule",
    "Verdict",
    "WorkflowOutcome",
    "definition_of",
    "guardrail_of",
    "problems",
    "resume",
    "saved",
]
