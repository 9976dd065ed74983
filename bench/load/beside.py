"""`joulegate-bench beside RESULTS…`: what was measured on a real engine, and what the twin says of the same plays.

Each result is played again on the twin, twice. With the same sends: every call comes to the twin when it came to the
engine, so that what differs is the twin's. By itself: workflows arrive as they did and the policy decides anew, as in a
prediction. Ratios are to the engine without a gateway, or to `passthrough` where that was not played.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.load.cell import play_virtual
from bench.load.compare import SAME_LOAD, equal_horizon
from bench.load.figures import quantile
from bench.load.load import load_of
from bench.load.resent import resent
from bench.load.results import SUFFIX, read
from bench.load.spec import AS_IS, TWIN, of
from bench.programs import BenchError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator, Sequence

    from bench.load.spec import Spec

Row = dict[str, Any]
BASELINES = (AS_IS, "passthrough")


class Play(NamedTuple):
    """One repeat of a configuration, measured or simulated."""

    spec: Spec
    repeat: Row
    workflows: list[Row]
    calls: list[Row]

    @property
    def joules(self) -> float | None:
        """A workflow, until the last answer of all."""
        return _over(self.repeat["gpu_joules"], self.repeat["good_workflows"])

    @property
    def tail_seconds(self) -> float:
        """Time after the last arrival without a call at the engine."""
        begun = self.repeat["arrival_s"] or 0.0
        spans = sorted((at_engine(call), call["ended_s"]) for call in self.calls if call["good"])
        idle, until = 0.0, begun
        for start, end in spans:
            idle += max(0.0, start - until)
            until = max(until, end)
        return idle

    @property
    def joules_without_tail(self) -> float | None:
        """Of the play. Where arrivals end but calls are still held, the engine idles for want of company that in
        endless traffic would come: that time at idle power is taken out."""
        joules, idle = self.repeat["gpu_joules"], self.repeat["idle_watts"]
        return None if joules is None or idle is None else joules - idle * self.tail_seconds

    def seconds(self, share: float) -> float | None:
        """Quantile of workflow times."""
        return quantile([each["seconds"] for each in self.workflows if each["good"]], share)


class Beside(NamedTuple):
    """A play, its twin, and the play that it is held against (None: there is none, or this is it)."""

    measured: Play
    resent: Play
    """The same sends."""
    twin: Play
    """The policy's own decisions."""
    baseline: Play | None
    twin_baseline: Play | None


def at_engine(call: Row) -> float:
    """When a call came to its engine, whoever sent it."""
    return max(float(call["sent_s"]), float(call["intended_s"]) + float(call["held_s"] or 0.0))


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `beside`."""
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULT", help="results of real engines, or folders")
    parser.add_argument("--calibration", metavar="NAME", help="the twin's (default: the one of the isolated times)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")


def run(args: argparse.Namespace) -> int:
    """Print the two tables. 0; BenchError for what is no result of a real engine."""
    found = beside(files_of(args.results), args.calibration)
    rows = [row_of(each) for each in found]
    print("\n".join(lines(rows)))
    if args.json is not None:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0


def files_of(paths: Iterable[Path]) -> list[Path]:
    """Results by name, and all of a folder. BenchError for a folder without one."""
    files: list[Path] = []
    for path in paths:
        inside = sorted(path.glob(f"*{SUFFIX}")) if path.is_dir() else [path]
        if not inside:
            raise BenchError(f"{path}: has no results (*{SUFFIX})")
        files += inside
    return files


def beside(files: Sequence[Path], calibration: str | None) -> list[Beside]:
    """All whole repeats, by workload, seed and promise."""
    measured = [play for path in files for play in plays_of(path)]
    if not measured:
        raise BenchError("no repeat was played to its end")
    twins = [on_twin(play, calibration) for play in measured]
    found = []
    for at in sorted(range(len(measured)), key=lambda at: _order(measured[at])):
        base = baseline_of(measured[at], measured)
        pair = (None, None) if base is None else (measured[base], twins[base])
        found.append(Beside(measured[at], same_sends(measured[at], calibration), twins[at], *pair))
    return found


def plays_of(path: Path) -> list[Play]:
    """Of one result. BenchError for one of the twin's."""
    result = read(path)
    if result.meta["time_source"] != "measured" and result.meta["engine"].get("kind") != "url":
        raise BenchError(f"{path}: was played on the twin in virtual time; there is nothing to set beside it")
    spec = of(result.meta["spec"])
    return [
        Play(spec, row, *(_of_repeat(result.rows(kind).to_pylist(), row["repeat"]) for kind in ("workflow", "call")))
        for row in result.rows("repeat").to_pylist()
        if row["complete"]
    ]


