"""Which calls belong together when nobody says so? Told from what they say alone: exact, bounded, one key at a time."""

from __future__ import annotations

from scheduler.workflow.inference.content import BYTES_MAX, ContentInference
from scheduler.workflow.inference.placement import PREFIX_BYTES, Counters, Placement, Segment

__all__ = ["BYTES_MAX", "PREFIX_BYTES", "ContentInference", "Counters", "Placement", "Segment"]
