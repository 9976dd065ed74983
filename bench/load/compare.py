"""`joulegate-bench compare A B`: what did B cost and take of what A did, repeat by repeat? Refuses unlike work."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.load.figures import Interval, interval, quantile
from bench.load.results import read
from bench.load.run import labels_of
from bench.load.spec import of
from bench.programs import BenchError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from bench.load.results import Result

UNLIKE_SHARE = 0.01
SAME_LOAD = (
    "workload", "preset", "input_scale", "output_scale", "parameters", "mix", "trace", "arrivals", "rate", "cv",
    "swing", "period_seconds", "users", "think_seconds", "workflows", "speed", "seconds", "seed", "free_running",
)  # fmt: skip
"""What must be equal in both: else repeat n of one is not repeat n of the other."""
Row = dict[str, Any]


class Side(NamedTuple):
    """One result's whole repeats."""

    repeats: dict[int, Row]
    workflows: dict[int, dict[str, Row]]
    calls: dict[int, list[Row]]


class Compared(NamedTuple):
    """A figure of both, and how B stands to A: a ratio, or for shares a difference."""

    name: str
    unit: str
    a: float | None
    b: float | None
    change: Interval
    is_ratio: bool


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `compare`."""
    parser.add_argument("a", type=Path, metavar="A.parquet", help="the baseline")
    parser.add_argument("b", type=Path, metavar="B.parquet", help="what is compared with it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")


def run(args: argparse.Namespace) -> int:
    """Print. 0; BenchError for results that are not to be compared."""
    a, b = read(args.a), read(args.b)
    common = check(a, b)
    figures = compare(side(a, common), side(b, common))
    labels = labels_of([of(result.meta["spec"]) for result in (a, b)])
    for line in lines(figures, labels, len(common), (a, b)):
        print(line)
    if args.json is not None:
        document = {
            "a": str(args.a), "b": str(args.b), "repeats": common,
            "figures": [{**each._asdict(), "change": each.change._asdict()} for each in figures],
        }  # fmt: skip
        try:
            args.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise BenchError(f"--json {args.json}: {error.strerror}") from None
    return 0


def check(a: Result, b: Result) -> list[int]:
    """The repeats that both have. BenchError that says why they cannot be compared."""
    specs = a.meta["spec"], b.meta["spec"]
    unlike = [name for name in SAME_LOAD if specs[0][name] != specs[1][name]]
    if unlike:
        shown = "; ".join(f"{name}: {specs[0][name]} and {specs[1][name]}" for name in unlike)
        raise BenchError(f"they played different loads, so nothing is paired ({shown})")
    kinds = {result.meta["time_source"] for result in (a, b)}
    if len(kinds) > 1:
        raise BenchError("one was measured on a real engine and the other simulated: that is a check of the twin")
    rows = [{row["repeat"]: row for row in result.rows("repeat").to_pylist() if row["complete"]} for result in (a, b)]
    common = sorted(rows[0].keys() & rows[1].keys())
    if not common:
        raise BenchError("no repeat was played to its end in both")
    for name in ("prompt_tokens", "output_tokens"):
        for repeat in common:
            tokens = [each[repeat][name] for each in rows]
            if None in tokens:
                raise BenchError(
                    f"repeat {repeat}: {name} are not known of both, so like work cannot be told from unlike"
                )
            if abs(tokens[0] - tokens[1]) > UNLIKE_SHARE * max(tokens):
                raise BenchError(
                    f"unlike work: in repeat {repeat} A has {tokens[0]:,} {name} and B {tokens[1]:,}, more than"
                    f" {UNLIKE_SHARE:.0%} apart (failed calls, answers of free length, or other texts)"
                )
    return common


def side(result: Result, repeats: list[int]) -> Side:
    """The rows of these repeats."""
    whole = {row["repeat"]: row for row in result.rows("repeat").to_pylist() if row["repeat"] in repeats}
    workflows: dict[int, dict[str, Row]] = {repeat: {} for repeat in repeats}
    for row in result.rows("workflow", ["repeat", "workflow", "seconds", "good", "missed"]).to_pylist():
        if row["repeat"] in workflows:
            workflows[row["repeat"]][row["workflow"]] = row
    calls: dict[int, list[Row]] = {repeat: [] for repeat in repeats}
    for row in result.rows("call", ["repeat", "intended_s", "first_token_s", "good"]).to_pylist():
        if row["repeat"] in calls and row["good"]:
            calls[row["repeat"]].append(row)
    return Side(whole, workflows, calls)


def compare(a: Side, b: Side) -> list[Compared]:
    """All figures."""
    repeats = sorted(a.repeats)
    joules = [equal_horizon(a.repeats[repeat], b.repeats[repeat]) for repeat in repeats]
    done = (
        [a.repeats[repeat]["good_workflows"] for repeat in repeats],
        [b.repeats[repeat]["good_workflows"] for repeat in repeats],
    )
    found = [
        _ratio(
            "J/workflow, equal horizons", "J", *(_each(pairs, n) for pairs, n in zip(_sides(joules), done, strict=True))
        )
    ]
    for name, unit, figure in _FIGURES:
        found.append(_ratio(name, unit, [figure(a, each) for each in repeats], [figure(b, each) for each in repeats]))
    found.append(_paired(a, b, repeats))
    missed = [[_missed(one, each) for each in repeats] for one in (a, b)]
    differences = [_minus(after, before) for before, after in zip(*missed, strict=True)]
    found.append(Compared("deadlines missed", "", _mean(missed[0]), _mean(missed[1]), interval(differences), False))
    return found


def equal_horizon(a: Row, b: Row) -> tuple[float | None, float | None]:
    """Joules of both until the later one's last answer: the other idles for the rest."""
    horizon = max(a["ended_s"], b["ended_s"])
    found = []
    for row in (a, b):
        rest, idle = horizon - row["ended_s"], row["idle_watts"]
        known = row["gpu_joules"] is not None and (idle is not None or rest == 0)
        found.append(row["gpu_joules"] + (idle or 0.0) * rest if known else None)
    return found[0], found[1]