def _of_repeat(rows: list[Row], repeat: int) -> list[Row]:
    return [row for row in rows if row["repeat"] == repeat]


def on_twin(play: Play, calibration: str | None) -> Play:
    """The same play in virtual time."""
    values = play.spec.document() | {"engine": f"{TWIN}:{calibration or play.spec.calibration}", "warm_up_seconds": 0.0}
    spec = of({name: value for name, value in values.items() if value is not None})
    rows = play_virtual(spec, play.repeat["repeat"]).rows
    return Play(spec, rows["repeat"][0], rows["workflow"], rows["call"])


def same_sends(play: Play, calibration: str | None) -> Play:
    """What the twin makes of the calls as they came to the engine."""
    repeat = play.repeat["repeat"]
    times = {(call["workflow"], call["node"]): at_engine(call) for call in play.calls if call["good"]}
    rows = resent(load_of(play.spec, repeat), repeat, times, calibration or play.spec.calibration)
    return Play(play.spec, rows["repeat"][0], rows["workflow"], rows["call"])


def baseline_of(play: Play, plays: Sequence[Play]) -> int | None:
    """Which one it is held against: of the same load and repeat."""
    for policy in BASELINES:
        if play.spec.policy == policy:
            return None
        for at, other in enumerate(plays):
            same = all(getattr(other.spec, name) == getattr(play.spec, name) for name in SAME_LOAD)
            if same and other.spec.policy == policy and other.repeat["repeat"] == play.repeat["repeat"]:
                return at
    return None


def promise_of(spec: Spec) -> str:
    """In short."""
    parts = [] if spec.workflow_class is None else [spec.workflow_class]
    parts += [] if spec.stretch is None else [f"{spec.stretch:g} x"]
    parts += [] if spec.deadline_ms is None else [f"{spec.deadline_ms / 1e3:g} s"]
    return " ".join(parts) or "none"


def _order(play: Play) -> tuple[Any, ...]:
    spec, policies = play.spec, (*BASELINES, "")
    place = policies.index(spec.policy) if spec.policy in policies else len(policies)
    return (
        spec.workload,
        spec.seed,
        play.repeat["repeat"],
        place,
        spec.policy,
        spec.stretch or 0.0,
        spec.deadline_ms or 0.0,
    )


def row_of(each: Beside) -> Row:
    """For JSON and the tables. Null: not known."""
    measured, same, twin = each.measured, each.resent, each.twin
    row: Row = {
        "workload": measured.spec.workload, "rate": measured.spec.rate, "policy": measured.spec.policy,
        "promise": promise_of(measured.spec), "seed": measured.spec.seed, "repeat": measured.repeat["repeat"],
        "workflows": measured.repeat["workflows"], "calls": measured.repeat["calls"],
        "failed_calls": measured.repeat["failed_calls"], "missed_workflows": measured.repeat["missed_workflows"],
        "twin_missed_workflows": twin.repeat["missed_workflows"], "energy_source": measured.repeat["energy_source"],
        "seconds": measured.repeat["ended_s"], "tail_seconds": measured.tail_seconds,
        "idle_watts": measured.repeat["idle_watts"],
    }  # fmt: skip
    plays = (measured, same, twin)
    figures: dict[str, list[float | None]] = {
        "joules_per_workflow": [play.joules for play in plays],
        "workflow_p50_s": [play.seconds(0.5) for play in plays],
        "workflow_p95_s": [play.seconds(0.95) for play in plays],
    }
    for name, (mine, sent, its) in figures.items():
        row |= {name: mine, f"same_sends_{name}": sent, f"twin_{name}": its}
        row |= {f"same_sends_{name}_error": _error(sent, mine), f"twin_{name}_error": _error(its, mine)}
    row |= {f"ratio_{name}": value for name, value in ratios(measured, each.baseline).items()}
    row |= {f"twin_ratio_{name}": value for name, value in ratios(twin, each.twin_baseline).items()}
    row["baseline"] = None if each.baseline is None else each.baseline.spec.policy
    return row


