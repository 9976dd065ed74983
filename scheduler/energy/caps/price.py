"""What would the present load take and cost under another cap? The counterfactual behind every decision and claim.

Work is offered from outside, so under a lower cap the same tokens come in the same time; each step takes longer, so
more sequences share it, and there are fewer steps. How many follows from the busy share: with sequences that come at
random and stay for a time that grows with the step, an engine is idle with probability exp(−arrivals · stay) (M/G/∞),
so one that is busy for a share u is busy for 1 − (1 − u)^r once steps take r times as long. The rest is the model's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from scheduler.energy.caps.view import CostModel, Load
    from scheduler.energy.model.results import Interval

ROUNDS_MAX = 12
"""To find how many steps there would be; light loads need three, one near saturation all of them."""
CLOSE_ENOUGH = 0.002
BUSY_MOST = 0.995
"""An engine that is busier than this in a window says nothing of how much more it could bear."""
STRETCH_MOST = 20.0
"""Steps that take longer than this many times what they took: the load does not fit under that cap."""


class Price(NamedTuple):
    """Of the load under one cap."""

    watts: float
    """The cap, of each GPU."""
    joules_per_token: float
    """Of a useful token, idle power included."""
    draw_watts: float
    """Mean over all the time, of all GPUs."""
    demand_watts: float
    """While busy, all GPUs: what it draws then."""
    step_seconds: float
    """Mean of a step."""
    stretch: float
    """Times as long as the load's own steps were."""
    steps: float
    """In the load's time."""
    first_token: float
    """Grows as a first token's time does: prompt step ÷ share of the time in which no other prompt is computed."""
    busy_share: float
    batch: float
    """Mean number of sequences in a step."""
    binding: bool
    fits: bool
    """The engine can do that much under this cap."""
    bounds: Interval | None = None
    """Of `joules_per_token`; None: not asked for."""
    unsure: float = 1.0
    """≥ 1: the pessimistic time over the predicted, where bounds were asked for."""

    def describe(self) -> dict[str, Any]:
        """JSON types."""
        told = self._asdict()
        bounds = told.pop("bounds")
        return {**told, "joules_per_token": self.joules_per_token if bounds is None else bounds._asdict()}


class Offered:
    """A load, and what the model believes of its work: what all prices of one decision have in common."""

    def __init__(self, model: CostModel, load: Load) -> None:
        """The load must have steps and useful tokens."""
        self.model = model
        self.load = load
        self.means = model.means(load.work)
        self.steps = model.prices()
        own = self.means.within(load.seconds, load.work.steps, load.limit_watts)
        self.own_step_seconds = own.busy_seconds / load.work.steps
        """Mean of the load's own steps, as the model has it."""


def _nearer(before: tuple[float, float] | None, steps: float, found: float) -> float:
    """Where a line through the last two guesses and what they led to meets what is guessed (the secant method)."""
    if before is None or before[0] == steps:
        return found
    slope = (found - before[1]) / (steps - before[0])
    if not -3.0 < slope < 0.9:  # too near to a line that never meets it
        return found
    return steps + (found - steps) / (1.0 - slope)


def price(offered: Offered, watts: float, gpus: int, sequences_max: int, *, steps: float = 0.0) -> Price:
    """The load under a cap of so many watts on each GPU. `steps`: a first guess, as of a neighbouring cap."""
    load, limit, own = offered.load, watts * gpus, offered.own_step_seconds
    work, seconds = load.work, load.seconds
    share = min(load.busy_seconds / seconds, BUSY_MOST)
    steps = steps or work.steps
    tried: tuple[float, float] | None = None
    for _ in range(ROUNDS_MAX):
        cost = offered.means.within(seconds, steps, limit)
        stretch = min(cost.busy_seconds / steps / own, STRETCH_MOST)
        busy_share = 1.0 - (1.0 - share) ** stretch
        found = max(work.steps * busy_share / share / stretch, 1.0)
        if abs(found - steps) <= CLOSE_ENOUGH * steps:
            break
        tried, steps = (steps, found), max(_nearer(tried, steps, found), 1.0)
    busy = max(cost.busy_seconds, 1e-9)
    batch = work.decode_tokens / steps
    context = work.context_tokens / work.steps * batch / max(load.batch, 1e-9)
    one = offered.steps.prompt_step(batch, context, work.prefill_tokens / max(work.prompts, 1.0), limit)
    others = min(work.prompts * one / seconds, 0.95)
    return Price(
        watts,
        cost.joules / load.useful_tokens,
        cost.joules / seconds,
        (cost.joules - offered.means.idle_watts * max(seconds - busy, 0.0)) / busy,
        own * stretch,
        stretch,
        steps,
        one / (1.0 - others),
        busy_share,
        batch,
        cost.binding,
        stretch < STRETCH_MOST and batch < sequences_max,
    )


def sure(offered: Offered, price: Price, gpus: int) -> Price:
    """With the model's intervals, which cost twenty times as much as the rest."""
    load = offered.load
    cost = offered.model.predict_window(load.work._replace(steps=price.steps), load.seconds, price.watts * gpus)
    unsure = max(cost.busy_seconds.high / max(cost.busy_seconds.value, 1e-9), 1.0)
    return price._replace(bounds=cost.joules.times(1.0 / load.useful_tokens), unsure=unsure)
