"""What does an engine's work cost? The price list that a bill is made with, and joules by component for some work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from scheduler.energy.work import Work

if TYPE_CHECKING:
    from scheduler.energy.model.steps import StepPrices
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

    @property
    def relative_error(self) -> float | None: ...

    def prices(self) -> StepPrices: ...

    def describe(self) -> dict[str, Any]: ...


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
    """Share of these prices that a power limit leaves: of all else, and of prefill on average."""
    prefill_curve: tuple[float, ...] = ()
    """Of prefill by the step that it is computed in, see bill_limit.py; empty: of all alike."""
    believed: StepPrices | None = None
    """All that the model believes, what the same takes in time too; None: not known."""

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
WINDOW_ERRORS = 1.0
"""So many mean errors of a window's joules more."""


def tariff_of(model: Model, window: Window | None = None) -> Tariff:
    """What the live model believes now; with a window, under the power limit of that. About 0.5 ms: once a window.

    Until the model has seen windows, bills may be as far off as its coefficients.
    """
    believed = model.prices()
    seen = model.relative_error
    if seen is None:
        step = model.describe()["coefficients"]["energy.step"]
        error = (float(step["high"]) - float(step["value"])) / float(step["value"]) if step["value"] else 1.0
    else:
        error = SETTLED_ERROR + WINDOW_ERRORS * seen
    tariff = Tariff.of(believed.energy, believed.idle_watts, min(error, 1.0))._replace(believed=believed)
    if window is None or window.limit_watts is None:
        return tariff
    from scheduler.energy.bill_limit import under_limit

    return under_limit(tariff, believed, window)


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