def _sides(pairs: list[tuple[float | None, float | None]]) -> tuple[list[float | None], list[float | None]]:
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def _each(joules: list[float | None], workflows: list[int]) -> list[float | None]:
    return [each / n if each is not None and n else None for each, n in zip(joules, workflows, strict=True)]


def _seconds(one: Side, repeat: int, share: float) -> float | None:
    return quantile([row["seconds"] for row in one.workflows[repeat].values() if row["good"]], share)


def _first_token(one: Side, repeat: int) -> float | None:
    firsts = [row["first_token_s"] for row in one.calls[repeat]]
    if None in firsts:
        return None
    return quantile([row["first_token_s"] - row["intended_s"] for row in one.calls[repeat]], 0.5)


def _per_second(one: Side, repeat: int, of: str) -> float | None:
    row = one.repeats[repeat]
    return row["output_tokens"] / row[of] if row[of] else None


_FIGURES: tuple[tuple[str, str, Callable[[Side, int], float | None]], ...] = (
    ("workflow p50", "s", lambda one, repeat: _seconds(one, repeat, 0.5)),
    ("workflow p95", "s", lambda one, repeat: _seconds(one, repeat, 0.95)),
    ("TTFT p50", "s", _first_token),
    ("output tokens/s, whole play", "", lambda one, repeat: _per_second(one, repeat, "ended_s")),
    ("output tokens/s, generating", "", lambda one, repeat: _per_second(one, repeat, "generating_s")),
)


def ratio_of(a: Sequence[float | None], b: Sequence[float | None]) -> Interval:
    """B ÷ A: the geometric mean of the repeats' ratios, its interval by Student's t on their logarithms."""
    logs = [
        math.log(after / before) if before is not None and after is not None and before > 0 and after > 0 else None
        for before, after in zip(a, b, strict=True)
    ]
    return _exp(interval(logs))


def _ratio(name: str, unit: str, a: Sequence[float | None], b: Sequence[float | None]) -> Compared:
    return Compared(name, unit, _mean(a), _mean(b), ratio_of(a, b), True)


def _paired(a: Side, b: Side, repeats: list[int]) -> Compared:
    """Workflow by workflow, then over repeats, since workflows of one play hang together."""
    logs, means = [], ([], [])  # type: tuple[list[float | None], tuple[list[float | None], list[float | None]]]
    for repeat in repeats:
        pairs = [
            (row["seconds"], b.workflows[repeat][name]["seconds"])
            for name, row in a.workflows[repeat].items()
            if row["good"] and name in b.workflows[repeat] and b.workflows[repeat][name]["good"]
        ]
        logs.append(math.fsum(math.log(y / x) for x, y in pairs) / len(pairs) if pairs else None)
        for at in (0, 1):
            means[at].append(math.fsum(pair[at] for pair in pairs) / len(pairs) if pairs else None)
    return Compared("workflow time, pair by pair", "s", _mean(means[0]), _mean(means[1]), _exp(interval(logs)), True)


def _exp(logs: Interval) -> Interval:
    mean, low, high = (None if each is None else math.exp(each) for each in (logs.mean, logs.low, logs.high))
    return Interval(mean, low, high, logs.n)


def _missed(one: Side, repeat: int) -> float | None:
    known = [row["missed"] for row in one.workflows[repeat].values() if row["missed"] is not None]
    return sum(known) / len(known) if known else None


def _minus(after: float | None, before: float | None) -> float | None:
    return None if after is None or before is None else after - before


def _mean(values: Sequence[float | None]) -> float | None:
    return interval(values).mean


def lines(figures: list[Compared], labels: list[str], n: int, results: tuple[Result, Result]) -> list[str]:
    """The table, with what the intervals are of."""
    rows: list[tuple[str, ...]] = [("", "A", "B", "B ÷ A", "95 % interval")]
    for each in figures:
        if each.a is None and each.b is None:
            rows.append((each.name, "unavailable", "unavailable", "-", "-"))
            continue
        form = ".3g" if each.is_ratio else ".1%"
        shown = [("unavailable" if value is None else f"{value:,.4g} {each.unit}".strip()) if each.is_ratio else
                 ("unavailable" if value is None else f"{value:.1%}") for value in (each.a, each.b)]  # fmt: skip
        change, low, high, _ = each.change
        sign = "" if each.is_ratio else "+"
        mean = "-" if change is None else f"{change:{sign}{form}}"
        spread = "-" if low is None else f"{low:{sign}{form}} to {high:{sign}{form}}"
        rows.append((each.name, *shown, mean, spread))
    widths = [max(len(row[at]) for row in rows) for at in range(5)]
    body = ["  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
            for row in rows]  # fmt: skip
    source = results[0].meta.get("energy", {}).get("source", "unavailable")
    spread = f"{n} paired repeats, Student's t" if n > 1 else "one repeat: no interval"
    return [
        f"A  {labels[0]}  {results[0].path}",
        f"B  {labels[1]}  {results[1].path}",
        "",
        *body,
        "",
        f"{spread}; joules are {source}. Deadlines: the difference. Both do the same work within {UNLIKE_SHARE:.0%}.",
    ]
