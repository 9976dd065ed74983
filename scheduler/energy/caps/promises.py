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


SPENT = 0.02
"""So many calls must have missed a target before a cap that seems not to keep it goes up for that: what is promised is
a p95 over all of the horizon, and what half a minute of burst would make of all calls says little of it while few have
missed anything."""
POLICY = "the policy's slack, stretch:"
POLICY_WATTS = "the policy's least, W:"
POLICY_BEARS = 1.05
"""A policy plans with the cap in force: what is little more than it has offered does no harm, and a load that comes and
goes must not move the cap each time."""
LATE = "workflow late by, s:"


class Broken(NamedTuple):
    """A promise that a cap would not keep."""

    promise: str
    predicted: float
    allowed: float

    def __str__(self) -> str:
        return f"{self.promise} {self.predicted:.3g} of {self.allowed:.3g} allowed"


class Promises:
    """Of one engine at one decision; `rung` is where its cap stands."""

    def __init__(self, rules: CapRules, view: EngineView, prices: Prices, rung: int) -> None:
        self._rules = rules
        self._prices = prices
        self._rung = rung
        self._now = prices[rung]
        self._free = prices[0]
        """Under the prior limit."""
        # What a call saw, as it would have been under the prior limit: by the model's own ratio of the two.
        self._ttft = self._carried(view.ttft, lambda price: price.first_token)
        self._itl = self._carried(view.itl, lambda price: price.step_seconds)
        self._view = view
        self._slack = view.slack
        self._stretch_allowed = view.stretch_allowed

    def _carried(self, seen: Answers, measure: Callable[[Price], float]) -> float | None:
        return seen.quantile(SHARE, lambda limit_watts: self._prices.under(limit_watts, measure))

    def broken(self, rung: int) -> Broken | None:
        """The first promise that the cap of this rung does not keep as things are; None: it keeps all."""
        return self._broken(self._prices[rung], 1.0, 1.0, spent=True)

    def would_break(self, rung: int, *, pessimistic: bool = True) -> Broken | None:
        """The first promise that a cap which is not in force yet would not keep with the targets' margin, and
        (`pessimistic`) as slow as the model's interval says it may be."""
        keep = 1.0 - self._rules.margin_share
        broken = self._broken(self._prices[rung], 1.0, keep)
        if broken is not None or not pessimistic:
            return broken
        # What was seen is sure; what is not is how much slower it gets: by as much as the interval widens.
        unsure = max(self._prices.sure(rung).unsure / self._prices.sure(self._rung).unsure, 1.0)
        return self._broken(self._prices[rung], unsure, keep)

    def _broken(self, price: Price, unsure: float, keep: float, *, spent: bool = False) -> Broken | None:
        """`spent`: a target counts only once a part of what may miss it has missed it."""
        rules = self._rules
        if not price.fits:
            return Broken("load: sequences in a step", price.batch, 0.0)
        for name, target, seen, answers, measure, free in (
            (
                "TTFT p95, s:",
                rules.ttft_seconds_p95,
                self._ttft,
                self._view.ttft,
                price.first_token,
                self._free.first_token,
            ),
            (
                "ITL p95, s:",
                rules.itl_seconds_p95,
                self._itl,
                self._view.itl,
                price.step_seconds,
                self._free.step_seconds,
            ),
        ):
            if target is None:
                if measure > free * rules.untargeted_stretch:
                    return Broken(
                        f"no target for {name[:4].strip()}, stretch:", measure / free, rules.untargeted_stretch
                    )
            elif spent and answers.missed <= SPENT * answers.total:
                continue
            elif seen is not None and seen * measure * unsure > target * keep:
                return Broken(name, seen * measure * unsure, target * keep)
        least = self._view.least_watts / (POLICY_BEARS if spent else 1.0)
        if price.watts < min(least, self._free.watts):
            return Broken(POLICY_WATTS, price.watts, least)
        allowed = self._stretch_allowed
        if allowed is not None:
            if spent:
                allowed *= POLICY_BEARS
            stretch = price.step_seconds / self._free.step_seconds
            if stretch * unsure > allowed:
                return Broken(POLICY, stretch, allowed)
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
