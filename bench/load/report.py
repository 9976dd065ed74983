"""`joulegate-bench report`: results as one page that needs no network, and its plots as PNGs."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.load import report_html as html
from bench.load import report_plots as plots
from bench.load.report_beside import chapter as beside
from bench.load.report_beside import rows_of
from bench.load.report_data import (
    AXES,
    BY_NAME,
    CHOICES,
    MEASURES,
    against,
    at,
    differing,
    front,
    groups,
    policy_name,
    run_of,
    series,
    setting,
    words,
)
from bench.load.report_ratios import NEAR, ratios
from bench.load.report_times import arms, time_lines
from bench.load.results import SUFFIX, ResultFault, read
from bench.programs import BenchError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from bench.load.drawing import Drawing
    from bench.load.report_data import Axis, Run

PANELS = ("joules_per_output_token", "joules_per_workflow", "workflow_p50_s", "output_tokens_per_second")
UTILISATION = ("busy_share", "mean_running")
"""The first of them that was measured."""
ROWS_PRINTED = 40


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `report`."""
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULT", help="result files, or folders of them")
    parser.add_argument("--out", type=Path, default=Path("report"), metavar="FOLDER", help="(default: report)")
    parser.add_argument(
        "--baseline", type=Path, metavar="RESULT",
        help="what ratios are to (default: the plainest policy with the same load, as alike as can be)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Writes index.html and the PNGs. BenchError."""
    found = load(args.results)
    named = None
    if args.baseline is not None:
        named = next((each for each in found if each.result.path.resolve() == args.baseline.resolve()), None)
        if named is None:
            named = run_of(read(args.baseline))
            found.append(named)
    twins = rows_of([path for path in args.results if path.is_dir()])
    print(f"report: {write(found, args.out, named, twins)}")
    return 0


def load(paths: Sequence[Path]) -> list[Run]:
    """Results of files and folders, each once. ResultFault."""
    plots.need_matplotlib()
    files = [path for given in paths for path in (sorted(given.glob("*" + SUFFIX)) if given.is_dir() else [given])]
    if not files:
        raise ResultFault("no results there; name *.parquet files of joulegate-bench run, or a folder of them")
    return [run_of(read(path)) for path in dict.fromkeys(files)]


def write(runs: Sequence[Run], out: Path, named: Run | None = None, twins: Sequence[dict[str, Any]] = ()) -> Path:
    """The page of these; `twins`: rows of `joulegate-bench beside`. BenchError where it cannot be written."""

    def made(pictures: html.Pictures) -> list[tuple[str, str, str]]:
        chapters = Page(runs, pictures, named).chapters()
        if twins:
            chapters.insert(-2, ("twin", "Beside the twin", beside(twins, pictures)))
        return chapters

    return put(out, "Joulegate: results", [], made)


def put(out: Path, title: str, lead: list[str], made: Callable[[html.Pictures], list[tuple[str, str, str]]]) -> Path:
    """`made`: (anchor, title, body) of each chapter. BenchError."""
    path = out / "index.html"
    try:
        out.mkdir(parents=True, exist_ok=True)
        pictures = html.Pictures(out)
        chapters = made(pictures)
        links = html.contents([(anchor, name) for anchor, name, _ in chapters])
        body = "".join(html.chapter(anchor, name, text) for anchor, name, text in chapters)
        whole = pictures.put_into(html.page(title, "".join([*lead, links, body])))
        path.write_text(whole, encoding="utf-8")
    except OSError as error:
        raise BenchError(f"{out}: {error.strerror}; name a folder that can be written") from None
    return path


class Page:
    """Chapters of any results."""

    def __init__(self, runs: Sequence[Run], pictures: html.Pictures, named: Run | None = None) -> None:
        self.runs = runs
        self.pictures = pictures
        self._named = named
        self._by_workload: dict[str, list[Run]] = defaultdict(list)
        for run in runs:
            self._by_workload[run.workload].append(run)

    def chapters(self) -> list[tuple[str, str, str]]:
        """(anchor, title, body) each."""
        found = [("about", "About these results", self._about())]
        for name, mine in sorted(self._by_workload.items()):
            found.append((f"w-{name}", name, self._workload(name, mine)))
        return [*found, ("ratios", "Ratios", self._ratios()), ("all", "All figures", self._all())]

    def _about(self) -> str:
        """Sources, what is to be known beside the numbers, and what is not whole."""
        n = len(self.runs)
        repeats = sorted({len(run.repeats) for run in self.runs})
        notes: dict[str, list[Run]] = defaultdict(list)
        for code, told in _notes(self.runs).items():
            texts = list(dict.fromkeys(text for text, _ in told))
            notes[f"{texts[0]} ({code}{'; others alike' if len(texts) > 1 else ''})"] = [run for _, run in told]
        for run in self.runs:
            if run.result.meta["state"] != "complete":
                notes[f"not whole: {run.result.meta.get('state_detail') or run.result.meta['state']}"].append(run)
        sources = sorted({_sources(run) for run in self.runs})
        first = (
            f"{n} result{'s' if n > 1 else ''}, {' or '.join(map(str, repeats))} repeats each. Bars and ± are 95 %"
            " intervals over repeats (Student's t). A dash was not measured, and is never a zero."
        )
        listed = "".join(
            f"<li>{escape(text)}: {'all results' if len(those) == n else escape(_some(those, self.runs))}</li>"
            for text, those in sorted(notes.items())
        )
        heading = f"<p>To be known beside the numbers:</p><ul>{listed}</ul>" if listed else ""
        return "".join(f"<p>{escape(line)}</p>" for line in (first, *sources)) + heading

    def _workload(self, name: str, mine: Sequence[Run]) -> str:
        parts = [*self._paretos(name, mine), *(part for axis in AXES for part in self._against(name, axis, mine))]
        return f'<div class="plots">{"".join([*parts, *self._time_line(name, mine)])}</div>'

    def _paretos(self, name: str, mine: Sequence[Run]) -> list[str]:
        """Of the loads with several settings; of one where there are none."""
        found = [those for each in groups(mine, CHOICES) if (those := _measured(each))]
        several = [each for each in found if max(len(runs) for runs in series(each).values()) > 1]
        beside = [each for each in several if len(series(each)) > 1]
        parts = []
        for number, group in enumerate(beside or several or found[:1], 1):
            names = [each for each in differing(group) if each in NEAR]
            spots, rows = {}, []
            for policy, runs in series(group).items():
                points = [(_mean(run, "workflow_p50_s"), _mean(run, "joules_per_workflow")) for run in runs]
                best = front(points)
                order = [*best, *(index for index in range(len(runs)) if index not in best)]
                spots[policy] = [_spot(runs[index], index in best, names) for index in order]
                rows += [_row(policy, runs[index], index in best, names) for index in order]
            caption = (
                f"{_where(name, group, mine)}: lower left is better. Lines join the settings of a policy that none of"
                " its others beats in both; the faint points are those others."
            )
            head = ["policy", "setting", "on its line", "median s", "J/workflow", "missed"]
            parts.append(
                self.pictures.figure(
                    f"{name}-pareto-{number}", "Energy against latency.", caption, partial(plots.pareto, spots),
                    html.table(head, rows, (0, 1)),
                )
            )  # fmt: skip
        return parts

    def _against(self, name: str, axis: Axis, mine: Sequence[Run]) -> list[str]:
        """One figure for each set of results that differ in this and the policy alone."""
        return [
            self.pictures.figure(
                f"{name}-{axis.name}-{number}", axis.title, _where(name, group, mine), axis_plot(axis, group),
                _numbers(axis, group),
            )
            for number, group in enumerate(against(axis, mine), 1)
        ]  # fmt: skip

    def _time_line(self, name: str, mine: Sequence[Run]) -> list[str]:
        chosen = arms(mine)
        lines = time_lines(chosen)
        if not lines:
            return []
        names = [policy_name(line.run) for line in lines]
        first = lines[0]
        calls = "one call" if len(first.calls) == 1 else f"{len(first.calls)} calls"
        among = "" if len(first.calls) == 1 else " among those with several calls"
        caption = (
            f"{_where(name, chosen, mine)}: {first.workflow}, of {calls}, the one of median length under"
            f" {names[0]}{among}; the same under each policy. Under its calls stands the power of all that ran"
            " meanwhile."
        )
        return [
            self.pictures.figure(
                f"{name}-time-line", "A workflow in time.", caption, partial(plots.gantt, lines, names)
            )
        ]

    def _ratios(self) -> str:
        differ = [name for name in differing(self.runs) if name not in ("workload", "policy", "way", "tell_lengths")]
        rows = []
        for each in ratios(self.runs, self._named):
            base = "" if each.baseline is None else words(each.baseline, ["policy", *NEAR])
            rows.append(
                [
                    escape(f"{each.run.workload}: {words(each.run, ['policy', *differ])}"),
                    escape(base),
                    html.factor(each.joules),
                    html.factor(each.seconds),
                    html.number(each.run.over("missed_share"), ".1%"),
                    escape(each.why or (f"differs also: {each.differs}" if each.differs else "")),
                ]
            )
        head = ["result", "baseline", "J/workflow ÷", "median s ÷", "missed", ""]
        return (
            "<p>Each result ÷ the baseline in its row: the geometric mean over repeats that played the same workflows"
            " at the same times, and its 95 % interval. Joules are brought to one horizon: the shorter play is given"
            " its idle power for the rest. The baseline is the plainest policy with the same load; of several the most"
            " alike; of the plainest itself the one with the widest limits.</p>" + _folded(head, rows, (0, 1, 5))
        )

    def _all(self) -> str:
        differ = [name for name in differing(self.runs) if name not in ("workload", "policy")]
        shown = [each for each in MEASURES if any(run.over(each.name).mean is not None for run in self.runs)]
        rows = [[escape(f"{run.workload}: {words(run, ['policy', *differ])}"), escape(_state(run)),
                 *(html.number(run.over(each.name), each.form) for each in shown)] for run in self.runs]  # fmt: skip
        files = "".join(f"<li><code>{escape(str(run.result.path))}</code></li>" for run in self.runs)
        return (
            _folded(["result", "state", *(escape(each.title) for each in shown)], rows, (0, 1))
            + f"<details><summary>files</summary><ul>{files}</ul></details>"
        )


def _folded(head: Sequence[str], rows: Sequence[Sequence[str]], texts: Sequence[int]) -> str:
    table = html.table(head, rows, texts)
    return table if len(rows) <= ROWS_PRINTED else html.long(table, f"{len(rows)} rows")


def axis_plot(axis: Axis, group: Sequence[Run]) -> Drawing:
    """Of the figures that were measured, above this axis."""
    used = next((name for name in UTILISATION if any(run.over(name).mean is not None for run in group)), None)
    names = [name for name in (*PANELS, *([used] if used else []))
             if any(run.over(name).mean is not None for run in group)]  # fmt: skip
    lines = {
        policy: {name: [plots.Point(x, run.over(name)) for x, run in _ordered(axis, runs)] for name in names}
        for policy, runs in series(group).items()
    }
    titles = {name: BY_NAME[name].title for name in names}
    return partial(plots.panels, lines, titles, axis.label, doubling=axis.name in ("batch", "input", "output"))


def _ordered(axis: Axis, runs: Sequence[Run]) -> list[tuple[float, Run]]:
    found = [(x, run) for run in runs if (x := at(axis, run)) is not None]
    return sorted(found, key=lambda pair: pair[0])


def _numbers(axis: Axis, group: Sequence[Run]) -> str:
    shown = [each for each in MEASURES if any(run.over(each.name).mean is not None for run in group)]
    rows = [
        [escape(policy), f"{x:,.0f}", *(html.number(run.over(each.name), each.form) for each in shown)]
        for policy, runs in series(group).items()
        for x, run in _ordered(axis, runs)
    ]
    return html.table(["policy", escape(axis.label), *(escape(each.title) for each in shown)], rows)


def _where(name: str, group: Sequence[Run], everybody: Sequence[Run]) -> str:
    about = setting(group, everybody)
    return f"{name} ({about})" if about else name


def _mean(run: Run, name: str) -> float:
    return run.over(name).mean or 0.0


def _spot(run: Run, on_front: bool, names: Sequence[str]) -> plots.Spot:
    label = words(run, names) if len(names) == 1 else ""
    return plots.Spot(run.over("workflow_p50_s"), run.over("joules_per_workflow"), on_front, label)


def _row(policy: str, run: Run, on_front: bool, names: Sequence[str]) -> list[str]:
    figures = _cells(run, ("workflow_p50_s", "joules_per_workflow", "missed_share"))
    return [escape(policy), escape(words(run, names)), "yes" if on_front else "no", *figures]


def _cells(run: Run, names: Sequence[str]) -> list[str]:
    return [html.number(run.over(name), BY_NAME[name].form) for name in names]


def _measured(runs: Sequence[Run]) -> list[Run]:
    return [run for run in runs if run.over("workflow_p50_s").mean and run.over("joules_per_workflow").mean]


def _sources(run: Run) -> str:
    meta = run.result.meta
    energy, engine = meta.get("energy", {}), meta.get("engine", {})
    what = engine.get("calibration") or engine.get("url") or run.spec["engine"]
    apart = ", ".join(f"{name.upper()} {energy[name]}" for name in ("gpu", "cpu", "dram") if name in energy)
    detail = f" ({energy['detail']})" if energy.get("detail") else ""
    observed = "" if run.simulated else " The cards' limits and clocks are read, never set."
    times = meta.get("time_source", "unknown")
    return f"Engine {what}: times are {times}; joules: {apart or 'unavailable'}{detail}.{observed}"


def _state(run: Run) -> str:
    meta = run.result.meta
    source = meta.get("energy", {}).get("source", "unavailable")
    return f"{meta['state']}, {len(run.repeats)} repeats; {meta.get('time_source', '?')}, joules {source}"


def _notes(runs: Sequence[Run]) -> dict[str, list[tuple[str, Run]]]:
    """(text and result) each, by their codes."""
    found: dict[str, list[tuple[str, Run]]] = defaultdict(list)
    for run in runs:
        for note in run.result.meta.get("notes", []):
            found[note["code"]].append((note["text"], run))
    return found


def _some(those: Sequence[Run], everybody: Sequence[Run]) -> str:
    differ = [name for name in differing(everybody) if name not in ("workload", "policy")]
    shown = [f"{run.workload} {words(run, ['policy', *differ])}" for run in those[:3]]
    return f"{len(those)} of {len(everybody)}: {'; '.join(shown)}{' …' if len(those) > 3 else ''}"
