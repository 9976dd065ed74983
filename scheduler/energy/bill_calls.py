"""What is known of one call's bill, and what is it thought to come to before its windows have closed?"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from scheduler.energy.bill_accounts import COMPONENTS, MARGINAL, UNCERTAINTY, ZERO, weakest
from scheduler.energy.bill_prices import MICRO, price
from scheduler.energy.work import NOTHING, Work, call_work

if TYPE_CHECKING:
    from collections.abc import Hashable

    from scheduler.energy.bill_accounts import Account, Amounts, Source
    from scheduler.energy.bill_prices import Tariff

Marks = tuple[tuple["Hashable", float], ...]
"""Growing beginnings of a prompt that other calls may have too: (what names it, its tokens) each."""


class Estimate(NamedTuple):
    """Joules of a call at its end: marginal, and without what later users of its prefix will take over."""

    joules: float | None
    low: float | None
    high: float | None
    source: Source


UNKNOWN = Estimate(None, None, None, "unavailable")


class CallBill:
    """One call. `amounts` as in its account; they move on with corrections after it is settled, too."""

    __slots__ = (
        "account", "amounts", "cached_tokens", "estimate", "guessed", "id", "key", "marks", "model", "open_at",
        "over_at", "pending", "prompt_tokens", "settled", "sources", "told", "unknown", "workflow",
    )  # fmt: skip

    def __init__(self, call_id: str, key: str, workflow: str, model: str, marks: Marks) -> None:
        self.id = call_id
        self.key = key
        self.workflow = workflow
        self.model = model
        self.marks = marks
        self.amounts: Amounts = ZERO.copy()
        self.sources: set[Source] = set()
        self.account: Account | None = None
        """Of the engine that it was given to last."""
        self.open_at: list[str] = []
        """Engines that have not closed its last window."""
        self.over_at: float | None = None
        self.prompt_tokens: float | None = None
        self.cached_tokens = 0.0
        self.told = NOTHING
        """Work that windows have named."""
        self.estimate = UNKNOWN
        self.guessed = 0
        """Microjoules of the estimate that no window had billed when it was made."""
        self.pending = 0
        """Microjoules of the estimate that no window has billed so far."""
        self.settled = False
        self.unknown = False
        """Of some of its time nobody knows the energy."""

    @property
    def marginal(self) -> int:
        """Microjoules billed for what it caused."""
        amounts = self.amounts
        return amounts[0] + amounts[1] + amounts[2] + amounts[3]

    @property
    def source(self) -> Source:
        """The weakest of its windows'."""
        return weakest(self.sources)


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


class Company(NamedTuple):
    """What an engine has been like lately."""

    sequences: float = 1.0
    """In a step, on average over what was decoded."""
    computed_share: float = 1.0
    """Of prompts: the rest was cached."""
    scale: float = 1.0
    source: Source = "modelled"
    error: float = 0.3
    """Nine of ten estimates of what windows have not billed yet lie within this share of it."""


def estimate(
    call: CallBill, output_tokens: float | None, tariff: Tariff | None, company: Company, *, cached_known: bool
) -> Estimate:
    """What windows have billed, and at the engine's prices what they have not seen so far."""
    prompt = call.prompt_tokens
    if tariff is None or prompt is None or output_tokens is None or call.unknown:
        return UNKNOWN
    cached = call.cached_tokens if cached_known else prompt * (1.0 - company.computed_share)
    whole = call_work(prompt, cached, output_tokens)
    rest = whole - call.told
    # What windows were told is context that may have been another's too, at a lower price.
    context = rest.context_tokens + rest.repeated_tokens
    tokens = max(rest.decode_tokens, 0.0) + max(rest.prompts, 0.0)
    rest = Work(tokens / max(company.sequences, 1.0), rest[1], context, 0.0, rest[4], rest[5], rest[6])
    more = company.scale * price(tariff, rest).total
    known = call.marginal / MICRO
    joules = max(known + more, 0.0)
    half = call.amounts[UNCERTAINTY] / MICRO + company.error * abs(more)
    return Estimate(joules, max(joules - half, 0.0), joules + half, company.source)


def shown(call: CallBill) -> Call:
    """As its owner may read it."""
    amounts = call.amounts
    if not call.sources:
        joules, low, high, source = call.estimate
        return Call(call.id, call.settled, joules, low, high, None, source, {}, joules is not None)
    marginal = sum(amounts[place] for place in MARGINAL)
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
        {name: value / MICRO for name, value in zip(COMPONENTS[:UNCERTAINTY], amounts, strict=False)},
        not call.unknown,
    )
