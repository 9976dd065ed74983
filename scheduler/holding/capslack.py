"""How slow may an engine be made for the workflows on it, and how slow will it be? Where holding and caps meet.

A workflow's slack pays for two things: waiting for company, and slower steps. Slower steps save for certain and from
the first token on, so the cap is offered its share first, and holding lives on what is left: latest starts are computed
with the steps of the cap that is in force, or will be soon. Nobody decides about both twice: the cap controller
searches the cap of least joules within what it is offered, and says which way it goes.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from math import exp
from typing import TYPE_CHECKING, NamedTuple

from scheduler.holding.capneed import begun, prompt_share, rung_needed
from scheduler.holding.flow import AT_ONCE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scheduler.energy.caps.desk import CapsDesk
    from scheduler.energy.desk import EngineDesk
    from scheduler.energy.model.steps import StepPrices
    from scheduler.holding.capneed import Left
    from scheduler.holding.flow import Flow
    from scheduler.holding.room import Room

LOOK_SECONDS = 0.25
"""So often it is looked who is behind."""
RUNG_SHARE = 0.05
"""Of TDP: limits that are looked at are so far apart."""
AHEAD_SECONDS = 20.0
"""Work that is planned now runs under the cap that is in force so much later."""
COMPANY_RATE = 0.3
"""Of a window, in what is taken for the usual step."""
AT_ONCE_RATIO = 1.02
"""What is not to be held bears next to nothing."""
TIDIED_LEAST = 1024
RESERVE = 0.8
"""Of the share by which a cap makes prompts longer: so much earlier does work begin. While it runs, more comes than
without a cap, and what makes deadlines late are bursts of prompts."""


PROMPTS_SECONDS = 300.0
"""In so much time the share of prompts is forgotten by a factor e."""


class Slower(NamedTuple):
    """Times as long as without a limit."""

    decode: float = 1.0
    prefill: float = 1.0


class Bearing(NamedTuple):
    """What a cap may not be below, in watts of each GPU; 0: any will do."""

    least_watts: float = 0.0
    """For what is usual here."""
    need_watts: float = 0.0
    """For what has begun, at once."""


class CapSlack:
    """Of one engine."""

    def __init__(self) -> None:
        self._batch = self._context = 0.0
        """Of the usual step."""
        self._window_end = float("-inf")
        self._tightest: list[tuple[float, int, Flow]] = []
        self._count = 0
        self.slower = self.free = Slower()
        """As planned for last; as without a limit of ours."""
        self._prices: StepPrices | None = None
        self._prompts = 0.0
        """The highest share that prompts had of the time that something takes, the older the less."""
        self._prompts_at = 0.0

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
        self._prices = model.prices()
        limit, prior = planned_watts(engine, window.limit_watts, caps), _prior_watts(engine, caps)
        self.slower = Slower() if limit is None else self._under(limit)
        self.free = self.slower if prior is None or limit is None or limit >= prior else self._under(prior)
        return self.slower

    def _under(self, limit_watts: float) -> Slower:
        assert self._prices is not None
        return slower(self._prices, self._batch, self._context, limit_watts)

    @property
    def reserve(self) -> float:
        """So much more margin than without a cap: a share of the predicted time."""
        return RESERVE * (self.slower.prefill / self.free.prefill - 1.0)

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

    def offer(self, room: Room, share: float, margin: float, now: float, caps: CapsDesk) -> None:
        """Tell the cap controller what the engine of this room may be."""
        stretch = self.stretch(share, margin, len(room.flow_of))
        lefts = [] if self.free is self.slower else begun(room, now)
        caps.propose(room.name, stretch, now, *self.bearing(room.name, stretch, lefts, now, caps))

    def bearing(
        self, engine: str, stretch: float, lefts: Sequence[tuple[Flow, Left]], now: float, caps: CapsDesk
    ) -> Bearing:
        """`lefts`: what has begun, and how long it still takes under the cap that is planned for.

        Prompts draw most and are slowed most: where many come at once, they are longer by more than the mean step. What
        `stretch` says of steps holds for them, too, by the share that they had of what was most behind them.
        """
        sight, controller = caps.engines.get(engine), caps.fleet.controllers.get(engine)
        cards, standing = None if sight is None else sight.cards, None if controller is None else controller.standing
        if self._prices is None or cards is None or cards.limits is None or standing is None:
            return Bearing()
        if (prior := standing.prior_watts) is None:
            return Bearing()
        step = RUNG_SHARE * cards.limits.default
        lowest = min(max(cards.limits.lowest, caps.rules.floor_share * cards.limits.default), prior)
        watts = [prior - step * number for number in range(int((prior - lowest) / step + 1e-6) + 1)]
        rungs = [self._under(each * cards.gpus) for each in watts]
        older = self._prompts * exp((self._prompts_at - now) / PROMPTS_SECONDS)
        self._prompts_at, self._prompts = now, max(older, prompt_share(lefts))
        share, free, least = self._prompts, rungs[0], len(rungs) - 1
        while least > 0:
            decode, prefill = rungs[least].decode / free.decode, rungs[least].prefill / free.prefill
            if (1.0 - share) * decode + share * prefill <= stretch:
                break
            least -= 1
        need = rung_needed(lefts, now, self.slower, rungs)
        return Bearing(watts[least], watts[need] if need < len(rungs) - 1 else 0.0)


def _prior_watts(engine: str, caps: CapsDesk) -> float | None:
    """Of all GPUs together, as it was found; None: it is not known, or nothing of it was changed."""
    sight, controller = caps.engines.get(engine), caps.fleet.controllers.get(engine)
    if sight is None or sight.cards is None or controller is None or not controller.standing.ours:
        return None
    prior = controller.standing.prior_watts
    return None if prior is None else prior * sight.cards.gpus


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
