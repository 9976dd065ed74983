"""Does a cap keep what was promised: first tokens, gaps between tokens, the ends of workflows? Pessimistically."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from scheduler.energy.caps.answers import Answers
    from scheduler.energy.caps.ladder import Prices
    from scheduler.energy.caps.price import Price
    from scheduler.energy.caps.rules import CapRules
    from scheduler.energy.caps.view import EngineView

SHARE = 0.955
"""A p95 lets one call in twenty miss. Caps are chosen by this: a fifth of what may miss is kept for surprises."""


LATE = "workflow late by, s:"


class Broken(NamedTuple):
    """A promise that a cap would not keep."""

    promise: str
    predicted: float
    allowed: float

    def __str__(self) -> str:
        return f"{self.promise} {self.predicted:.3g} of {self.allowed:.3g} allowed"


class Promises:
    """Of one engine at one decision. `now` is the price of the load under the present cap."""

    def __init__(self, rules: CapRules, view: EngineView, prices: Prices, now: Price, free: Price) -> None:
        self._rules = rules
        self._prices = prices
        self._now = now
        self._free = free
        """Under the prior limit."""
        # What a call saw, as it would have been under the prior limit: by the model's own ratio of the two.
        self._ttft = self._carried(view.ttft, lambda price: price.first_token)
        self._itl = self._carried(view.itl, lambda price: price.step_seconds)
        self._slack = view.slack
        self._stretch_allowed = view.stretch_allowed

    def _carried(self, seen: Answers, measure: Callable[[Price], float]) -> float | None:
        return seen.quantile(SHARE, lambda limit_watts: self._prices.under(limit_watts, measure))

    def broken(self, price: Price, *, spare: bool) -> Broken | None:
        """The first promise that this cap would not keep; None: it keeps all.

        `spare`: for a cap that is not in force yet: with the targets' margin, and as slow as the model's interval says
        it may be.
        """
        rules = self._rules
        if not price.fits:
            return Broken("load: sequences in a step", price.batch, 0.0)
        # What was seen is sure; what is not is how much slower it gets: by as much as the interval widens.
        unsure = max(price.unsure / self._now.unsure, 1.0) if spare else 1.0
        keep = 1.0 - rules.margin_share if spare else 1.0
        for name, target, seen, measure, free in (
            ("TTFT p95, s:", rules.ttft_seconds_p95, self._ttft, price.first_token, self._free.first_token),
            ("ITL p95, s:", rules.itl_seconds_p95, self._itl, price.step_seconds, self._free.step_seconds),
        ):
            if target is None:
                if measure > free * rules.untargeted_stretch:
                    return Broken(
                        f"no target for {name[:4].strip()}, stretch:", measure / free, rules.untargeted_stretch
                    )
            elif seen is not None and seen * measure * unsure > target * keep:
                return Broken(name, seen * measure * unsure, target * keep)
        allowed = self._stretch_allowed
        if allowed is not None and price.step_seconds * unsure > self._free.step_seconds * allowed:
            return Broken("the policy's slack, stretch:", price.step_seconds / self._free.step_seconds, allowed)
        return self._late(price, unsure)

    def _late(self, price: Price, unsure: float) -> Broken | None:
        slack = self._slack
        if slack is None or slack.remaining_seconds <= 0:
            return None
        if slack.slack_seconds < 0:  # it is late as things are: faster by so much would save it
            shorter = (1.0 - price.step_seconds / self._now.step_seconds) * slack.remaining_seconds
            return None if shorter >= -slack.slack_seconds else Broken(LATE, -slack.slack_seconds, shorter)
        if price.step_seconds <= self._now.step_seconds:
            return None
        longer = (price.step_seconds / self._now.step_seconds * unsure - 1.0) * slack.remaining_seconds
        # A policy that has said what is left for the cap knows what it uses of the slack itself.
        use = self._rules.slack_use if self._stretch_allowed is None else 1.0
        allowed = use * max(slack.slack_seconds, 0.0)
        return Broken("workflow later by, s:", longer, allowed) if longer > allowed else None
