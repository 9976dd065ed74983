"""A library of blocks played on the twin: each stretch of arrivals under both policies, after each of the two.

An *item* is one stretch of random arrivals at one load. It is played four times on the same arrivals: control after
control, treatment after control, control after treatment, treatment after treatment. So what a switch does to a block
is in the block, and the true effect is known: treatment after treatment against control after control, on the same
arrivals."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.experiments.stage import Shape, Stage
from scheduler.experiments.definition import Arm
from scheduler.experiments.rows import BlockRow, OpenRow, WorkflowOutcome, row_of
from scheduler.experiments.schedule import Block

if TYPE_CHECKING:
    from pathlib import Path

VERSION = 2
HISTORY_SECONDS = 40.0
"""Under the arm before, ahead of the block: several times what a workflow takes."""


class Item(NamedTuple):
    """One stretch of arrivals; `rows[before][arm]`."""

    load: int
    seed: int
    rows: tuple[tuple[BlockRow, BlockRow], tuple[BlockRow, BlockRow]]


class Library(NamedTuple):
    """Items of several loads."""

    shape: Shape
    arms: tuple[Arm, Arm]
    rates: tuple[float, ...]
    """Workflows a second of each load."""
    items: tuple[Item, ...]

    def of_load(self, load: int) -> list[Item]:
        """The items of one load."""
        return [item for item in self.items if item.load == load]


class _Switch:
    """One arm until 0, the other from then on; a row of accounts."""

    def __init__(self, shape: Shape, before: int, arm: int) -> None:
        self.before, self.arm = before, arm
        self.block = Block(0, 0, arm, 0.0, shape.washout_seconds, shape.block_seconds, 1.0)
        self.row = OpenRow(self.block, arm)
        self._counted: dict[str, float] = {}
        self._mine: set[str] = set()

    def first(self, now: float) -> int:
        return self.before if now < HISTORY_SECONDS else self.arm

    def arm_of(self, workflow_id: str, now: float) -> int:
        return self.arm if workflow_id in self._mine else self.before

    def assign(self, workflow_id: str, now: float) -> int:
        at = now - HISTORY_SECONDS
        if at < 0:
            return self.before
        self._mine.add(workflow_id)
        if self.block.measured_from <= at < self.block.end:
            self._counted[workflow_id] = at
            self.row.began += 1
        return self.arm

    def ended(self, outcome: WorkflowOutcome, now: float) -> None:
        at = outcome.ended_at - HISTORY_SECONDS
        if self._counted.pop(outcome.workflow_id, None) is not None:
            self.row.time(outcome)
        mine = outcome.workflow_id in self._mine or self.before == self.arm
        if mine and self.block.measured_from <= at < self.block.end:
            self.row.end(outcome)

    def close(self, at: float) -> BlockRow:
        for workflow_id, began in self._counted.items():
            self.row.time(WorkflowOutcome(workflow_id, at - began, at), unfinished=True)
        return self.row.closed(1)


def play(shape: Shape, arms: tuple[Arm, Arm], rate: float, seed: str, before: int, arm: int) -> BlockRow:
    """One block."""
    host = _Switch(shape, before, arm)
    stage = Stage(shape.calibration, arms, host)
    end = HISTORY_SECONDS + shape.block_seconds
    grace = max(1.0, shape.washout_seconds)
    stage.traffic(seed, lambda now: rate, rate, end + grace)
    stage.run(HISTORY_SECONDS + shape.washout_seconds)
    joules = stage.joules()
    stage.run(end)
    host.row.energy(shape.washout_seconds, shape.block_seconds, (stage.joules() - joules, None, None), "simulated")
    stage.run(end + grace)
    return host.close(shape.block_seconds + grace)


def item(shape: Shape, arms: tuple[Arm, Arm], rates: tuple[float, ...], load: int, seed: int) -> Item:
    """All four ways."""
    name = f"{seed}/{load}"
    rows = [[play(shape, arms, rates[load], name, before, arm) for arm in (0, 1)] for before in (0, 1)]
    return Item(load, seed, ((rows[0][0], rows[0][1]), (rows[1][0], rows[1][1])))


def as_json(library: Library) -> dict[str, Any]:
    """For a file."""
    return {
        "joulegate_block_library": VERSION,
        "shape": list(library.shape),
        "arms": [[arm.policy, dict(arm.options)] for arm in library.arms],
        "rates": list(library.rates),
        "items": [
            [each.load, each.seed, [[row.as_json() for row in after] for after in each.rows]] for each in library.items
        ],
    }


def read(path: Path) -> Library | None:
    """None: there is none, or of another version."""
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(record, dict) or record.get("joulegate_block_library") != VERSION:
        return None
    items = tuple(
        Item(load, seed, ((row_of(a[0]), row_of(a[1])), (row_of(b[0]), row_of(b[1]))))
        for load, seed, (a, b) in record["items"]
    )
    first, second = (Arm(policy, options) for policy, options in record["arms"])
    return Library(Shape(*record["shape"]), (first, second), tuple(record["rates"]), items)


def build(
    shape: Shape, arms: tuple[Arm, Arm], rates: tuple[float, ...], items: int, seed: int, path: Path | None = None
) -> Library:
    """`items` of each load. Kept at `path`, where it is found the next time if nothing of it has changed."""
    if path is not None and (kept := read(path)) is not None:
        wanted = (shape, [str(arm) for arm in arms], rates, items * len(rates), seed)
        first = kept.items[0].seed if kept.items else None
        if (kept.shape, [str(arm) for arm in kept.arms], kept.rates, len(kept.items), first) == wanted:
            return kept
    made = Library(
        shape, arms, rates,
        tuple(item(shape, arms, rates, load, seed + number) for number in range(items) for load in range(len(rates))),
    )  # fmt: skip
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(as_json(made)))
    return made
