"""What is known of one call's bill, and what is it thought to come to before its windows have closed?"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from scheduler.energy.bill_accounts import COMPONENTS, UNCERTAINTY, named
from scheduler.energy.bill_limit import left_of
from scheduler.energy.bill_prices import MICRO
from scheduler.energy.work import call_work

if TYPE_CHECKING:
    from scheduler.energy.batch import Prefixes
    from scheduler.energy.bill_accounts import Account, Amounts, Source
    from scheduler.energy.bill_crowd import Place
    from scheduler.energy.bill_prices import Tariff


class Estimate(NamedTuple):
    """Joules of a call at its end: marginal, and without what later users of its prefix will take over."""

    joules: float | None
    low: float | None
    high: float | None
    source: Source


UNKNOWN = Estimate(None, None, None, "unavailable")


class CallBill:
    """One call. What `__init__` does not set has its default in the class: one is made for each call."""

    place: Place | None = None
    """While it is at an engine."""
    over_at: float | None = None
    prompt_tokens: float | None = None
    cached_tokens = 0.0
    told_steps = 0.0
    told_prefill_tokens = 0.0
    """What windows have named of its work."""
    guess: tuple[tuple[float | None, float | None, float | None], Estimate] | None = None
    """What was said last, and of which tokens."""
    guess_part: float | None = None
    """Of its engine's steps, as was thought then."""
    estimate = UNKNOWN
    steps: float | None = None
    """Its share of steps, all in all, once it has ended: a step for each output token (the first is its prefill's), its
    part of each the mean over its stay. A window's shares are by time, and steps are not of one length."""
    source: Source = "unavailable"
    """The weakest of its windows'."""
    settled = False
    unknown = False
    """Of some of its time nobody knows the energy."""

    def __init__(self, call_id: str, key: str, workflow: str, model: str, marks: Prefixes, account: Account) -> None:
        self.id = call_id
        self.key = key
        self.workflow = workflow
        self.model = model
        self.marks = marks
        self.account = account
        """Of the engine that it was given to last."""
        self.amounts: Amounts = [0] * len(COMPONENTS)
        """As in its account; they move on with corrections after it is settled, too."""
        self.open_at: list[str] = []
        """Engines that have not closed its last window."""

    @property
    def joules(self) -> float | None:
        """Marginal; None = nobody knows."""
        return None if self.source == "unavailable" or self.unknown else self.marginal / MICRO

    @property
    def marginal(self) -> int:
        """Microjoules billed for what it caused."""
        amounts = self.amounts
        return amounts[0] + amounts[1] + amounts[2] + amounts[3]


class Call(NamedTuple):
    """A call's bill for somebody to read."""

    call_id: str
    settled: bool
    """All its windows have closed; else the figure is preliminary. Prefix sharing may still move it a little."""
    marginal_joules: float | None
    low_joules: float | None
    high_joules: float | None
    full_joules: float | None
    source: Source
    components: dict[str, float]
    complete: bool


class Company:
    """What an engine has been like lately."""

    __slots__ = ("computed_share", "error", "repeated_share", "scale", "source")

    def __init__(self) -> None:
        self.computed_share = 1.0
        """Of prompts: the rest was cached."""
        self.repeated_share = 0.0
        """Of the context that was read: by others in the same step, too."""
        self.scale = 1.0
        self.source: Source = "modelled"
        self.error = 0.3
        """Nine of ten estimates of what windows have not billed yet lie within this share of it."""


def estimate(
    call: CallBill, prompt: float | None, cached: float | None, output: float | None, tariff: Tariff | None,
    company: Company, part: float | None,
) -> Estimate:  # fmt: skip
    """All of it at the engine's prices of now: what windows have billed so far may have been guessed.

    Tokens; None = not known. `part`: of each step that it was in, as `Crowd` says; None: not known, and it is taken to
    have been alone.
    """
    if tariff is None or prompt is None or output is None or call.unknown:
        return UNKNOWN
    if cached is None or cached > prompt:
        cached = prompt * (1.0 - company.computed_share) if cached is None else prompt
    _, decoded, context, _, computed, pairs, _ = call_work(prompt, cached, output)
    step, decode, read, read_again, prefill, pair, _, doubt, left, *_ = tariff
    again = context * company.repeated_share
    steps = output if part is None else output * part
    joules = left * (step * steps + decode * decoded + read * (context - again) + read_again * again)
    joules = company.scale * (joules + left_of(tariff, computed) * (prefill * computed + pair * pairs))
    half = (doubt + company.error) * joules
    return Estimate(joules, max(joules - half, 0.0), joules + half, company.source)


def shown(call: CallBill) -> Call:
    """As its owner may read it."""
    amounts = call.amounts
    if call.source == "unavailable":
        joules, low, high, source = call.estimate
        return Call(call.id, call.settled, joules, low, high, None, source, {}, joules is not None)
    marginal = call.marginal
    half = amounts[UNCERTAINTY]
    if not call.settled and call.estimate.joules is not None:
        marginal = round(call.estimate.joules * MICRO)
    return Call(
        call.id,
        call.settled,
        marginal / MICRO,
        max(marginal - half, 0) / MICRO,
        (marginal + half) / MICRO,
        sum(amounts[:UNCERTAINTY]) / MICRO,
        call.source,
        named(amounts),
        not call.unknown,
    )
