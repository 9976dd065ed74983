"""One whole experiment on the twin and its report, to look at: `joulegate-bench experiments --example FOLDER`."""

from __future__ import annotations

import json
import math
from argparse import Namespace
from time import time
from typing import TYPE_CHECKING

from bench.experiments import page
from bench.experiments.live import LiveRun
from scheduler.experiments.definition import Definition, guardrail_of
from scheduler.experiments.saved import end, head

if TYPE_CHECKING:
    from pathlib import Path

    from bench.experiments.stage import Shape
    from scheduler.experiments.definition import Arm

PAIRS = 60
RATE, SWING = 1.2, 0.6
"""Workflows a second, and how far that goes up and down."""
WAVE_SECONDS = 7200.0


def example(folder: Path, shape: Shape, arms: tuple[Arm, Arm], seed: int) -> int:
    """Some hours of traffic that comes and goes; blocks.jsonl as a gateway writes it, and the report beside it."""
    definition = Definition(
        "example", arms, block_seconds=shape.block_seconds, washout_seconds=shape.washout_seconds, pairs=PAIRS,
        seed=seed, ramp_up=(0.25,), guardrails=(guardrail_of("p95_workflow_seconds:+50%"), guardrail_of("errors:+1pp")),
    )  # fmt: skip

    def rate(now: float) -> float:
        return RATE + SWING * math.sin(2 * math.pi * now / WAVE_SECONDS)

    ran = LiveRun(definition, shape, f"example {seed}", rate, RATE + SWING).run()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "blocks.jsonl"
    lines = [head(definition, time()), *(row.as_json() for row in ran.rows), end(ran.experiment)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return page.run(Namespace(blocks=path, out=None))
