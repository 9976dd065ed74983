"""Which blocks are not analysed, and why? A rule that is fixed before any block is run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scheduler.experiments.metrics import Metric
    from scheduler.experiments.rows import BlockRow

Reason = Literal[
    "lead_in", "ramp_up", "clock_jump", "gateway_restart", "engine_lost", "engine_added", "cap_not_applied",
    "cache_not_reset", "not_watched", "stopped", "energy_unavailable",
]  # fmt: skip
SAYS: dict[str, str] = {
    "lead_in": "the block of control before the first pair",
    "ramp_up": "only a share of the workflows got the treatment",
    "clock_jump": "the wall clock moved against the steady one",
    "gateway_restart": "the gateway was not running for a part of it",
    "engine_lost": "an engine of the pool was not healthy",
    "engine_added": "an engine came that is none of the experiment's: its joules are not counted",
    "cap_not_applied": "a power limit could not be set",
    "cache_not_reset": "a prefix cache was not emptied before it, as it had to be",
    "not_watched": "the gateway was too busy to look at it at all",
    "stopped": "the experiment was stopped in it",
    "energy_unavailable": "joules are known for less than 98 % of it: excluded for metrics of energy alone",
}
PLANNED = frozenset({"lead_in", "ramp_up"})
"""No accidents: the report does not count them as excluded."""


def excluded_by(row: BlockRow, metric: Metric) -> tuple[str, ...]:
    """Why this row does not count for the metric; empty: it does."""
    return tuple(mark for mark in row.marks if mark != "energy_unavailable" or metric.energy)


class Pair(NamedTuple):
    """The rows of two blocks, by arm. `split_and_swap` and `interleaved` have two rows of each arm."""

    number: int
    control: tuple[BlockRow, ...]
    treatment: tuple[BlockRow, ...]


def pairs_of(rows: Iterable[BlockRow], metric: Metric) -> tuple[list[Pair], list[BlockRow]]:
    """The pairs that count for the metric, in order, and the rows that do not. A pair counts whole or not at all: the
    order of its arms was drawn for both, and one block without the other would be compared with another hour."""
    by_pair: dict[int, list[BlockRow]] = {}
    left: list[BlockRow] = []
    for row in rows:
        if row.pair < 0:
            left.append(row)
        else:
            by_pair.setdefault(row.pair, []).append(row)
    pairs = []
    for number, both in sorted(by_pair.items()):
        arms = tuple(tuple(sorted(row for row in both if row.arm == arm)) for arm in (0, 1))
        blocks = {row.number for row in both}
        if len(blocks) == 2 and arms[0] and arms[1] and not any(excluded_by(row, metric) for row in both):
            pairs.append(Pair(number, *arms))
        else:
            left += both
    return pairs, sorted(left, key=lambda row: (row.number, row.arm))
