"""Rows of blocks for tests: made up, with an effect that is known."""

from __future__ import annotations

import numpy as np

from scheduler.experiments import Arm, BlockRow, Definition, Schedule

ARMS = (Arm("passthrough"), Arm("fifo", {"max_in_flight": 4}))


def definition(**changes: object) -> Definition:
    """A switchback of short blocks."""
    values: dict[str, object] = {
        "id": "test", "arms": ARMS, "block_seconds": 100.0, "washout_seconds": 20.0, "pairs": 20, "seed": 5,
    }  # fmt: skip
    return Definition(**{**values, **changes})  # type: ignore[arg-type]


def rows_of(
    defined: Definition, *, effect: float = 0.0, spread: float = 0.1, seed: int = 1, energy: bool = True,
    carried: float = 0.0,
) -> list[BlockRow]:  # fmt: skip
    """All its blocks: `effect` and `carried` (after a block of the other arm) are logs of joules a workflow."""
    rng = np.random.default_rng(seed)
    schedule = Schedule(defined, 0.0)
    rows, before = [], 0
    for number in range(defined.blocks):
        block = schedule.block(number)
        count = int(rng.integers(40, 60))
        level = np.exp(spread * rng.normal() + effect * block.arm + carried * (before != block.arm))
        times = tuple((rng.lognormal(0.0, 0.4, count) * np.exp(effect * block.arm)).tolist())
        before = block.arm
        rows.append(BlockRow(
            number, block.pair, block.arm, block.start, block.measured_from, block.end, count, count, 0, sum(times),
            0, count, int(rng.binomial(count, 0.1)), count, 100 * count, 50 * count, 150 * count,
            float(level * count * 10) if energy else None, None, None, "measured" if energy else "unavailable",
            {"chat": times[: count // 2], "batch": times[count // 2 :]}, () if energy else ("energy_unavailable",),
        ))  # fmt: skip
    return rows