def ratios(play: Play, base: Play | None) -> dict[str, float | None]:
    """To the baseline: joules over one horizon, joules with idle tails cut from both, and the median time."""
    if base is None:
        return {"joules": None, "joules_without_tail": None, "p50": None}
    before, after = equal_horizon(base.repeat, play.repeat)
    return {
        "joules": _over(after, before),
        "joules_without_tail": _over(play.joules_without_tail, base.joules_without_tail),
        "p50": _over(play.seconds(0.5), base.seconds(0.5)),
    }


def _over(value: float | None, of_: float | None) -> float | None:
    return None if value is None or not of_ else value / of_


def _error(predicted: float | None, measured: float | None) -> float | None:
    ratio = _over(predicted, measured)
    return None if ratio is None else ratio - 1


HEADS = (
    ("", "workload", ""), ("", "policy", ""), ("", "promise", ""), ("seed", "seed", "d"), ("n", "workflows", "d"),
    ("J/workflow", "joules_per_workflow", ",.1f"), ("sends", "same_sends_joules_per_workflow_error", "+.1%"),
    ("twin", "twin_joules_per_workflow_error", "+.1%"),
    ("p50 s", "workflow_p50_s", ".2f"), ("sends", "same_sends_workflow_p50_s_error", "+.1%"),
    ("p95 s", "workflow_p95_s", ".2f"), ("sends", "same_sends_workflow_p95_s_error", "+.1%"),
    ("missed", "missed_workflows", "d"), ("J ratio", "ratio_joules", ".3f"), ("twin", "twin_ratio_joules", ".3f"),
    ("no tail", "ratio_joules_without_tail", ".3f"), ("twin", "twin_ratio_joules_without_tail", ".3f"),
    ("p50 ratio", "ratio_p50", ".3f"),
)  # fmt: skip
"""Head, member of a row, form. `sends`: the twin's error with the same sends; `twin`: where the policy decides anew."""
ERRORS = (
    ("same_sends_joules_per_workflow_error", "J/workflow, same sends"),
    ("same_sends_workflow_p50_s_error", "p50, same sends"),
    ("same_sends_workflow_p95_s_error", "p95, same sends"),
    ("twin_joules_per_workflow_error", "J/workflow, policy anew"),
)


def lines(rows: Sequence[Row]) -> Iterator[str]:
    """The table, a play a line, and what it comes to."""
    cells = [[head for head, _, _ in HEADS]]
    cells += [[cell(row[name], form) for _, name, form in HEADS] for row in rows]
    widths = [max(len(row[at]) for row in cells) for at in range(len(HEADS))]
    for row in cells:
        padded = [
            cell.rjust(width) if form else cell.ljust(width)
            for cell, width, (_, _, form) in zip(row, widths, HEADS, strict=True)
        ]
        yield "  ".join(padded).rstrip()
    yield ""
    yield from errors(rows)
    sources = sorted({str(row["energy_source"]) for row in rows})
    yield (
        f"Joules are {', '.join(sources)}. J ratio: to the baseline over one horizon, the shorter play idling for the"
        " rest; no tail: without the idle time behind the last arrival, in both."
    )


def errors(rows: Sequence[Row]) -> Iterator[str]:
    """The twin's, over all plays."""
    for name, words in ERRORS:
        found = [abs(row[name]) for row in rows if row[name] is not None]
        if found:
            yield f"twin, {words}: mean error {sum(found) / len(found):.1%}, worst {max(found):.1%} of {len(found)}"


def cell(value: Any, form: str) -> str:
    """As the table has it: a dash for what is not known."""
    return "-" if value is None else f"{value:{form}}"
