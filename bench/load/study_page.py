"""How is a characterisation shown? What a workflow costs, and the six findings, each with its figure."""

from __future__ import annotations

from functools import partial
from html import escape
from typing import TYPE_CHECKING

from bench.load import report_html as html
from bench.load import report_plots as plots
from bench.load.findings import Study, findings, policies
from bench.load.hypotheses import HOLDS, NOT, OPEN, RULE
from bench.load.report_data import MEASURES, policy_name, words
from bench.load.report_ratios import ratio

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.load.findings import Finding
    from bench.load.report_data import Run

MARKS = {HOLDS: ("✓", "holds"), NOT: ("✗", "not"), OPEN: ("?", "open")}
OUTCOMES = {True: "✓", False: "✗", None: "?"}
USUAL_STRETCH = 3.0


class Chapter:
    """The chapters that a characterisation has before those of any results."""

    def __init__(self, runs: Sequence[Run], pictures: html.Pictures) -> None:
        self._study = Study(runs)
        self._pictures = pictures

    def chapters(self) -> list[tuple[str, str, str]]:
        """(anchor, title, body) each."""
        found = findings(self._study)
        parts = [self._short(found), *(self._finding(each) for each in found)]
        return [("cost", "What a workflow costs", self._cost()), ("findings", "Six findings, tested", "".join(parts))]

    def _cost(self) -> str:
        study = self._study
        together = (
            f"{study.users} users take one workflow after the other, at most {study.batch} calls at the engine at once:"
            " as in the paper."
        )
        apart = (
            f"Workflows begin whatever the engine does, deadlines are {USUAL_STRETCH:g} times a workflow's time alone."
            " An engine that is not full draws idle power too."
        )
        loads = (
            ("All users at once", together, [[study.full(each, policy) for policy in self._policies()]
                                             for each in study.workloads]),
            ("With times of their own", apart, [[self._open(each, policy) for policy in self._policies()]
                                                for each in study.workloads]),
        )  # fmt: skip
        return "".join(
            f"<h3>{escape(title)}</h3><p>{escape(text)}</p>{self._table(groups)}"
            for title, text, groups in loads if any(run for group in groups for run in group)
        )  # fmt: skip

    def _policies(self) -> list[str]:
        return policies(self._study)

    def _open(self, workload: str, policy: str) -> Run | None:
        found = self._study.opened(workload, policy)
        return next((run for run in found if run.spec["stretch"] == USUAL_STRETCH and not run.spec["cap_watts"]), None)

    def _table(self, groups: Sequence[Sequence[Run | None]]) -> str:
        """Every figure of the study; what nobody measured stays in it as unavailable."""
        rows = []
        for group in groups:
            base = next((run for run in group if run is not None and run.spec["policy"] == "none"), None)
            for run in group:
                if run is None:
                    continue
                cells = [html.number(run.over(each.name), each.form) for each in MEASURES]
                told = ratio(run, base) if base is not None and run is not base else None
                to_base = "is the baseline" if run is base else "-" if told is None else html.factor(told.joules)
                rows.append([escape(f"{run.workload}: {policy_name(run)}"), to_base,
                             *("unavailable" if cell == "-" else cell for cell in cells)])  # fmt: skip
        head = ["workload: policy", "J/workflow ÷ vLLM as is", *(escape(each.title) for each in MEASURES)]
        return html.table(head, rows)

    def _short(self, found: Sequence[Finding]) -> str:
        rows = [[_link(each), _verdict(each.verdict)] for each in found]
        study = self._study
        about = words(study.runs[0], ["engine"])
        repeats = max(len(run.repeats) for run in study.runs)
        joules = f"All joules are of the GPU {about}; ratios have 95 % intervals over {repeats} paired repeats."
        if not self._study.metered:
            joules = f"No joules were measured {about}, so what is about joules cannot be tested; nothing is zero."
        text = (
            "The findings are those of Ifath and Haque's characterisation (Llama-2-7B on one A100, vLLM 0.9.1 and"
            " Parrot, 16 users), in other words than theirs. " + joules
        )
        return f"<p>{escape(text)}</p><p>{escape(RULE)}</p>{html.table(['finding', 'here'], rows, (0, 1))}"

    def _finding(self, each: Finding) -> str:
        parts = [
            f"<h3>{each.number}. {escape(each.claim.title)}</h3>",
            f"<p><b>The paper:</b> {escape(each.claim.claim)}</p>",
            _tests(each),
            f'<p class="verdict">{_verdict(each.verdict)}</p>',
        ]
        if each.table:
            drawing = partial(plots.bars, each.table, each.axis, one="÷" in each.axis)
            name, title = f"finding-{each.number}-plot", f"Finding {each.number}."
            caption = f"{each.axis}; bars are means, whiskers 95 % intervals."
            parts.append(self._pictures.figure(name, title, caption, drawing))
        if each.measured:
            listed = "".join(f"<li>{escape(line)}</li>" for line in each.measured)
            parts.append(f"<p><b>Measured:</b></p><ul>{listed}</ul>")
        kind = next((css for verdict, (_, css) in MARKS.items() if each.verdict == verdict), "part")
        return f'<div class="finding {kind}" id="finding-{each.number}">{"".join(parts)}</div>'


def _link(each: Finding) -> str:
    return f'<a href="#finding-{each.number}">{each.number}. {escape(each.claim.title)}</a>'


def _tests(each: Finding) -> str:
    """A row for each hypothesis, a column for each workload that one of them is about."""
    workloads = list(dict.fromkeys(name for found in each.outcomes.values() for name in found))
    rows = []
    for hypothesis in each.claim.hypotheses:
        found = each.outcomes.get(hypothesis.says, {})
        cells = [OUTCOMES[found[name]] if name in found else "" for name in workloads]
        rows.append([escape(f"{hypothesis.says}: {hypothesis.test}"), *(cells or ["not tested"])])
    return html.table(["test", *(map(escape, workloads) if workloads else [""])], rows)


def _verdict(verdict: str) -> str:
    mark = MARKS.get(verdict, ("~", ""))[0]
    return escape(f"{mark} {verdict}")
