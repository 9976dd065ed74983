"""Half of the workflows batch, half interactive: what is put off must not come in the way of people."""

from __future__ import annotations

import pytest

from bench.policies.cells import Cell
from bench.policies.lab import Run, play
from bench.policies.mixed import MIXED, SLOWER_MOST, Halves, compare


@pytest.mark.parametrize("cell", [Cell("map-reduce", 4.0), Cell("copilot", 2.0)], ids=lambda cell: cell.name)
def test_the_interactive_half_is_no_slower_than_under_passthrough(cell: Cell) -> None:
    base, mine = (play(Run(cell, MIXED, policy, seconds=100.0), Halves) for policy in ("passthrough", "joule"))
    row = compare(base, mine)
    assert row.interactive > 10 and row.batch_late == 0 and mine.refused == 0
    assert row.mean_ratio <= SLOWER_MOST and row.p95_ratio <= SLOWER_MOST
