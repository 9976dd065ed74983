"""What does an engine's work cost? The price list that a bill is made with, and joules by component for some work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from scheduler.energy.model.prior import Prices

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scheduler.energy.work import Work

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


class Describing(Protocol):
    """`scheduler.energy.model.EnergyModel`, as far as it is needed here."""

    def describe(self) -> dict[str, Any]:
        """Its coefficients by name, each with `value`, and its `residuals`."""


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
WINDOW_ERRORS = 2.0
"""Mean errors of a window's joules that nine of ten bills lie within."""


def tariff_of(model: Describing) -> Tariff:
    """What the live model believes now. Costs about 0.1 ms: once a window. KeyError if it has no such coefficients.

    Until it has seen windows, bills may be as far off as its coefficients: the widest of those that matter most.
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
    idle_watts = float(coefficients["idle_watts"]["value"])
    return Tariff.of(prices, idle_watts, min(error, 1.0))


def price(tariff: Tariff, work: Work) -> Cost:
    """What some work costs at these prices; negative for a correction downwards."""
    return Cost(
        tariff[4] * work[4] + tariff[5] * work[5],
        tariff[1] * work[1],
        tariff[2] * work[2] + tariff[3] * work[3],
        tariff[0] * work[0],
    )


def prefill_joules(tariff: Tariff, start: float, end: float) -> float:
    """To compute a prompt's tokens from `start` to `end` anew: (end² − start²) / 2 attention pairs, as Work counts."""
    return tariff[4] * (end - start) + tariff[5] * (end * end - start * start) / 2
