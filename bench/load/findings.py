"""Do the six findings of the characterisation that this continues hold here? What was measured for each hypothesis."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from bench.load.compare import ratio_of
from bench.load.figures import Interval
from bench.load.hypotheses import (
    AWARE,
    CAPS_MODEST,
    CAPS_PREDICTABLE,
    CHAIN,
    CLAIMS,
    CODING,
    COPILOT,
    LINEAR,
    LITTLE,
    MODEST,
    MORE_MISSED,
    NOTHING_SAVED,
    OUTPUT_LINEAR,
    OUTPUT_LITTLE,
    PAYS,
    PREDICTABLE,
    STRONGEST,
    Claim,
    Outcomes,
    all_of,
    any_of,
    below,
    inside,
    verdict,
)
from bench.load.report_data import policy_name
from bench.load.report_ratios import ratio
from bench.load.spec import AS_IS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bench.load.report_data import Run

NONE = Interval(None, None, None, 0)
NO_CAPS = "No cap was played: limits of a real card are never set by this command."
NOT_PLAYED = "What it is about was not played."
NOT_METERED = "Not tested: joules were not measured."
Table = dict[str, dict[str, Interval]]
"""Workload → setting or policy → ratio."""


class Finding(NamedTuple):
    """`outcomes`: of its hypotheses. `table`: what its figure shows."""

    claim: Claim
    outcomes: Outcomes
    measured: tuple[str, ...]
    table: Table
    axis: str
    """Of the figure: what its values are."""

    @property
    def number(self) -> int:
        """1 to 6."""
        return self.claim.number

    @property
    def verdict(self) -> str:
        """By the rule that is the same for all."""
        return verdict(self.claim, self.outcomes)


class Study:
    """A characterisation's results, by what they are for."""

    def __init__(self, runs: Iterable[Run]) -> None:
        self.runs = list(runs)
        self.users = max((run.spec["users"] for run in self.runs if run.spec["arrivals"] == "closed"), default=0)
        self.batch = max((run.spec["in_flight"] or 0 for run in self.runs), default=0)
        usual = ("chain", "copilot", "coding", "composite")
        there = {run.workload for run in self.runs}
        self.workloads = [*(name for name in usual if name in there), *sorted(there - set(usual))]

    @property
    def metered(self) -> bool:
        """Joules of something are known."""
        return any(run.over("joules_per_workflow").mean is not None for run in self.runs)

    def closed(self, workload: str, policy: str = AS_IS, users: int | None = None) -> list[Run]:
        """Of users who take one workflow after the other; all caps, batches and lengths."""
        return [run for run in self._of(workload, policy) if run.spec["arrivals"] == "closed"
                and run.spec["users"] == (self.users if users is None else users)]  # fmt: skip

    def opened(self, workload: str, policy: str = AS_IS) -> list[Run]:
        """Of workflows with times of their own."""
        return [run for run in self._of(workload, policy) if run.spec["arrivals"] != "closed"]

    def _of(self, workload: str, policy: str) -> list[Run]:
        return [run for run in self.runs if run.workload == workload and run.spec["policy"] == policy]

    def full(self, workload: str, policy: str = AS_IS) -> Run | None:
        """The largest batch, the workload's own lengths, no cap."""
        return next((run for run in self.closed(workload, policy)
                     if run.spec["in_flight"] == self.batch and own_lengths(run) and uncapped(run)), None)  # fmt: skip

    def by_batch(self, workload: str, policy: str = AS_IS, users: int | None = None) -> list[Run]:
        """From the smallest on."""
        found = [run for run in self.closed(workload, policy, users) if own_lengths(run) and uncapped(run)]
        return sorted(found, key=lambda run: run.spec["in_flight"])

    def by_cap(self, workload: str, policy: str = AS_IS) -> list[Run]:
        """At the largest batch, from the strictest on; without a cap last."""
        found = [run for run in self.closed(workload, policy)
                 if own_lengths(run) and run.spec["in_flight"] == self.batch]  # fmt: skip
        return sorted(found, key=_cap)

    def by_length(self, workload: str, name: str) -> list[Run]:
        """`name`: input_scale or output_scale, at the largest batch."""
        other = "output_scale" if name == "input_scale" else "input_scale"
        found = [run for run in self.closed(workload)
                 if uncapped(run) and run.spec["in_flight"] == self.batch and run.spec[other] == 1.0]  # fmt: skip
        return sorted(found, key=lambda run: run.spec[name])


