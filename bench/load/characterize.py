"""`joulegate-bench characterize`: what batch, cap, lengths and deadlines cost; six findings tested."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from bench.load import report_plots as plots
from bench.load.cell import file_name
from bench.load.load import trace_of
from bench.load.options import folder
from bench.load.report import Page, put
from bench.load.report_data import run_of
from bench.load.results import need_pyarrow, read, read_meta
from bench.load.run import INTERRUPTED, add_live_options
from bench.load.spec import TWIN
from bench.load.study import POLICIES, TRACED_SECONDS, WORKLOADS, size_of, sweep_text
from bench.load.study_page import Chapter
from bench.load.sweep import run as sweep
from bench.load.sweep_file import read_sweep
from bench.programs import BenchError

if TYPE_CHECKING:
    import argparse
    from pathlib import Path
    from typing import Any

    from bench.load.report_data import Run

FILE = "characterize.toml"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `characterize`."""
    parser.add_argument("--quick", action="store_true", help="shorter plays of smaller workflows: minutes on the twin")
    parser.add_argument(
        "--engine", default="twin", metavar="NAME", help="twin, twin:CALIBRATION or a URL (default: twin)"
    )
    parser.add_argument("--workload", metavar="NAME[,NAME]", help=f"(default: {','.join(WORKLOADS)})")
    parser.add_argument("--trace", metavar="FILE", help="your own recorded workflows instead: joulegate-bench record")
    parser.add_argument("--preset", metavar="NAME", help="size of the workflows: published, small or cpu")
    parser.add_argument(
        "--policy", metavar="NAME[,NAME]", help=f"(default: {','.join(POLICIES)}); none is in every one"
    )
    parser.add_argument("--repeats", type=int, metavar="N", help="plays of each configuration")
    parser.add_argument("--seed", type=int, metavar="N", help="of workflows and arrivals")
    parser.add_argument("--output", type=folder, default="results/characterize", metavar="FOLDER",
                        help="results, page and pictures go there (default: results/characterize)")  # fmt: skip
    parser.add_argument("--workers", type=int, metavar="N", help="processes, on the twin (default: all cores)")
    parser.add_argument("--ray", metavar="ADDRESS", help="a Ray cluster instead: its address, or auto or local")
    parser.add_argument(
        "--check", action="store_true", help="write the sweep's file, say how many plays it has, and end"
    )
    add_live_options(parser)


def run(args: argparse.Namespace) -> int:
    """Play what is missing, then write the page. 0; 1 where configurations failed; 130 after Ctrl-C. BenchError."""
    need_pyarrow()
    plots.need_matplotlib()
    path = _file(args)
    args.file, args.out = path, args.output / "results"
    code = sweep(args)
    if args.check or code == INTERRUPTED:
        return code
    cells = [args.out / file_name(spec) for spec in read_sweep(path).cells]
    runs = [run_of(read(cell)) for cell in cells if cell.exists() and read_meta(cell)["state"] == "complete"]
    if not runs:
        raise BenchError("no configuration was played to its end, so there is no page")
    print(f"report: {page(runs, args.output / 'report')}")
    return code


def _file(args: argparse.Namespace) -> Path:
    """The sweep's file, written anew. BenchError."""
    if args.trace is not None and args.workload is not None:
        raise BenchError("--trace and --workload: a characterisation is of one or the other")
    workloads = ("trace",) if args.trace is not None else tuple((args.workload or ",".join(WORKLOADS)).split(","))
    policies = tuple(dict.fromkeys(["none", *(args.policy or ",".join(POLICIES)).split(",")]))
    size = size_of(args.engine, quick=args.quick)
    more: dict[str, Any] = {name: value for name in ("trace", "preset", "repeats", "seed")
                            if (value := getattr(args, name)) is not None}  # fmt: skip
    if args.trace is not None:
        more = _traced(args) | more
    if args.preset not in (None, "published"):
        size = replace(size, parameters={})  # it has lengths of its own
    text = sweep_text(size, args.engine, workloads, policies, more)
    path: Path = args.output / FILE
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BenchError(f"{path}: {error.strerror}; name an --output that can be written") from None
    return path


def _traced(args: argparse.Namespace) -> dict[str, Any]:
    """All of the trace, or its beginning with --quick. On the twin once: each repeat would be the same. BenchError."""
    seconds = math.floor(trace_of(args.trace).workflows[-1].at_seconds) + 1.0
    found = {"seconds": min(seconds, TRACED_SECONDS) if args.quick else seconds}
    return found | ({"repeats": 1} if args.engine.partition(":")[0] == TWIN else {})


def page(runs: list[Run], out: Path) -> Path:
    """The characterisation first, then what any report has. BenchError."""

    def made(pictures: Any) -> list[tuple[str, str, str]]:
        chapter = Chapter(runs, pictures)
        return [*chapter.chapters(), *Page(runs, pictures).chapters()]

    return put(out, "Joulegate: what workflows cost", [], made)
