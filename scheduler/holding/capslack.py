"""How slow may an engine be made for the workflows on it, and how slow will it be? Where holding and caps meet.

A workflow's slack pays for two things: waiting for company, and slower steps. Slower steps save for certain and from
the first token on, so the cap is offered its share first, and holding lives on what is left: latest starts are computed
with the steps of the cap that is in force, or will be soon. Nobody decides about both twice: the cap controller
searches the cap of least joules within what it is offered, and says which way it goes.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, NamedTuple

from scheduler.holding.flow import AT_ONCE

if TYPE_CHECKING:
    from scheduler.energy.caps.desk import CapsDesk
    from scheduler.energy.desk import EngineDesk
    from scheduler.energy.model.steps import StepPrices
    from scheduler.holding.flow import Flow

AHEAD_SECONDS = 20.0
"""Work that is planned now runs under the cap that is in force so much later."""
COMPANY_RATE = 0.3
"""Of a window, in what is taken for the usual step."""
AT_ONCE_RATIO = 1.02
"""What is not to be held bears next to nothing."""
TIDIED_LEAST = 1024


class Slower(NamedTuple):
    """Times as long as without a limit."""

    decode: float = 1.0
    prefill: float = 1.0


class CapSlack:
    """Of one engine."""

    def __init__(self) -> None:
        self._batch = self._context = 0.0
        """Of the usual step."""
        self._window_end = float("-inf")
        self._tightest: list[tuple[float, int, Flow]] = []
        self._count = 0
        self.slower = Slower()
        """As planned for last."""

    # --- how slow it will be ---

    def plan(self, engine: str, desk: EngineDesk | None, caps: CapsDesk) -> Slower:
        """How much longer steps take under the cap that is or soon will be in force, in their usual company."""
        model = None if desk is None else desk.model
        window = None if desk is None else desk.last_window
        if model is None or window is None:
            return Slower()
        if window.end > self._window_end and window.work.steps >= 1 and window.work.decode_tokens > 0:
            steps, rate = window.work.steps, COMPANY_RATE if self._batch else 1.0
            self._batch += rate * (window.work.decode_tokens / steps - self._batch)
            self._context += rate * (window.work.context_tokens / steps - self._context)
            self._window_end = window.end
        limit = planned_watts(engine, window.limit_watts, caps)
        self.slower = Slower() if limit is None else slower(model.prices(), self._batch, self._context, limit)
        return self.slower

    # --- how slow it may be ---

    def came(self, flow: Flow, step_seconds: float, now: float) -> None:
        """A workflow's first call is held. `step_seconds`: as planned, of a step without company."""
        if flow.deadline == AT_ONCE:
            ratio = AT_ONCE_RATIO
        else:  # alone, but with all of its own calls, and without a limit: that is what may be stretched
            decode = flow.held_tail * flow.fixed_share(step_seconds) + flow.left_marginal - flow.prefill
            alone = decode / self.slower.decode + flow.prefill / self.slower.prefill
            ratio = (flow.deadline - now) / max(alone, 1e-3)
        self._count += 1
        heappush(self._tightest, (ratio, self._count, flow))

    def stretch(self, share: float, margin: float, live: int) -> float:
        """Steps may take so many times as long as without a cap: a share of what the tightest workflow that is here
        could wait, had it all for itself. `margin`: so much longer than predicted things may take anyway."""
        heap = self._tightest
        while heap and _over(heap[0][2]):
            heappop(heap)
        if len(heap) > TIDIED_LEAST + 4 * live:
            heap[:] = [entry for entry in heap if not _over(entry[2])]
            heapify(heap)
        if not heap:
            return 1.0
        return max(1.0, 1.0 + share * (heap[0][0] / (1.0 + margin) - 1.0))


def planned_watts(engine: str, limit_watts: float | None, caps: CapsDesk) -> float | None:
    """The limit of all its GPUs together under which work that is planned now will run; None: none is known."""
    sight, controller = caps.engines.get(engine), caps.fleet.controllers.get(engine)
    if sight is None or sight.limit_watts is None or sight.cards is None:
        return limit_watts
    limit, cards, rules = sight.limit_watts, sight.cards, caps.rules
    last = None if controller is None else controller.last
    if last is None or last.target_watts is None or cards.limits is None:
        return limit
    if rules.mode != "actuate" or not cards.may_set:
        return limit
    falls = AHEAD_SECONDS / rules.step_seconds * rules.step_share * cards.limits.default * cards.gpus
    return min(limit, max(limit - falls, last.target_watts * cards.gpus))


def slower(prices: StepPrices, batch: float, context_tokens: float, limit_watts: float) -> Slower:
    """Of steps with such company, and of prompts, whose steps may draw twice what decoding draws."""
    energy, time, cap = prices.energy, prices.time, prices.cap
    demand = prices.idle_watts + energy.prefill_token / max(time.prefill_token, 1e-12)
    prefill = max(1.0, cap.onset * demand / limit_watts) ** cap.prefill_exponent
    free, _ = prices.step(max(batch, 1.0), context_tokens)
    under, _ = prices.step(max(batch, 1.0), context_tokens, limit_watts)
    return Slower(max(under / free, 1.0), prefill)


def _over(flow: Flow) -> bool:
    if flow.present:
        return False
    workflow = flow.workflow
    return workflow is None or workflow.closed_at is not None or not workflow.graph.unfinished
