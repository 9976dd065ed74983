"""`joulegate-bench report`: results as one page that needs no network, and its plots as PNGs."""

from __future__ import annotations

import base64
from collections import defaultdict
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from bench.load import report_plots as plots
from bench.load.figures import FIGURES
from bench.load.report_data import CALLS_SHOWN, mean, others, point, ratios, time_line
from bench.load.results import SUFFIX, ResultFault, read
from bench.programs import BenchError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from bench.load.report_data import Point
    from bench.load.results import Result

AXES = (
    ("in_flight", "batch: calls at the engine at once"),
    ("cap_watts", "power cap of each card, W"),
    ("input_scale", "prompt lengths, times the workload's"),
    ("output_scale", "answer lengths, times the workload's"),
)
CHOICES = ("policy", "policy_options", "in_flight", "cap_watts", "stretch", "deadline_ms", "workflow_class")
"""What an operator chooses for the same work: what a line of energy against latency runs over."""
TIME_LINES_MAX = 8
STYLE = """
:root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:auto;padding:1rem;
background:#fff;color:#1a1a1a}figure{margin:1rem 0}img{max-width:100%;height:auto}.wide{overflow-x:auto}
table{border-collapse:collapse;font-size:.85rem}td,th{border:1px solid #8888;padding:.2rem .5rem;text-align:left}
@media screen and (prefers-color-scheme:dark){body{background:#16181c;color:#e6e6e6}}
@media print{body{background:#fff;color:#000;max-width:none}figure,tr{break-inside:avoid}}
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULT", help="result files, or folders of them")
    parser.add_argument("--out", type=Path, default=Path("report"), metavar="FOLDER", help="(default: report)")


def run(args: argparse.Namespace) -> int:
    """Writes index.html and the PNGs. BenchError."""
    plots.need_matplotlib()
    found = [
        read(path)
        for given in args.results
        for path in (sorted(given.glob("*" + SUFFIX)) if given.is_dir() else [given])
    ]
    if not found:
        raise ResultFault("no results there; name *.parquet files of joulegate-bench run, or a folder of them")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        page = args.out / "index.html"
        page.write_text(_Page(found, args.out).html(), encoding="utf-8")
    except OSError as error:
        raise BenchError(f"{args.out}: {error.strerror}; name a folder that can be written") from None
    print(f"report: {page}")
    return 0


class _Page:
    def __init__(self, results: Sequence[Result], out: Path) -> None:
        self.results, self.out = results, out
        self.policies = sorted({each.meta["spec"]["policy"] for each in results})

    def html(self) -> str:
        workloads = sorted({each.meta["spec"]["workload"] for each in self.results})
        body = "".join(self._workload(name) for name in workloads)
        return (
            '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
            f"<title>Joulegate: results</title><style>{STYLE}</style><h1>Results</h1><p>{len(self.results)} results. "
            "Bars are 95 % intervals over repeats. A missing number was not measured.</p>"
            f"{self._ratios()}{body}{self._time_lines()}{self._sources()}</html>"
        )

    def _figure(self, name: str, caption: str, light: bytes, dark: bytes) -> str:
        (self.out / f"{name}.png").write_bytes(light)
        first, second = (base64.b64encode(each).decode() for each in (dark, light))
        return (
            f'<figure><picture><source media="screen and (prefers-color-scheme:dark)" '
            f'srcset="data:image/png;base64,{first}"><img alt="{escape(caption)}" src="data:image/png;base64,{second}">'
            f"</picture><figcaption>{escape(caption)}</figcaption></figure>"
        )

    def _lines(self, name: str, caption: str, series: dict[str, list[Point]], x: str, y: str) -> str:
        light, dark = (plots.lines(series, x, y, self.policies, style) for style in ("light", "dark"))
        return self._figure(name, caption, light, dark)

    def _workload(self, workload: str) -> str:
        mine = [each for each in self.results if each.meta["spec"]["workload"] == workload]
        groups: dict[str, list[Result]] = defaultdict(list)
        for each in mine:
            groups[others(each, *CHOICES)].append(each)
        parts = [f"<h2>{escape(workload)}</h2>"]
        for at, group in enumerate(groups.values(), 1):
            series: dict[str, list[Point]] = defaultdict(list)
            for each in group:
                if found := point(each, mean(each, "workflow_p50_s"), "joules_per_workflow"):
                    series[each.meta["spec"]["policy"]].append(found)
            if series:
                ordered = {name: sorted(points) for name, points in series.items()}
                caption = f"{workload}: energy against latency; lower left is better. As {group[0].path.stem}"
                name = f"{workload}-pareto-{at}"
                x, y = "median seconds of a workflow", "GPU joules of a workflow"
                parts.append(self._lines(name, caption, ordered, x, y))
        parts += [self._against(workload, mine, field, label) for field, label in AXES]
        return "".join(parts)

    def _against(self, workload: str, mine: Sequence[Result], field: str, label: str) -> str:
        """One figure for each set of results that differ in this field and the policy alone."""
        groups: dict[str, list[Result]] = defaultdict(list)
        for each in mine:
            groups[others(each, field, "policy", "policy_options")].append(each)
        parts: list[str] = []
        for group in groups.values():
            series: dict[str, list[Point]] = defaultdict(list)
            for each in group:
                if found := point(each, each.meta["spec"][field], "joules_per_output_token"):
                    series[each.meta["spec"]["policy"]].append(found)
            if len({each.x for points in series.values() for each in points}) < 2:
                continue
            ordered = {name: sorted(points) for name, points in series.items()}
            name = f"{workload}-{field}-{len(parts) + 1}"
            caption = f"{workload}: J/token against {label}"
            parts.append(self._lines(name, caption, ordered, label, "GPU joules per output token"))
        return "".join(parts)

    def _ratios(self) -> str:
        head = "".join(f"<th>{each}" for each in ("result", "baseline", "J/workflow ÷", "p50 ÷", ""))
        rows = "".join(
            f"<tr><td>{escape(each.result.path.stem)}<td>{escape(each.baseline.path.stem) if each.baseline else ''}"
            f"<td>{_number(each.joules, '.3f')}<td>{_number(each.seconds, '.3f')}<td>{escape(each.why)}"
            for each in ratios(self.results)
        )
        return (
            "<h2>Ratios</h2><p>Each result over its own horizon, idle time between calls included; "
            "<code>joulegate-bench compare</code> brings two to one horizon.</p>"
            f'<div class="wide"><table><tr>{head}{rows}</table></div>'
        )

    def _time_lines(self) -> str:
        parts = [
            f"<h2>Time lines</h2><p>Workflows of median length in the first repeat: at most {CALLS_SHOWN} calls.</p>"
        ]
        for result in self.results[:TIME_LINES_MAX]:
            if line := time_line(result):
                light, dark = (plots.gantt(line, style) for style in ("light", "dark"))
                caption = f"{result.path.stem}: {line.workflow}"
                parts.append(self._figure(f"time-line-{result.path.stem}", caption, light, dark))
        if len(self.results) > TIME_LINES_MAX:
            parts.append(f"<p>Only of the first {TIME_LINES_MAX} results.</p>")
        return "".join(parts)

    def _sources(self) -> str:
        head = "".join(f"<th>{escape(each.head)}" for each in FIGURES)
        rows = ""
        for each in self.results:
            cells = "".join(f"<td>{_number(mean(each, figure.name), figure.form)}" for figure in FIGURES)
            meta = each.meta
            rows += (
                f"<tr><td>{escape(each.path.stem)}<td>{escape(meta['state'])}<td>{escape(meta['time_source'])}"
                f"<td>{escape(meta['energy']['source'])}{cells}"
            )
        table = f"<tr><th>result<th>state<th>times<th>joules{head}{rows}"
        return f'<h2>All figures</h2><div class="wide"><table>{table}</table></div>'


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
