"""`joulegate-bench experiment-report`: an experiment's blocks as one page that needs nothing else, and as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bench.experiments.extra import with_extra

if TYPE_CHECKING:
    import argparse


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `experiment-report`."""
    parser.add_argument("blocks", type=Path, help="the experiment's blocks.jsonl, as the gateway wrote it")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where to write (default: beside the blocks)")


def run(args: argparse.Namespace) -> int:
    """See `page.run`. BenchError without the extra's packages."""
    return with_extra("bench.experiments.page", args)