def own_lengths(run: Run) -> bool:
    """As the workload has them."""
    return bool(run.spec["input_scale"] == 1.0 and run.spec["output_scale"] == 1.0)


def uncapped(run: Run) -> bool:
    """The card's own limit holds."""
    return run.spec["cap_watts"] is None


def _cap(run: Run) -> float:
    return float("inf") if run.spec["cap_watts"] is None else float(run.spec["cap_watts"])


def over(run: Run, base: Run, name: str) -> Interval:
    """A figure ÷ the same of another result, repeat by repeat."""
    common = sorted(run.repeats.keys() & base.repeats.keys())
    return ratio_of([base.repeats[n].get(name) for n in common], [run.repeats[n].get(name) for n in common])


def findings(study: Study) -> list[Finding]:
    """All six."""
    found = [_lever(study), _sharing(study), _caps(study), _output(study), _utilisation(study), _aware(study)]
    why = NOT_PLAYED if study.metered else NOT_METERED
    return [each if any(each.outcomes.values()) or each.measured else each._replace(measured=(why,)) for each in found]


LEVERS = ("batch", "power cap", "prompt lengths", "answer lengths")


def _lever(study: Study) -> Finding:
    """1: the best setting of each lever ÷ its worst, in joules a token, vLLM as it is."""
    table: Table = {}
    for workload in study.workloads:
        ways = (study.by_batch(workload), study.by_cap(workload), study.by_length(workload, "input_scale"),
                study.by_length(workload, "output_scale"))  # fmt: skip
        found = {name: _reach(runs) for name, runs in zip(LEVERS, ways, strict=True) if len(runs) > 1}
        table[workload] = {name: each for name, each in found.items() if each.mean is not None}
    table = {workload: each for workload, each in table.items() if "batch" in each and len(each) > 1}
    first = {
        workload: all_of(*(below(each["batch"], other) for name, other in each.items() if name != "batch"))
        for workload, each in table.items()
    }
    said = [f"{workload}: {_listed(each, ', ')}" for workload, each in table.items()]
    missing = [name for name in LEVERS if not any(name in each for each in table.values())]
    if missing and table:
        said.append(f"Not played here: {', '.join(missing)}.")
    return Finding(CLAIMS[0], {STRONGEST.says: first}, tuple(said), table, "best ÷ worst setting, GPU J a token")


def _reach(runs: list[Run]) -> Interval:
    known = [run for run in runs if run.over("joules_per_output_token").mean is not None]
    if len(known) < 2:
        return NONE
    known.sort(key=lambda run: run.over("joules_per_output_token").mean or 0.0)
    return over(known[0], known[-1], "joules_per_output_token")


def _sharing(study: Study) -> Finding:
    """2: the largest batch ÷ the smallest, for many users and for one alone."""
    many, one = f"{study.users} users", "one user"
    table: Table = {}
    for workload in study.workloads:
        table[workload] = {}
        for name, users in ((many, study.users), (one, 1)):
            runs = study.by_batch(workload, users=users)
            if len(runs) > 1 and (found := ratio(runs[-1], runs[0]).joules).mean is not None:
                table[workload][name] = found
    table = {workload: each for workload, each in table.items() if each}
    said = [f"{workload}: {_listed(each, '; ')}{_cached(study, workload)}" for workload, each in table.items()]
    chain, copilot, coding = (table.get(workload, {}).get(many, NONE) for workload in ("chain", "copilot", "coding"))
    outcomes: Outcomes = {}
    if copilot.mean is not None:
        outcomes[COPILOT.says] = {"copilot": inside(copilot, high=PAYS)}
    if chain.mean is not None:
        outcomes[CHAIN.says] = {"chain": inside(chain, low=NOTHING_SAVED)}
    if None not in (chain.mean, copilot.mean, coding.mean):
        outcomes[CODING.says] = {"coding": all_of(below(copilot, coding), below(coding, chain))}
    if any(one in each for each in table.values()):
        said.append(
            f"The tests are of {many}, as in the paper: other people's calls fill a batch, whatever the workflow's"
            " shape. With one user its own calls alone do, and a chain has but one at a time."
        )
    return Finding(CLAIMS[1], outcomes, tuple(said), table, "largest batch ÷ smallest, GPU J a workflow")


