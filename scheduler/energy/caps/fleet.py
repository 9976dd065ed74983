"""Which caps for all engines together? Each decides for itself; a budget of watts over all has the last word."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scheduler.energy.caps.budget import Bid, divide
from scheduler.energy.caps.controller import CapController
from scheduler.energy.caps.promises import Promises

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scheduler.energy.caps.decision import Decision
    from scheduler.energy.caps.rules import CapRules
    from scheduler.energy.caps.view import CostModel, EngineView
    from scheduler.events import CapApplied


class CapFleet:
    """All engines of a gateway whose GPUs are named. Pure, as its controllers are."""

    def __init__(self, rules: CapRules) -> None:
        self.rules = rules
        self.controllers: dict[str, CapController] = {}

    def decide(self, now: float, views: Mapping[str, EngineView], models: Mapping[str, CostModel]) -> list[Decision]:
        """One decision for each view, in the order in which they must be carried out: what goes down comes first, so
        that a budget is not exceeded in between. Engines without a view are forgotten."""
        for name in self.controllers.keys() - views.keys():
            del self.controllers[name]
        decisions = {}
        for name in sorted(views):
            controller = self.controllers.get(name)
            if controller is None:
                controller = self.controllers[name] = CapController(name, self.rules)
            decisions[name] = controller.plan(now, views[name], models[name])
        if self.rules.budget_watts is not None:
            self._keep_budget(self.rules.budget_watts, views, decisions)
        for name, decision in decisions.items():
            self.controllers[name].commit(decision)
        return sorted(decisions.values(), key=lambda decision: decision.move != "down")

    def _keep_budget(
        self, budget_watts: float, views: Mapping[str, EngineView], decisions: dict[str, Decision]
    ) -> None:
        """Divide the watts where all that was decided is more than there are."""
        bids, fixed = [], 0.0
        for name, decision in decisions.items():
            view = views[name]
            if decision.watts is None:  # not ours to move: what stands there is taken off
                fixed += view.gpus * (view.limits.requested if view.limits is not None else 0.0)
            elif view.limits is not None:
                bids.append(self._bid(view, decision, decision.watts))
            else:
                fixed += view.gpus * decision.watts
        wanted = sum(bid.gpus * bid.wanted_watts for bid in bids)
        if wanted + fixed <= budget_watts:
            return
        given = divide(max(budget_watts - fixed, 0.0), bids)
        least = sum(bid.gpus * bid.least_watts for bid in bids) + fixed
        words = f"{budget_watts:g} W for all, {wanted + fixed:.0f} W were wanted"
        if least > budget_watts:
            words = (
                f"{budget_watts:g} W for all cannot be kept: the lowest limits and what is not ours are {least:.0f} W"
            )
        for name, watts in given.items():
            decision = decisions[name]
            if watts != decision.watts:
                decisions[name] = self.controllers[name].divert(views[name], decision, watts, words)

    def _bid(self, view: EngineView, decision: Decision, wanted: float) -> Bid:
        assert view.limits is not None
        controller = self.controllers[view.engine]
        prices, ladder = controller.prices, controller.ladder
        least = min(view.limits.lowest, wanted)
        if prices is None or ladder is None:
            # Nothing is known of its load: it is taken for a busy one, slower as the watts are fewer.
            return Bid(view.engine, view.gpus, least, wanted, wanted, lambda watts: view.gpus * wanted / watts)
        promises = Promises(self.rules, view, prices, ladder.nearest(decision.from_watts or wanted))
        needed = ladder.at_least(wanted)
        while needed < ladder.rungs and promises.broken(needed + 1) is None:
            needed += 1

        def busy_gpus(watts: float) -> float:
            # Between two rungs in a straight line: convex where the rungs are.
            place = min(max((ladder.prior_watts - watts) / ladder.rung_watts, 0.0), float(ladder.rungs))
            above = int(place)
            below = min(above + 1, ladder.rungs)
            one, other = (prices[rung].stretch * prices[rung].busy_share for rung in (above, below))
            return view.gpus * (one + (other - one) * (place - above))

        return Bid(view.engine, view.gpus, least, wanted, ladder.watts(needed), busy_gpus)

    def applied(self, event: CapApplied) -> None:
        """To the engine's controller; of engines that are not there nothing is kept."""
        if (controller := self.controllers.get(event.engine)) is not None:
            controller.applied(event)

    def resume(self, engine: str) -> bool:
        """See CapController.resume. False: there is no such engine."""
        controller = self.controllers.get(engine)
        if controller is not None:
            controller.resume()
        return controller is not None

    def describe(self) -> dict[str, Any]:
        """JSON types, for GET /admin/caps."""
        return {
            "mode": self.rules.mode,
            "budget_watts": self.rules.budget_watts,
            "engines": [controller.describe() for _, controller in sorted(self.controllers.items())],
        }
