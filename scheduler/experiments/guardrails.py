"""Is the treatment worse than it may be, surely? Within a block by its workflows, over the pairs by their differences.

Within a block: the share of the treatment's workflows that are bad is held against what recent control blocks allow;
for a p95 "bad" is a time over the allowed p95, of which 1 in 20 may be. Workflows of a block are alike (one burst
delays many), so evidence is divided by how much more control blocks vary than coins would. Each block begins from
nothing: load that rises through the day must not add up to an alarm. A harm too small for that is found over the
pairs, whose two blocks are of the same hour.
"""

from __future__ import annotations

from collections import deque
from math import ceil, log, sqrt
from typing import TYPE_CHECKING, Any, NamedTuple

from scheduler.experiments.definition import CONTROL, TREATMENT, Definition, Guardrail
from scheduler.experiments.evidence import log_evidence_of_share, log_evidence_of_sum, sharpest_scale
from scheduler.experiments.marks import PLANNED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scheduler.experiments.rows import BlockRow

REFERENCE_BLOCKS = 4
"""Control blocks that a treatment block is held against: the last ones."""
SPREAD_BLOCKS = 24
"""Control blocks of which it is known how much they vary."""
ALIKE_AT_FIRST = 4.0
"""Evidence is divided by this until control blocks have said what it should be…"""
ALIKE_WEIGHT = 3.0
"""…which counts as much as so many of them."""


class Verdict(NamedTuple):
    """What a guardrail says."""

    guardrail: str
    stop: bool
    control: float | None
    """Of the recent control blocks; None: too few workflows."""
    allowed: float | None
    treatment_bad: int
    treatment_known: int
    evidence: float
    """Log of the e-value; it stops at `needed`."""
    needed: float
    why: str = ""


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, ceil(share * len(ordered)) - 1)]


def workflows_to_notice(definition: Definition, share: float = 0.3) -> int:
    """How many workflows of a treatment block it takes until a p95 guardrail stops it, where this share of them is over
    the limit (a p95 that doubled puts 20 to 40 % there), as long as control blocks vary as is supposed at first."""
    needed = ALIKE_AT_FIRST * evidence_needed(definition)
    for known in range(10, 100_000, 10):
        allowed = 0.05 + sqrt(0.05 * 0.95 / known)
        if log_evidence_of_share(round(share * known), known, allowed) >= needed:
            return max(known, definition.guardrail_workflows)
    return 100_000


def evidence_needed(definition: Definition) -> float:
    """Within a block: half the error is for all blocks together, half for the pairs."""
    return log(2.0 * (definition.pairs + len(definition.ramp_up)) / definition.guardrail_error)


