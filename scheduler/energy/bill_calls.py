"""What is known of one call's bill, and what is it thought to come to before its windows have closed?"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from scheduler.energy.bill_accounts import UNCERTAINTY, ZERO, named
from scheduler.energy.bill_limit import left_of
from scheduler.energy.bill_prices import MICRO

if TYPE_CHECKING:
    from scheduler.energy.batch import Prefixes
    from scheduler.energy.bill_accounts import Account, Amounts, Source
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

    over_at: float | None = None
    prompt_tokens: float | None = None
    cached_tokens = 0.0
    computed_tokens = 0.0
    """Of its prompt, as windows have named them."""
    guess: tuple[tuple[float | None, float | None, float | None], Estimate] | None = None
    """What was said last, and of which tokens."""
    estimate = UNKNOWN
    amounts: Amounts = ZERO
    """As in its account; they move on with corrections after it is settled, too. Never changed in place."""
    source: Source = "unavailable"
    """The weakest of its windows'."""
    settled = False
    unknown = False
    """Of some of its time nobody knows the energy."""

    def __init__(
        self, call_id: str, marks: Prefixes, account: Account, open_at: tuple[str, ...], since: float, shared: float
    ) -> None:
        self.id = call_id
        self.marks = marks
        self.account = account
        """Of the engine that it was given to last."""
        self.open_at = open_at
        """Engines that have not closed its last window."""
        self.since = since
        self.shared = shared
        """When it was given to that, and what `EngineBook.shared_seconds` were then."""

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


class Quote(NamedTuple):
    """An engine's prices as estimates need them, made once a window: joules above idle for one of each."""

    step: float
    decode_token: float
    context_token: float
    prefill_token: float
    attention_pair: float
    doubt: float
    source: Source
    tariff: Tariff


def quote(tariff: Tariff, company: Company) -> Quote:
    """At the scale, and with the part of the context that others read too, of the last window."""
    scale = company.scale
    rest = scale * tariff.decode_left
    again = company.repeated_share
    context = (1.0 - again) * tariff.context_token + again * tariff.repeated_token
    own = scale if tariff.prefill_curve else scale * tariff.prefill_left
    return Quote(
        rest * tariff.step, rest * tariff.decode_token, rest * context,
        own * tariff.prefill_token, own * tariff.attention_pair, tariff.relative_error, company.source, tariff,
    )  # fmt: skip


def estimate(quoted: Quote, prompt: float, cached: float, output: float, part: float, error: float) -> Estimate:
    """All of it at the engine's prices of now: what windows have billed so far may have been guessed.

    `part`: of each step that it was in; `error`: that of earlier estimates. The features are `call_work`'s.
    """
    step, decode, context, prefill, pair, doubt, source, tariff = quoted
    if output > 0:
        decoded, computed = (output - 1.0 if output > 1.0 else 0.0), prompt - cached
        own = computed * (prefill + pair * (cached + computed / 2))
        if tariff.prefill_curve:
            own *= left_of(tariff, computed)
        joules = own + step * output * part + decode * decoded
        joules += context * (cached + decoded * (prompt + (decoded + 1.0) / 2))
    else:
        joules = 0.0
    half = (doubt + error) * joules
    return Estimate(joules, joules - half if half < joules else 0.0, joules + half, source)


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
