"""What is known of one call's bill, and what is it thought to come to before its windows have closed?"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from scheduler.energy.bill_accounts import PREFILL, UNCERTAINTY, ZERO, named
from scheduler.energy.bill_limit import left_alone
from scheduler.energy.bill_prices import MICRO

if TYPE_CHECKING:
    from scheduler.energy.batch import Prefixes
    from scheduler.energy.bill_accounts import Account, Amounts, Microjoules, Source
    from scheduler.energy.bill_engine import EngineBook
    from scheduler.energy.bill_prices import Tariff


class Estimate(NamedTuple):
    """Joules of a call at its end: marginal, and without what later users of its prefix will take over."""

    joules: float | None
    low: float | None
    high: float | None
    source: Source


PARTS_MAX = 8
"""Two for each of a call's windows that are not added up so far: they keep those of all calls of the window."""
UNKNOWN = Estimate(None, None, None, "unavailable")


class CallBill:
    """One call. What `__init__` does not set has its default in the class: one is made for each call."""

    over_at: float | None = None
    prompt_tokens: float | None = None
    cached_tokens = 0.0
    computed_tokens = 0.0
    """Of its prompt, as windows have named them."""
    guess: tuple[tuple[float | None, float | None, float | None], Estimate] | None = None
    """What was said last, and of which tokens."""
    estimate = UNKNOWN
    marginal = 0
    """Microjoules billed for what it caused."""
    summed: Amounts = ZERO
    parts: tuple[Microjoules | int, ...] = ()
    """Of its windows: rows of all calls and its place among them, in turn; what was added up already is in `summed`,
    which is never changed in place. Adding them up is left to whoever reads it: see `amounts`."""
    source: Source = "unavailable"
    """The weakest of its windows'."""
    settled = False
    unknown = False
    """Of some of its time nobody knows the energy."""

    def __init__(
        self, call_id: str, marks: Prefixes, account: Account, book: EngineBook, since: float, shared: float
    ) -> None:
        self.id = call_id
        self.marks = marks
        self.account = account
        self.book = book
        """Of the engine that it was given to last."""
        self.open_at: tuple[str, ...] = book.alone
        """Engines that have not closed its last window."""
        self.since = since
        self.shared = shared
        """When it was given to that, and what `EngineBook.shared_seconds` were then."""

    @property
    def joules(self) -> float | None:
        """Marginal; None = nobody knows."""
        return None if self.source == "unavailable" or self.unknown else self.marginal / MICRO

    @property
    def amounts(self) -> Amounts:
        """As in its account; they move on with corrections after it is settled, too."""
        if parts := self.parts:
            rows = [parts[at][parts[at + 1]].tolist() for at in range(0, len(parts), 2)]  # type: ignore[index]
            self.summed = [sum(column) for column in zip(self.summed, *rows, strict=True)]
            self.parts = ()
        return self.summed

    def moved(self, microjoules: int) -> None:
        """So much of its prefill was taken over by others, or from them."""
        amounts = self.amounts.copy()
        amounts[PREFILL] += microjoules
        self.summed = amounts
        self.marginal += microjoules


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

    __slots__ = ("computed_share", "error", "limited", "repeated_share", "scale", "source")

    def __init__(self) -> None:
        self.computed_share = 1.0
        """Of prompts: the rest was cached."""
        self.repeated_share = 0.0
        """Of the context that was read: by others in the same step, too."""
        self.scale = self.limited = 1.0
        """Of priced joules; and what a limit leaves of prompts as they come, over what it would of each alone."""
        self.source: Source = "modelled"
        self.error = 0.3
        """Nine of ten estimates of what windows have not billed yet lie within this share of it."""


class Quote(NamedTuple):
    """An engine's prices as estimates need them, made once a window: joules above idle for one of each."""

    step: float
    decode_token: float
    context_token: float
    prefill_token: float
    attention_pair: float
    doubt: float
    source: Source
    curve: tuple[float, ...]
    """Of prefill by a prompt's length, see bill_limit.py; empty: the prices have it in them."""


def quote(tariff: Tariff, company: Company) -> Quote:
    """At the scale, and with the part of the context that others read too, of the last window."""
    scale = company.scale
    rest = scale * tariff.decode_left
    again = company.repeated_share
    context = (1.0 - again) * tariff.context_token + again * tariff.repeated_token
    own = scale * (company.limited if tariff.prefill_curve else tariff.prefill_left)
    return Quote(
        rest * tariff.step, rest * tariff.decode_token, rest * context,
        own * tariff.prefill_token, own * tariff.attention_pair, tariff.relative_error, company.source,
        tariff.prefill_curve,
    )  # fmt: skip


def joules_of(quoted: Quote, prompt: float, cached: float, output: float, part: float) -> float:
    """All of a call at the engine's prices of now: what windows have billed so far may have been guessed. `part`: of
    each step that it was in. The features are `call_work`'s."""
    if output <= 0:
        return 0.0
    step, decode, context, prefill, pair, _, _, curve = quoted
    computed = prompt - cached
    own = computed * (prefill + pair * (cached + computed / 2))
    if curve:
        own *= left_alone(curve, computed)
    if output <= 1.0:
        return own + step * output * part + context * cached
    decoded = output - 1.0
    return own + step * output * part + decode * decoded + context * (cached + decoded * (prompt + output / 2))


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
