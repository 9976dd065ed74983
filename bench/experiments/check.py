"""`joulegate-bench experiments`: do experiments say what is true? The properties on thousands of simulated ones.

Blocks are played on the twin, each stretch of arrivals under both policies and after each of the two; experiments are
composed of them (`compose.py`). Guardrail stops and the coin per request are whole runs on the twin.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bench.experiments.extra import with_extra
from scheduler.policies import POLICIES

if TYPE_CHECKING:
    import argparse


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `experiments`."""
    parser.add_argument("--experiments", type=int, default=4000, help="simulated for each line (default: 4000)")
    parser.add_argument("--items", type=int, default=100, help="stretches of arrivals at each load (default: 100)")
    parser.add_argument("--treatment", default="fifo", choices=tuple(POLICIES), help="(default: fifo)")
    parser.add_argument("--max-in-flight", type=int, default=4, metavar="N", help="fifo's (default: 4)")
    parser.add_argument("--calibration", default="h200-llama-3.1-8b", metavar="NAME")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--stops", type=int, default=40, help="runs with a harmful treatment (default: 40)")
    parser.add_argument("--example", type=Path, metavar="FOLDER", help="instead: one experiment, its blocks and report")
    parser.add_argument("--fresh", action="store_true", help="play the blocks anew, though they are kept from before")


def run(args: argparse.Namespace) -> int:
    """See `table.run`. BenchError without the extra's packages."""
    return with_extra("bench.experiments.table", args)
