"""More comes than the engine keeps up with: `joule` lets through first what needs least, as `las` does."""

from __future__ import annotations

from statistics import fmean

from bench.policies.cells import Cell
from bench.policies.classics import NOTHING
from bench.policies.lab import Run, play


def test_workflows_are_done_sooner_on_average_where_there_is_too_much() -> None:
    options = (("max_in_flight", 16),)
    run = Run(Cell("composite", 20.0), NOTHING, "fifo", options, 30.0)
    fifo, joule = play(run), play(run._replace(policy="joule"))
    assert joule.workflows == fifo.workflows > 20
    assert fmean(joule.seconds) < 0.8 * fmean(fifo.seconds)
