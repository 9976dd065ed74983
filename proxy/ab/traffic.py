"""What traffic has this gateway had? Workflows out of its call log, for planning an experiment."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import orjson

from scheduler.experiments.plan import Recorded

if TYPE_CHECKING:
    from collections.abc import Iterable

PROMPT_TOKENS_PER_OUTPUT_TOKEN = 10
"""So many prompt tokens that are not cached stand for the joules of one output token. Only the spread is made of it."""
COST = f"cost: output tokens, and {PROMPT_TOKENS_PER_OUTPUT_TOKEN} uncached prompt tokens for one, stand for joules"
WORKFLOWS_MAX = 5_000_000


class TrafficFault(ValueError):
    """The log is none; the message names the line."""


def workflows_of(lines: Iterable[bytes]) -> list[Recorded]:
    """One `Recorded` for each workflow of a call log. Lines that are no answered calls are passed over; so is a last
    line that was cut off. TrafficFault for a line that is no JSON, or without any call."""
    found: dict[tuple[object, object], list[float]] = {}
    broken: int | None = None
    for number, line in enumerate(lines, 1):
        if broken is not None:
            raise TrafficFault(f"line {broken} is no line of a call log")
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError:
            broken = number
            continue
        if not isinstance(record, dict) or record.get("event") != "call" or record.get("output_tokens") is None:
            continue
        try:
            began = datetime.fromisoformat(record["ts"]).timestamp()
            ended = began + record["duration_ms"] / 1000.0
            uncached = (record.get("prompt_tokens") or 0) - (record.get("cached_tokens") or 0)
            cost = record["output_tokens"] + max(0, uncached) / PROMPT_TOKENS_PER_OUTPUT_TOKEN
            name = record.get("key"), record["workflow"]["id"]
        except (KeyError, TypeError, ValueError):
            raise TrafficFault(f"line {number} is no line of a call log") from None
        known = found.get(name)
        if known is None:
            if len(found) >= WORKFLOWS_MAX:
                break
            found[name] = [began, ended, cost]
        else:
            known[:] = min(known[0], began), max(known[1], ended), known[2] + cost
    if not found:
        raise TrafficFault("no answered call with its tokens is in it")
    return sorted(Recorded(began, ended - began, cost) for began, ended, cost in found.values())
