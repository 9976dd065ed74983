"""What does a decode step cost, for whoever asks thousands of times a second? Plain floats, no numpy, no intervals."""

from __future__ import annotations

from math import exp, log1p, sqrt
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from scheduler.energy.model.prior import CapPrior, Prices

BLUR_LEAST = 0.01
"""Steps are not all alike: a limit begins to bind for some before it does for most."""
WIDTH = 0.55
"""Of the logistic that stands for a standard normal."""
LINEAR, FLAT = 20.0, 40.0
TINY = 1e-12


class Spread(NamedTuple):
    """A quadratic form in (1, batch, context tokens): v² of part of what a step's demand is not known by."""

    one: float
    batch: float
    context: float
    batch_batch: float
    batch_context: float
    context_context: float


class StepPrices(NamedTuple):
    """All that is believed of an engine at one time, as `EnergyModel.prices` gives it; nothing of it ever changes.

    Seconds and joules above idle power for one of each feature of `Work`, the cap layer over them, watts of all GPUs
    together. What the fields say of prefills is for sums; `step` is for steps that decode.
    """

    time: Prices
    energy: Prices
    prompt_seconds: float
    """Further time of each prefill."""
    idle_watts: float
    cap: CapPrior
    most_watts: float
    """No work draws more."""
    time_spread: Spread
    both_spread: Spread
    energy_spread: Spread
    """Variances and covariance of a step's seconds and joules, as far as the prices of the three features go."""

    def step(self, batch: float, context_tokens: float, limit_watts: float | None = None) -> tuple[float, float]:
        """(seconds, joules above idle power) of one step in which `batch` sequences decode a token each and read so
        many tokens of context in all, under a power limit on all GPUs together. 1 µs without a limit, 2 to 3 with one.

        The same figures as `EnergyModel.step`, whose joules have idle power in them.
        """
        time_step, time_decode, time_context, _, _, _ = self.time
        energy_step, energy_decode, energy_context, _, _, _ = self.energy
        seconds = time_step + time_decode * batch + time_context * context_tokens
        joules = energy_step + energy_decode * batch + energy_context * context_tokens
        if seconds <= TINY or joules <= TINY:
            return seconds, joules
        idle = self.idle_watts
        above = min(joules / seconds, max(self.most_watts - idle, 0.0))
        if not limit_watts:
            return seconds, above * seconds
        demand = idle + above
        cap = self.cap
        held = max(cap.draw * limit_watts, idle)
        spread = max(self._blur(batch, context_tokens, seconds, joules), BLUR_LEAST)
        over = positive_part((1 - held / demand) / spread) * spread * demand
        slow = positive_part((cap.onset * demand / limit_watts - 1) / spread) * spread
        seconds *= (1 + slow) ** cap.decode_exponent
        return seconds, max(above - over, 0.0) * seconds

    def prompt_step(self, batch: float, context_tokens: float, prompt_tokens: float, limit_watts: float) -> float:
        """Seconds of a step that computes a prompt of so many new tokens beside what `batch` sequences decode, under a
        limit on all GPUs together that is felt at once. As `EnergyModel.step`, without its doubt of the demand."""
        time, energy, cap = self.time, self.energy, self.cap
        pairs = prompt_tokens * prompt_tokens / 2
        prefill = time.prefill_token * prompt_tokens + time.attention_pair * pairs + self.prompt_seconds
        seconds = prefill + time.step + time.decode_token * batch + time.context_token * context_tokens
        joules = energy.step + energy.decode_token * batch + energy.context_token * context_tokens
        joules += energy.prefill_token * prompt_tokens + energy.attention_pair * pairs
        demand = min(self.idle_watts + joules / max(seconds, TINY), self.most_watts)
        slow = positive_part((cap.onset * demand / limit_watts - 1) / BLUR_LEAST) * BLUR_LEAST
        share = prefill / max(seconds, TINY)
        exponent = cap.decode_exponent * (1 - share) + cap.prefill_exponent * share
        slower: float = (1 + slow) ** exponent
        return seconds * slower

    def _blur(self, batch: float, context: float, seconds: float, joules: float) -> float:
        """Relative standard error of the demand, of energy over time: see `demand_error` in equations.py."""
        twice_batch, twice_context = 2 * batch, 2 * context
        squared, crossed, read = batch * batch, twice_batch * context, context * context
        one, two, three, four, five, six = self.time_spread
        time = one + two * twice_batch + three * twice_context + four * squared + five * crossed + six * read
        one, two, three, four, five, six = self.both_spread
        both = one + two * twice_batch + three * twice_context + four * squared + five * crossed + six * read
        one, two, three, four, five, six = self.energy_spread
        energy = one + two * twice_batch + three * twice_context + four * squared + five * crossed + six * read
        variance = (energy / joules - 2 * both / seconds) / joules + time / (seconds * seconds)
        return sqrt(variance) if variance > 0 else 0.0


def positive_part(z: float) -> float:
    """E max(0, z + N) for a standard normal N, taken for a logistic one of like width: it needs no error function."""
    if z > LINEAR:
        return z
    return WIDTH * log1p(exp(max(z / WIDTH, -FLAT)))