def _cached(study: Study, workload: str) -> str:
    run = study.full(workload)
    share = None if run is None else run.over("cached_share").mean
    return "" if share is None else f" (of its prompts {share:.0%} came from the prefix cache, at any batch)"


def _caps(study: Study) -> Finding:
    """3: each cap ÷ none, at the largest batch, vLLM as it is."""
    table: Table = {}
    said: list[str] = []
    modest: dict[str, bool | None] = {}
    steady: dict[str, bool | None] = {}
    for workload in study.workloads:
        runs = study.by_cap(workload)
        base = runs[-1] if runs and uncapped(runs[-1]) else None
        if base is None or len(runs) < 2:
            continue
        found = {f"{run.spec['cap_watts']:g} W": ratio(run, base) for run in runs[:-1]}
        table[workload] = {name: each.joules for name, each in found.items() if each.joules.mean is not None}
        if not table[workload]:
            continue
        best = min(table[workload].values(), key=_mean)
        modest[workload] = inside(best, MODEST, NOTHING_SAVED)
        steady[workload] = all_of(*(_predictable(each) for each in table[workload].values()))
        told = (
            f"{name} {_text(one.joules)} J at {_text(one.seconds)} of the median time" for name, one in found.items()
        )
        said.append(f"{workload}: {'; '.join(told)}")
    table = {workload: each for workload, each in table.items() if each}
    if not table:
        said.append(NO_CAPS)
    outcomes = {CAPS_MODEST.says: modest, CAPS_PREDICTABLE.says: steady} if table else {}
    return Finding(CLAIMS[2], outcomes, tuple(said), table, "with the cap ÷ without, GPU J a workflow")


def _predictable(value: Interval) -> bool | None:
    """One repeat says nothing of it."""
    return None if value.low is None or value.high is None else (value.high - value.low) / 2 <= PREDICTABLE


def _output(study: Study) -> Finding:
    """4: joules of a workflow over its output tokens, and joules of a token."""
    table: Table = {}
    said: list[str] = []
    linear: dict[str, bool | None] = {}
    little: dict[str, bool | None] = {}
    for workload in study.workloads:
        runs = study.by_length(workload, "output_scale")
        base = next((run for run in runs if own_lengths(run)), None)
        points = [(run.over("output_tokens_per_workflow").mean, run.over("joules_per_workflow").mean) for run in runs]
        known = [(x, y) for x, y in points if x is not None and y is not None]
        if base is None or len(known) < 3:
            continue
        table[workload] = {f"answers ×{run.spec['output_scale']:g}": over(run, base, "joules_per_output_token")
                           for run in runs if run is not base}  # fmt: skip
        fit = r_squared(known)
        linear[workload] = fit >= LINEAR
        little[workload] = all_of(*(inside(each, 1 - LITTLE, 1 + LITTLE) for each in table[workload].values()))
        said.append(f"{workload}: R² {fit:.3f}; J/token to the usual lengths: {_listed(table[workload], ', ')}")
    outcomes = {OUTPUT_LINEAR.says: linear, OUTPUT_LITTLE.says: little} if table else {}
    return Finding(CLAIMS[3], outcomes, tuple(said), table, "÷ usual lengths, GPU J a token")


