"""Which part of a bill is off by how much? One part at a time as the gateway has it, the others as they truly are."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

from scheduler.energy.bill_limit import all_left_of
from scheduler.energy.bill_prices import tariff_of

if TYPE_CHECKING:
    from bench.energy.bill import Scenes
    from scheduler.energy.bill_prices import Tariff
    from scheduler.energy.window import Window

FEATURES = 6


class Part(NamedTuple):
    """Errors are relative, without sign, their means; the sum over all calls is set right, as the meter would."""

    name: str
    call_error: float
    workflow_error: float


class Told:
    """What windows told the bill of each call, and what it thought of the power limit."""

    def __init__(self) -> None:
        self.work: dict[str, list[float]] = defaultdict(lambda: [0.0] * FEATURES)
        self.left: dict[str, float] = {}

    def window(self, window: Window, tariff: Tariff) -> None:
        """One that is billed now."""
        calls = window.calls
        left = all_left_of(tariff, calls.step_tokens, calls.step_before) if tariff.prefill_curve else None
        for place, (call_id, work, correction, _, _, more_steps, computed, _, _) in enumerate(calls):
            told = self.work[call_id]
            for feature in range(FEATURES):
                told[feature] += work[feature] + correction[feature]
            told[0] += more_steps
            if computed > 0 and work.prefill_tokens > 0:
                self.left[call_id] = tariff.prefill_left if left is None else float(left[place])


def parts(scenes: Scenes, calls: list[str], workflows: list[list[str]]) -> list[Part]:
    """Of a scene that was played, of these calls and workflows. Without the sharing of prefixes, which is exact."""
    truth, told = scenes.truth, scenes.told
    terms = scenes.engine.calibration.energy
    true_prices = (
        terms.step, terms.decode_token, terms.context_token, terms.repeated_token, terms.prefill_token,
        terms.attention_pair,
    )  # fmt: skip
    tariff = tariff_of(scenes.model)
    model_prices = (
        tariff.step, tariff.decode_token, tariff.context_token, tariff.repeated_token, tariff.prefill_token,
        tariff.attention_pair,
    )  # fmt: skip
    true_left = {}
    for call_id in calls:
        nominal = true_prices[4] * truth.work[call_id][4] + true_prices[5] * truth.work[call_id][5]
        true_left[call_id] = truth.prefill_joules[call_id] / nominal if nominal > 0 else 1.0

    def of(name: str, work: dict[str, list[float]], prices: tuple[float, ...], left: dict[str, float]) -> Part:
        priced = {}
        for call_id in calls:
            values = [price * done for price, done in zip(prices, work[call_id], strict=True)]
            priced[call_id] = sum(values[:4]) + left.get(call_id, 1.0) * (values[4] + values[5])
        scale = sum(truth.own[call_id] for call_id in calls) / sum(priced.values())
        errors = [abs(scale * priced[call_id] / truth.own[call_id] - 1) for call_id in calls]
        whole = [
            abs(scale * sum(priced[one] for one in ids) / sum(truth.own[one] for one in ids) - 1) for ids in workflows
        ]
        return Part(name, sum(errors) / len(errors), sum(whole) / len(whole))

    return [
        of("the work", told.work, true_prices, true_left),
        of("the limit", truth.work, true_prices, told.left),
        of("the prices", truth.work, model_prices, true_left),
        of("prices and limit", truth.work, model_prices, told.left),
        of("all of it", told.work, model_prices, told.left),
    ]
