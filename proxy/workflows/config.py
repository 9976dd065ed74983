"""The table `[workflows]` of the configuration."""

from __future__ import annotations

from typing import Literal

from proxy.config_types import Count, Seconds, Table


class WorkflowsConfig(Table):
    """Workflows: those submitted whole, and those that the gateway sees in the calls."""

    nodes: Count = 20_000
    """of one workflow; a submission over it is refused with 413"""
    live_nodes: Count = 200_000
    """of all workflows that are not over; over it submissions are refused, and calls are not entered in graphs"""
    running_calls: Count = 1_024
    """of submitted workflows at once, held or at an engine; the others wait for their turn"""
    turn_seconds: Seconds = 3_600.0
    """a node of a submitted workflow is tried again while the gateway or its key is full; then it fails"""
    held_bytes: Count = 268_435_456
    """of their requests and outputs; the oldest that is over is forgotten, then 503 `workflows_full`"""
    submitted: Count = 10_000
    """submitted workflows kept, running or over; the oldest that is over is forgotten, then 503 `workflows_full`"""
    kept_seconds: Seconds = 3_600.0
    """a workflow that is over can be read"""
    idle_seconds: Seconds = 900.0
    """without a call, or a tool's result; then the workflow is closed"""
    inference: Literal["auto", "on", "off"] = "auto"
    """find out by content which calls belong together, where clients say nothing; `auto`: while the policy uses it"""
    inference_bytes: Count = 67_108_864
    """of what is remembered for that"""