def r_squared(points: list[tuple[float, float]]) -> float:
    """Of the least-squares line through points of at least two places; 1 where y does not change."""
    n = len(points)
    mean_x, mean_y = sum(x for x, _ in points) / n, sum(y for _, y in points) / n
    sxx = sum((x - mean_x) ** 2 for x, _ in points)
    syy = sum((y - mean_y) ** 2 for _, y in points)
    sxy = sum((x - mean_x) * (y - mean_y) for x, y in points)
    return 1.0 if syy == 0 or sxx == 0 else sxy**2 / (sxx * syy)


def _utilisation(study: Study) -> Finding:
    """5: how full the batch is, at the largest limit."""
    table: Table = {}
    said = []
    for workload in study.workloads:
        runs = [run for policy in policies(study) if (run := study.full(workload, policy)) is not None]
        found = {policy_name(run): run.over("mean_running") for run in runs}
        table[workload] = {name: each for name, each in found.items() if each.mean is not None}
        busy = ", ".join(f"{policy_name(run)} {share:.0%}" for run in runs if (share := run.over("busy_share").mean))
        if table[workload]:
            tell = ", ".join(f"{name} {each.mean:.1f}" for name, each in table[workload].items())
            said.append(f"{workload}: calls in the batch {tell}" + (f"; steps ran {busy} of the time" if busy else ""))
    table = {workload: each for workload, each in table.items() if each}
    said.append(
        "Here parrot is Parrot's order of calls before the same engine, which batches continuously for all; Parrot's"
        " own engine is not part of this. So the figures show what the order alone does."
    )
    return Finding(CLAIMS[4], {}, tuple(said), table, "calls in the batch, mean")


def policies(study: Study) -> list[str]:
    """vLLM as it is first, joule last."""
    return sorted({run.spec["policy"] for run in study.runs}, key=lambda name: (name != AS_IS, name == "joule", name))


def _aware(study: Study) -> Finding:
    """6: workflow-aware policies ÷ vLLM as it is at the strictest cap, same deadlines."""
    table: Table = {}
    said: list[str] = []
    less: dict[str, bool | None] = {}
    for workload in study.workloads:
        capped = [run for run in study.opened(workload) if not uncapped(run)]
        base = min(capped, key=_cap, default=None)
        if base is None:
            continue
        table[workload] = {}
        better: list[bool | None] = []
        for policy in policies(study):
            run = next((each for each in study.opened(workload, policy) if policy != AS_IS
                        and each.spec["cap_watts"] == base.spec["cap_watts"]), None)  # fmt: skip
            if run is None or (found := ratio(run, base)).joules.mean is None:
                continue
            missed, usual = run.over("missed_share").mean, base.over("missed_share").mean
            more = None if missed is None or usual is None else missed - usual
            table[workload][policy_name(run)] = found.joules
            better.append(all_of(inside(found.joules, high=1.0), None if more is None else more <= MORE_MISSED))
            said.append(
                f"{workload} at {base.spec['cap_watts']:g} W, {policy_name(run)}: {_text(found.joules)} J, median time"
                f" {_text(found.seconds)}, deadlines missed {'unknown' if more is None else f'{more:+.1%}'}"
            )
        if better:
            less[workload] = any_of(*better)
    table = {workload: each for workload, each in table.items() if each}
    if not table:
        said.append(NO_CAPS)
    return Finding(CLAIMS[5], {AWARE.says: less}, tuple(said), table, "÷ vLLM as is, GPU J a workflow")


def _mean(value: Interval) -> float:
    return float("inf") if value.mean is None else value.mean


def _listed(values: dict[str, Interval], between: str) -> str:
    return between.join(f"{name} {_text(value)}" for name, value in values.items())


def _text(value: Interval) -> str:
    if value.mean is None:
        return "unavailable"
    return f"{value.mean:.2f}" + ("" if value.low is None else f" ({value.low:.2f} to {value.high:.2f})")
