"""`joulegate-bench replay`: a recorded trace, played as any workload is."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from bench.load.options import add_spec_options, folder
from bench.load.run import add_live_options, play_all, specs_of
from bench.programs import BenchError
from workloads.trace import TraceFault, read_trace

if TYPE_CHECKING:
    import argparse

OF_A_TRACE = (
    *("workload", "preset", "input_scale", "output_scale", "parameters", "mix", "trace", "arrivals", "rate", "cv"),
    *("swing", "period_seconds", "users", "think_seconds", "workflows"),
)
"""What a trace says itself."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `replay`."""
    parser.add_argument("trace_file", metavar="TRACE.jsonl", help="as `record` writes it")
    add_spec_options(parser, without=OF_A_TRACE)
    add_live_options(parser)
    parser.add_argument("--out", type=folder, default="results", metavar="FOLDER", help="(default: results)")


def run(args: argparse.Namespace) -> int:
    """As `run`. BenchError for a file that is no trace."""
    from pathlib import Path

    try:
        trace = read_trace(Path(args.trace_file))
    except TraceFault as fault:
        raise BenchError(str(fault)) from None
    if args.seconds is None:
        speed = float(args.speed) if _is_number(args.speed) else 1.0
        args.seconds = str(max(1, math.floor(trace.workflows[-1].at_seconds / speed) + 1))
    own = {"workload": "trace", "arrivals": "trace", "trace": args.trace_file}
    return play_all(specs_of(args, **own), args)


def _is_number(text: str | None) -> bool:
    try:
        return text is not None and float(text) > 0
    except ValueError:
        return False
