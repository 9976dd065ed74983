"""What does an engine's work cost? The price list that a bill is made with, and joules by component for some work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from scheduler.energy.model.prior import Prices
from scheduler.energy.work import Work

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scheduler.energy.model.results import WindowCost
    from scheduler.energy.window import Window

MICRO = 1_000_000
"""Microjoules in a joule: bills are sums of whole microjoules, which are exact."""


class UnitPrices(Protocol):
    """Joules above idle for one of each feature of `Work`; `scheduler.energy.model.Prices` is such an object."""

    @property
    def step(self) -> float: ...
    @property
    def decode_token(self) -> float: ...
    @property
    def context_token(self) -> float: ...
    @property
    def repeated_token(self) -> float: ...
    @property
    def prefill_token(self) -> float: ...
    @property
    def attention_pair(self) -> float: ...


class Model(Protocol):
    """`scheduler.energy.model.EnergyModel`, as far as it is needed here."""

    def describe(self) -> dict[str, Any]:
        """Its coefficients by name, each with `value`, and its `residuals`."""

    def predict_window(self, work: Work, seconds: float, limit_watts: float | None = None) -> WindowCost:
        """Joules of work within some seconds under a limit."""


class Tariff(NamedTuple):
    """Of one engine, all its GPUs together: joules above idle for one of each feature of `Work`, before any scaling."""

    step: float
    decode_token: float
    context_token: float
    repeated_token: float
    prefill_token: float
    attention_pair: float
    idle_watts: float
    """With the model loaded and nothing running."""
    relative_error: float = 0.3
    """Nine of ten bills of a call lie within this share of the truth; 0.3 is what a prior is believed to."""
    decode_left: float = 1.0
    prefill_left: float = 1.0
    """Share of these prices that a power limit leaves: of prefill, and of all else."""

    @classmethod
    def of(cls, prices: UnitPrices, idle_watts: float, relative_error: float = 0.3) -> Tariff:
        """From unit prices. ValueError for a price below 0."""
        values = (
            prices.step, prices.decode_token, prices.context_token, prices.repeated_token, prices.prefill_token,
            prices.attention_pair, idle_watts, relative_error,
        )  # fmt: skip
        if not all(0 <= value < float("inf") for value in values):
            raise ValueError(f"a price must be finite and at least 0: {values}")
        return cls(*values)


class Cost(NamedTuple):
    """Joules above idle by what they were for: terms of design.md's E, each a call's own but the last."""

    prefill: float
    """e_p · prompt tokens computed + e_a · attention pairs."""
    decode: float
    """e_d · tokens decoded."""
    context: float
    """e_k · tokens of KV cache read, those that others read too at their own price."""
    step: float
    """e_s · share of steps: the closed-form Shapley value of what a step costs whoever is in it, e_s / batch each."""

    @property
    def total(self) -> float:
        """All of it."""
        return self[0] + self[1] + self[2] + self[3]


SETTLED_ERROR = 0.04
"""Relative: what a split leaves open once the prices are learned (measured on the twin, docs/energy-bill.md)."""
LEAST_LEFT = 0.3
ROOMY_SECONDS = 10.0
"""Longer than any step, even where a limit slows it."""
PROMPT_LEAST, PROMPT_MOST = 64.0, 8192.0
"""Prompt tokens in a step: vLLM's budget is the most."""
WINDOW_ERRORS = 1.0
"""So many mean errors of a window's joules more."""


def tariff_of(model: Model, window: Window | None = None) -> Tariff:
    """What the live model believes now; with a window, under the power limit of that. About 0.5 ms: once a window.

    Until the model has seen windows, bills may be as far off as its coefficients.
    """
    description = model.describe()
    coefficients: Mapping[str, Mapping[str, Any]] = description["coefficients"]
    prices = Prices(*(float(coefficients[f"energy.{name}"]["value"]) for name in Prices._fields))
    seen = description["residuals"]["relative_error"]
    if seen is None:
        step = coefficients["energy.step"]
        error = (float(step["high"]) - float(step["value"])) / float(step["value"]) if step["value"] else 1.0
    else:
        error = SETTLED_ERROR + WINDOW_ERRORS * float(seen)
    tariff = Tariff.of(prices, float(coefficients["idle_watts"]["value"]), min(error, 1.0))
    return tariff if window is None or window.limit_watts is None else under_limit(tariff, model, window)


def under_limit(tariff: Tariff, model: Model, window: Window) -> Tariff:
    """The same work draws less under a power limit that binds, and steps with prompt tokens reach it first: what the
    limit takes off a step of either kind is taken off all its terms. design.md's cap layer, by the model's own word.

    Two typical steps are asked about and not the window as it is: what an edge cut off it would be taken for a limit's.
    """
    work, limit = window.work, window.limit_watts
    if work.steps <= 0:
        return tariff
    decode = Work(1.0, work[1] / work[0], work[2] / work[0], work[3] / work[0])
    tokens = min(max(work.prefill_tokens / work.prompts, PROMPT_LEAST), PROMPT_MOST) if work.prompts > 0 else 0.0
    left = _left(model, decode, limit, tariff.idle_watts)
    if not tokens:
        return tariff._replace(decode_left=left)
    prefill = decode._replace(prefill_tokens=tokens, attention_pairs=tokens * tokens / 2, prompts=1.0)
    return tariff._replace(decode_left=left, prefill_left=_left(model, prefill, limit, tariff.idle_watts))


def _left(model: Model, work: Work, limit_watts: float | None, idle_watts: float) -> float:
    """Share of a step's joules above idle that the limit leaves."""
    without, under = (
        model.predict_window(work, ROOMY_SECONDS, limit).joules.value - idle_watts * ROOMY_SECONDS
        for limit in (None, limit_watts)
    )
    return min(max(under / without, LEAST_LEFT), 1.0) if without > 0 else 1.0


def price(tariff: Tariff, work: Work) -> Cost:
    """What some work costs at these prices; negative for a correction downwards."""
    left = tariff[8]
    return Cost(
        tariff[9] * (tariff[4] * work[4] + tariff[5] * work[5]),
        left * tariff[1] * work[1],
        left * (tariff[2] * work[2] + tariff[3] * work[3]),
        left * tariff[0] * work[0],
    )


def unlimited(tariff: Tariff, work: Work) -> Work:
    """The work that would cost as much without the limit."""
    left, of_prefill = tariff.decode_left, tariff.prefill_left
    return Work(
        left * work[0], left * work[1], left * work[2], left * work[3], of_prefill * work[4], of_prefill * work[5]
    )


def prefill_joules(tariff: Tariff, start: float, end: float) -> float:
    """To compute a prompt's tokens from `start` to `end` anew: (end² − start²) / 2 attention pairs, as Work counts."""
    return tariff[4] * (end - start) + tariff[5] * (end * end - start * start) / 2
