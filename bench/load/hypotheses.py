"""What do the six findings say, as tests that can fail? Their thresholds are older than any result."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bench.load.figures import Interval

HOLDS, PARTLY, NOT, OPEN = "holds", "in part", "does not hold", "cannot be tested here"
PAYS, NOTHING_SAVED = 0.7, 0.95
"""Joules ÷ joules. The paper says in words what pays and what does not: at most the first pays, above the second
nothing is saved."""
MODEST = 0.75
"""The paper's caps save modestly: something, and no more than a quarter."""
PREDICTABLE = 0.05
"""Half of a ratio's 95 % interval."""
LINEAR = 0.98
LITTLE = 0.1
MORE_MISSED = 0.01
"""Of all deadlines: joules are compared at the same service, or not at all."""

Outcomes = dict[str, dict[str, "bool | None"]]
"""Hypothesis → workload → passed, failed, or (None) undecided. Where it could not be tested there is nothing."""

RULE = (
    "One rule judges all six. Each finding is taken apart into tests, and each test is made in each workload that it"
    " is about. It is passed (✓) where the measured mean and its whole 95 % interval lie where the paper's claim puts"
    " them, failed (✗) where the mean does not, and undecided (?) where the mean does and its interval reaches beyond,"
    " or where it was not measured. A straight line's R² and missed deadlines have no interval: the value decides, as"
    " it does where there was one repeat."
    " A finding holds where every test is passed, does not hold where none is, and else holds in part. The thresholds"
    " are those that were fixed before the first play; this rule, and how the findings are taken apart, came after the"
    " first results. Others may judge otherwise, and the figures are there for them."
)


class Hypothesis(NamedTuple):
    """`says`: in a few words. `test`: what has to be measured for it."""

    says: str
    test: str


class Claim(NamedTuple):
    """A finding of the paper, in other words than its own, and what it means in measurements."""

    number: int
    title: str
    claim: str
    hypotheses: tuple[Hypothesis, ...]


STRONGEST = Hypothesis("batch first", "best batch ÷ worst, in J/token, is lower than any other lever's best ÷ worst")
COPILOT = Hypothesis("copilot pays", f"largest batch ÷ smallest, in J/workflow, is at most {PAYS:g} for copilot")
CHAIN = Hypothesis("chain does not", f"the same is above {NOTHING_SAVED:g} for chain")
CODING = Hypothesis("coding in between", "the same for coding lies above copilot's and below chain's")
CAPS_MODEST = Hypothesis(
    "modest", f"the cap that saves most ÷ none, in J/workflow, lies between {MODEST:g} and {NOTHING_SAVED:g}"
)
CAPS_PREDICTABLE = Hypothesis("predictable", f"the interval of each cap ÷ none is at most ± {PREDICTABLE:.0%} wide")
OUTPUT_LINEAR = Hypothesis("linear", f"a straight line through J/workflow over output tokens has R² ≥ {LINEAR:g}")
OUTPUT_LITTLE = Hypothesis("little to gain", f"J/token stays within {LITTLE:.0%} of that of the usual lengths")
FULLER = Hypothesis("fuller batches", "calls in the batch ÷ those in the batch of Parrot's own engine are above 1")
AWARE = Hypothesis(
    "less energy", "at the strictest cap, with times of their own, a workflow-aware policy ÷ vLLM as it is lies below 1"
    f" in J/workflow, and misses at most {MORE_MISSED:.0%} of deadlines more",
)  # fmt: skip

CLAIMS = (
    Claim(1, "Batch size is the strongest lever", "Of all knobs the batch size moves the energy of a token most.",
          (STRONGEST,)),
    Claim(2, "It pays with shared prompts, not in sequences",
          "A larger batch pays with large shared prompts (copilot), not in sequential summaries (chain), and partly in"
          " multi-agent coding.", (COPILOT, CHAIN, CODING)),
    Claim(3, "Caps save modestly", "Power caps save a modest and predictable share of energy.",
          (CAPS_MODEST, CAPS_PREDICTABLE)),
    Claim(4, "Output length costs linearly",
          "Output length costs energy linearly, so there is little to gain from it.", (OUTPUT_LINEAR, OUTPUT_LITTLE)),
    Claim(5, "Continuous batching keeps utilisation up",
          "vLLM's continuous batching keeps utilisation higher than Parrot's engine, most where decoding dominates.",
          (FULLER,)),
    Claim(6, "Knowing workflows helps under caps",
          "Under strict power caps workflow-aware scheduling needs less energy.", (AWARE,)),
)  # fmt: skip


def inside(value: Interval, low: float = float("-inf"), high: float = float("inf")) -> bool | None:
    """Does a mean with its interval lie strictly between these? None: it was not measured, or the mean does and the
    interval reaches beyond. A mean without an interval (one repeat) decides alone."""
    if value.mean is None:
        return None
    if not low < value.mean < high:
        return False
    if value.low is None or value.high is None:
        return True
    return True if low < value.low and value.high < high else None


def below(a: Interval, b: Interval) -> bool | None:
    """Is one figure lower than another? None: their intervals overlap, or one was not measured."""
    if a.mean is None or b.mean is None:
        return None
    if a.mean >= b.mean:
        return False
    most, least = a.mean if a.high is None else a.high, b.mean if b.low is None else b.low
    return True if most < least else None


def all_of(*outcomes: bool | None) -> bool | None:
    """Failed where one has failed, undecided where one is."""
    return False if False in outcomes else None if None in outcomes else True


def any_of(*outcomes: bool | None) -> bool | None:
    """Passed where one has passed, undecided where one is."""
    return True if True in outcomes else None if None in outcomes else False


def verdict(claim: Claim, outcomes: Mapping[str, Mapping[str, bool | None]]) -> str:
    """By RULE."""
    found = [outcome for each in outcomes.values() for outcome in each.values()]
    if not found:
        return OPEN
    if all(found) and all(outcomes.get(each.says) for each in claim.hypotheses):
        return HOLDS
    if True not in found:
        return NOT if False in found else f"{OPEN}: the intervals are too wide"
    return f"{PARTLY}: {', '.join(_told(each.says, outcomes.get(each.says, {})) for each in claim.hypotheses)}"


def _told(says: str, outcomes: Mapping[str, bool | None]) -> str:
    if not outcomes:
        return f"{says} (not tested)"
    passed, undecided = list(outcomes.values()).count(True), list(outcomes.values()).count(None)
    if len(outcomes) == 1:
        return f"{says}: {'yes' if passed else 'undecided' if undecided else 'no'}"
    return f"{says} in {passed} of {len(outcomes)}" + (f" ({undecided} undecided)" if undecided else "")
