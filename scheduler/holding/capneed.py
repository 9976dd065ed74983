"""How many watts does what has begun need, so that it ends in time? What a cap may not be below, now.

Work is begun at its latest start under the cap that is planned for. If it then takes longer, or more comes than was
expected, a cap has speed in reserve, which is there within two seconds: `joule` asks for as much of it as who is behind
needs. That is dear (a cap comes down slowly), so only where a deadline is lost otherwise.
"""

from __future__ import annotations

from itertools import chain, islice
from typing import TYPE_CHECKING, NamedTuple

from scheduler.holding.board import WAY_LEAST, bucket_of
from scheduler.holding.flow import AT_ONCE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scheduler.holding.capslack import Slower
    from scheduler.holding.flow import Flow
    from scheduler.holding.room import Room

EARLY_SHARE = 0.1
"""Predictions are that much too long more often than not: a workflow that will be late by less is let be."""
LOST_SHARE = 0.6
"""A workflow that needs more than its time even at so much of the time without a cap is lost, and needs nothing."""
SOON_SECONDS = 0.5
"""What is over sooner is over before another limit is in force."""
LOOKED_MAX = 512
"""Calls that are looked at: more than run at once."""


class Left(NamedTuple):
    """Seconds until a workflow's end, as planned."""

    decode: float
    prefill: float

    @property
    def seconds(self) -> float:
        """Of both."""
        return self.decode + self.prefill


def begun(room: Room, now: float) -> list[tuple[Flow, Left]]:
    """Workflows with a deadline that have calls at the engine, or are to have them at once."""
    stepping, step = room.stepping, room.costs.step_seconds
    stepping.advance(now)
    flows: dict[int, Flow] = {}
    joined_tokens = joined_work = 0.0
    for call in islice(chain(stepping.running, room.queued), LOOKED_MAX):
        flow = room.flow_of[call]
        if flow.deadline > AT_ONCE:
            flows[id(flow)] = flow
        if not flow.urgent and (running := stepping.running.get(call)) is not None:
            joined_tokens += running.work.token_seconds
            joined_work += running.work.token_seconds * running.work.steps
    found = []
    for flow in flows.values():
        tail = flow.tail(stepping.steps, step)
        fixed = tail * flow.fixed_share(step)
        company = room.board.begun.company(bucket_of(tail), max(tail, WAY_LEAST))
        company += min(joined_work, joined_tokens * fixed / step)
        found.append((flow, Left(fixed + company, stepping.prefill_seconds + flow.prefill)))
    return found


def prompt_share(lefts: Sequence[tuple[Flow, Left]]) -> float:
    """Of the time that one of them still takes: of prompts, where it is most."""
    return max((left.prefill / left.seconds for _, left in lefts if left.seconds > SOON_SECONDS), default=0.0)


def rung_needed(lefts: Sequence[tuple[Flow, Left]], now: float, planned: Slower, rungs: Sequence[Slower]) -> int:
    """The last of `rungs` (what falling limits make of steps) under which all end in time; the first if none is."""
    need = len(rungs) - 1
    for flow, left in lefts:
        seconds = flow.deadline - now
        decode, prefill = left.decode / planned.decode, left.prefill / planned.prefill
        if left.seconds < SOON_SECONDS or (decode + prefill) * LOST_SHARE > seconds:
            continue
        bearable = seconds / (1.0 - EARLY_SHARE)
        while need > 0 and decode * rungs[need].decode + prefill * rungs[need].prefill > bearable:
            need -= 1
    return need