class Guard:
    """One guardrail's memory."""

    def __init__(self, guardrail: Guardrail, definition: Definition) -> None:
        self.guardrail = guardrail
        self._definition = definition
        self.is_time = guardrail.metric == "p95_workflow_seconds"
        self._blocks: deque[tuple[tuple[float, ...], int, int]] = deque(maxlen=REFERENCE_BLOCKS)
        """Of recent control blocks: times; bad and of how many."""
        self._varied: deque[float] = deque(maxlen=SPREAD_BLOCKS)
        self._waiting: dict[int, dict[int, list[float]]] = {}
        """Values of pairs that are not whole yet, by arm."""
        self.sum = self.squares = 0.0
        """Of (difference - allowed difference) over the pairs."""
        self.pairs = 0
        self._set_reference()

    # --- what is allowed ---

    def _set_reference(self) -> None:
        """Decided between blocks, from what is known then; in force for the next."""
        self.control: float | None = None
        self.allowed: float | None = None
        self.share_allowed = 1.0
        least = self._definition.guardrail_workflows
        if self.is_time:
            times = [seconds for block, _, _ in self._blocks for seconds in block]
            if len(times) >= least:
                self.control = quantile(times, 0.95)
                self.allowed = self.guardrail.allowed(self.control)
                self.share_allowed = 0.05 + sqrt(0.05 * 0.95 / len(times))
        else:
            bad = sum(block[1] for block in self._blocks)
            known = sum(block[2] for block in self._blocks)
            if known >= least:
                self.control = bad / known
                likely = (bad + 1) / (known + 1)
                self.share_allowed = self.guardrail.allowed(likely + sqrt(likely * (1 - likely) / known))
                self.allowed = self.guardrail.allowed(self.control)
        self.needed = evidence_needed(self._definition)

    @property
    def alike(self) -> float:
        """So many workflows say as much as one coin; 1 or more."""
        said = ALIKE_WEIGHT * ALIKE_AT_FIRST + sum(self._varied)
        return max(1.0, said / (ALIKE_WEIGHT + len(self._varied)))

    def is_bad(self, seconds: float, failed: bool, missed: bool | None) -> bool | None:
        """None: the guardrail has nothing to say about it."""
        if self.is_time:
            return None if self.allowed is None else seconds > self.allowed
        return failed if self.guardrail.metric == "errors" else missed

    def judge(self, bad: int, known: int) -> Verdict:
        """Of a treatment block so far, and of the pairs so far."""
        name = str(self.guardrail)
        verdict = Verdict(name, False, self.control, self.allowed, bad, known, 0.0, self.needed)
        if self.control is not None and known >= self._definition.guardrail_workflows:
            evidence = log_evidence_of_share(bad, known, self.share_allowed) / self.alike
            verdict = verdict._replace(evidence=evidence)
            if evidence >= self.needed:
                return verdict._replace(stop=True, why=self._said(bad, known))
        needed = log(2.0 / self._definition.guardrail_error)
        if self.sum > 0:
            scale = sharpest_scale(self._definition.spread, self._definition.pairs)
            evidence = log_evidence_of_sum(self.sum, self.squares, scale)
            if evidence >= needed:
                return verdict._replace(
                    stop=True, evidence=evidence, needed=needed,
                    why=f"over {self.pairs} pairs the treatment is worse than {name} allows",
                )  # fmt: skip
        return verdict

    def _said(self, bad: int, known: int) -> str:
        what = f"took over {self.allowed:.3g} s" if self.is_time else "were bad"
        most = 100 * self.share_allowed
        return (
            f"{bad} of the {known} workflows of this block {what} ({100 * bad / known:.0f} %, {most:.1f} % are allowed)"
        )

    # --- what it learns ---

    def learn(self, row: BlockRow) -> None:
        """A row is closed."""
        known, bad = self._counts(row)
        whole = not set(row.marks) - PLANNED - {"energy_unavailable"}
        if row.arm == CONTROL and whole:
            if self.control is not None and known:
                most = min(self.share_allowed, 0.99)
                self._varied.append(known * (bad / known - most) ** 2 / (most * (1 - most)))
            self._blocks.append((row.workflow_seconds, bad, known))
            self._set_reference()
        if row.pair >= 0:
            value = self._value(row)
            pair = self._waiting.setdefault(row.pair, {})
            if value is not None and whole:
                pair.setdefault(row.arm, []).append(value)
            rows_of_arm = 2 if self._definition.design in ("split_and_swap", "interleaved") else 1
            if [len(values) for values in pair.values()] == [rows_of_arm] * 2:
                self._add_pair(*(sum(pair[arm]) / rows_of_arm for arm in (CONTROL, TREATMENT)))
                del self._waiting[row.pair]
            for old in [number for number in self._waiting if number < row.pair - 1]:
                del self._waiting[old]

    def _counts(self, row: BlockRow) -> tuple[int, int]:
        if self.is_time:
            allowed = self.allowed
            times = row.workflow_seconds
            return len(times), 0 if allowed is None else sum(seconds > allowed for seconds in times)
        if self.guardrail.metric == "errors":
            return row.timed, row.failed
        return row.with_deadline, row.missed

    def _value(self, row: BlockRow) -> float | None:
        if self.is_time:
            times = row.workflow_seconds
            return quantile(times, 0.95) if len(times) >= self._definition.guardrail_workflows else None
        known, bad = self._counts(row)
        return bad / known if known else None

    def _add_pair(self, control: float, treatment: float) -> None:
        if self.is_time:
            if min(control, treatment) <= 0:
                return
            over = log(treatment / control) - log(1.0 + self.guardrail.limit)
        else:
            over = treatment - self.guardrail.allowed(control)
        self.pairs += 1
        self.sum += over
        self.squares += over * over

    # --- on disk ---

    def state(self) -> dict[str, Any]:
        """For a file."""
        return {
            "blocks": [[list(times), bad, known] for times, bad, known in self._blocks], "varied": list(self._varied),
            "waiting": {str(pair): {str(arm): list(several) for arm, several in values.items()}
                        for pair, values in self._waiting.items()},
            "sum": self.sum, "squares": self.squares, "pairs": self.pairs,
        }  # fmt: skip

    def restore(self, state: Mapping[str, Any]) -> None:
        """As it was."""
        self._blocks.extend((tuple(times), bad, known) for times, bad, known in state["blocks"])
        self._varied.extend(state["varied"])
        self._waiting = {
            int(pair): {int(arm): list(several) for arm, several in values.items()}
            for pair, values in state["waiting"].items()
        }
        self.sum, self.squares, self.pairs = state["sum"], state["squares"], state["pairs"]
        self._set_reference()
