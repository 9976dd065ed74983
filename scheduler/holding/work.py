"""How much work is a call, alone and beside others?"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from scheduler.holding.costs import CALL_SECONDS
from scheduler.workflow.durations import SecondsForecast

if TYPE_CHECKING:
    from collections.abc import Callable

    from scheduler.holding.costs import StepCosts
    from scheduler.state import CallState
    from scheduler.workflow.durations import DurationModel
    from scheduler.workflow.forecasts import Forecasts
    from scheduler.workflow.node import Node

OUTPUT_TOKENS_UNKNOWN = 256.0
PROMPT_TOKENS_UNKNOWN = 512.0


class CallWork(NamedTuple):
    """Of one call, in seconds of the engine's time."""

    steps: float
    """In which it decodes: its output tokens."""
    prefill_seconds: float
    """During which nobody else gets on."""
    token_seconds: float
    """By which it lengthens each of its steps."""
    joules: float = 0.0
    """Beside its share of steps' fixed cost, above idle power; means nothing where energy is not modelled."""

    @property
    def marginal_seconds(self) -> float:
        """What it adds to steps that are there anyway."""
        return self.prefill_seconds + self.steps * self.token_seconds


def work(costs: StepCosts, new_tokens: float, context_tokens: float, output_tokens: float) -> CallWork:
    """A call of so many new prompt tokens behind cached ones, `context_tokens` in all."""
    before = max(context_tokens - new_tokens / 2, 0.0)
    prefill = new_tokens * (costs.prefill_seconds + costs.pair_seconds * before)
    read = context_tokens + output_tokens / 2
    token = costs.decode_seconds + costs.context_seconds * read
    joules = new_tokens * (costs.prefill_joules + costs.pair_joules * before)
    joules += output_tokens * (costs.token_joules + costs.context_joules * read)
    return CallWork(max(output_tokens, 1.0), prefill, token, joules)


def work_of_node(node: Node, forecasts: Forecasts, costs: StepCosts) -> CallWork:
    """As its forecast has it."""
    if node.tool:
        return CallWork(0.0, 0.0, 0.0)
    prompt = node.prompt_tokens_estimate
    context = PROMPT_TOKENS_UNKNOWN if prompt is None else float(prompt)
    return work(costs, context * forecasts.uncached_share(node), context, node.output_tokens_forecast)


def work_of_call(call: CallState, forecasts: Forecasts, costs: StepCosts) -> CallWork:
    """Of a call, in a workflow or not."""
    if call.node is not None:
        return work_of_node(call.node, forecasts, costs)
    arrived = call.arrived
    output = arrived.expected_output_tokens or arrived.max_output_tokens or OUTPUT_TOKENS_UNKNOWN
    prompt = float(arrived.prompt_tokens_estimate)
    return work(costs, prompt, prompt, float(output))


class IsolatedDurations:
    """A `DurationModel` that says how long calls would last alone on the engine, by its step costs. What company makes
    of that is for the policy to say, which chooses the company."""

    def __init__(self, ask: Callable[[], StepCosts], learned: DurationModel) -> None:
        self.costs = ask()
        self._ask = ask
        self._learned = learned

    def forecast(
        self, model: str | None, uncached_tokens: float, output_tokens: float, output_tokens_upper: float,
        context_tokens: float = 0.0,
    ) -> SecondsForecast:  # fmt: skip
        """Alone on the engine; the spread is that of the length."""
        costs = self.costs
        if costs.step_joules is None:  # until energy is modelled, which may be any moment
            costs = self.costs = self._ask()
        steps, prefill, token, _ = work(costs, uncached_tokens, context_tokens, output_tokens)
        each = costs.step_seconds + token
        longer = max(0.0, output_tokens_upper - output_tokens)
        return SecondsForecast(CALL_SECONDS + prefill + steps * each, longer * each)

    def observe(self, model: str | None, uncached_tokens: float, output_tokens: float, seconds: float) -> None:
        """The energy model learns times from the engine's steps; who decides next may want those of calls."""
        self._learned.observe(model, uncached_tokens, output_tokens, seconds)
