"""`joule` fills an engine only up to where tokens still come fast enough, in virtual time."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

import pytest

from bench.policies import lab
from bench.policies.cells import PROMISES, Cell
from scheduler.events import CallFinished, FirstToken

if TYPE_CHECKING:
    from scheduler.actions import Action
    from scheduler.events import Event

BY_NAME = {promise.name: promise for promise in PROMISES}


def gaps_p95(monkeypatch: pytest.MonkeyPatch, run: lab.Run) -> tuple[float, lab.Outcome]:
    """Of calls' mean gaps between tokens the 95th percentile, seconds."""
    first: dict[str, float] = {}
    gaps: list[float] = []

    class Watched(lab.Timed):
        def handle(self, event: Event, now: float) -> list[Action]:
            if isinstance(event, FirstToken):
                first[event.call_id] = now
            elif isinstance(event, CallFinished) and (event.output_tokens or 0) > 1:
                gaps.append((now - first.pop(event.call_id)) / (event.output_tokens - 1))  # type: ignore[operator]
            return super().handle(event, now)

    monkeypatch.setattr(lab, "Timed", Watched)
    outcome = lab.play(run)
    return sorted(gaps)[ceil(0.95 * len(gaps)) - 1], outcome


@pytest.mark.parametrize(
    ("cell", "promise", "target"),
    [
        (Cell("copilot", 2.0), "10x", 0.010),
        (Cell("chain", 12.0), "10x", 0.015),
        (Cell("copilot", 5.0), "10x", 0.012),
    ],
    ids=str,
)
def test_tokens_come_as_fast_as_was_asked_for(
    cell: Cell, promise: str, target: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = lab.Run(cell, BY_NAME[promise], "joule", seconds=100.0)
    free, _ = gaps_p95(monkeypatch, run)
    kept, outcome = gaps_p95(monkeypatch, run._replace(options=(("itl_seconds", target),)))
    assert kept <= target < free, f"{kept:.4f} of {target}, without a target {free:.4f}"
    assert outcome.missed <= 0.02 * outcome.workflows and not outcome.refused
