"""Which cap, now? One engine's decisions: up at once, down step by step, and only where nothing promised is broken."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scheduler.actions import SetCap, SetClock
from scheduler.energy.caps.clock import clock_for
from scheduler.energy.caps.danger import DangerWatch
from scheduler.energy.caps.decision import Decision, Move, Why
from scheduler.energy.caps.ladder import RUNGS_A_STEP, Ladder, Prices
from scheduler.energy.caps.promises import LATE, POLICY, POLICY_WATTS, Promises
from scheduler.energy.caps.standing import Standing

if TYPE_CHECKING:
    from scheduler.energy.caps.price import Price
    from scheduler.energy.caps.promises import Broken
    from scheduler.energy.caps.rules import CapRules
    from scheduler.energy.caps.view import CostModel, EngineView, Load
    from scheduler.events import CapApplied

LOAD_FELL = 0.7
"""A cap that was barred under a load may be tried again under less than this share of it."""
BUSY_LEAST = 0.001
"""An engine that is less busy than this has no load to decide by."""


class CapController:
    """`decide` each `interval_seconds`; `applied` with each CapApplied of the engine. Pure: time is what it is told.

    The same views in the same order lead to the same decisions.
    """

    def __init__(self, engine: str, rules: CapRules) -> None:
        self.engine = engine
        self.rules = rules
        self.standing = Standing(rules)
        self.prices: Prices | None = None
        """Of the last decision's load; None: it had none."""
        self.ladder: Ladder | None = None
        self.last: Decision | None = None
        self.moves = 0
        self._danger = DangerWatch(rules)
        self._calm_until = float("-inf")
        self._searched: Decision | None = None
        """What the last search of the ladder led to."""
        self._bar: tuple[float, float, float] | None = None
        """A cap that was not kept, until when it is barred, and the useful tokens a second it was not kept under."""

    # --- what it is told ---

    def applied(self, event: CapApplied) -> None:
        """What became of a wish, or what somebody else did."""
        self.standing.applied(event)

    def resume(self) -> None:
        """Somebody has said that we may set the cap again: after a yield, or after too many failures.

        What is found then is the limit to which dangers return.
        """
        self.standing.resume()

    # --- deciding ---

    def decide(self, now: float, view: EngineView, model: CostModel) -> Decision:
        """What should be in force from now on, and why. `now` never goes back."""
        decision = self.plan(now, view, model)
        self.commit(decision)
        return decision

    def commit(self, decision: Decision) -> None:
        """This is what will be done: the plan, or what a budget made of it."""
        self.last = decision
        if decision.action is not None:
            assert decision.watts is not None
            self.moves += 1
            self.standing.asked(decision.watts, decision.at, down=decision.move == "down")

    def divert(self, view: EngineView, plan: Decision, watts: float, words: str) -> Decision:
        """The plan with other watts, because of a budget: it binds at once, whatever the rule for steps says."""
        return self._to(
            plan.at, view, watts, "budget", f"{words}; by itself: {plan.words}", free=plan.without,
            target=plan.target_watts,
        )  # fmt: skip

    def plan(self, now: float, view: EngineView, model: CostModel) -> Decision:
        """As `decide`, but nothing is asked for until `commit`."""
        self.prices = self.ladder = None
        standing = self.standing
        refusal = standing.look(now, view)
        danger = self._danger.look(now, view, model)
        if refusal is not None and refusal.final:
            return Decision(
                self.engine, now, "stay", refusal.why, refusal.words, None, prior_watts=standing.prior_watts
            )
        current, prior = standing.current_watts, standing.prior_watts
        if current is None or prior is None:
            return Decision(self.engine, now, "stay", "missing", "the card's limit is not known", None)
        if view.mode != "actuate" and standing.ours and current < prior:
            return self._to(now, view, prior, "arm", "the experiment's arm sets no limits: back to the one before")
        if view.mode == "off":
            return self._to(now, view, current, "arm", "the experiment's arm has cap decisions off")
        if danger is not None:
            if current < prior:
                self._calm_until = now + self.rules.calm_seconds
                if danger.why in ("slo_danger", "queue_grows") and view.load is not None:
                    self._set_bar(current, now, view.load)
            return self._to(now, view, prior, danger.why, danger.words)
        if (need := min(view.need_watts, prior)) > current:
            self._searched = None
            return self._to(now, view, need, "late", f"the policy needs {need:.0f} W for what it has begun")
        if refusal is not None:
            return self._to(now, view, current, refusal.why, refusal.words)
        load = view.load
        if load is None:
            return self._to(now, view, current, "missing", "no window of work and energy is known")
        if load.work.steps < 1 or load.useful_tokens < 1 or load.busy_seconds < BUSY_LEAST * load.seconds:
            return self._to(now, view, current, "idle", f"no work in {load.seconds:.0f} s; a cap would change nothing")
        assert view.limits is not None
        self.ladder = Ladder(prior, view.limits, self.rules)
        self.prices = Prices(model, load, self.ladder, view.gpus, view.sequences_max)
        return self._priced(now, view, load, self.ladder, self.prices)

    def _priced(self, now: float, view: EngineView, load: Load, ladder: Ladder, prices: Prices) -> Decision:
        """All is known and nothing is on fire."""
        current = self.standing.current_watts
        assert current is not None and view.limits is not None
        self._lift_bar(now, load)
        rung = ladder.nearest(current)
        here, free = prices.sure(rung), prices.sure(0)
        promises = Promises(self.rules, view, prices, rung)
        if rung > 0 and (broken := promises.broken(rung)) is not None:
            late = broken.promise == LATE
            if not late and broken.promise not in (
                POLICY,
                POLICY_WATTS,
            ):  # one workflow's slack says nothing of what the others bear
                self._set_bar(current, now, load)
            up = rung - 1
            while up > 0 and promises.would_break(up) is not None:
                up -= 1
            self._searched = None
            why: Why = "late" if late else "not_kept"
            return self._to(now, view, ladder.watts(up), why, str(broken), here=prices.sure(up), free=free)
        decision = self._as_before(now, view, here, free)
        if decision is None:
            decision = self._searched = self._search(now, view, ladder, prices, promises)
        return decision

    def _as_before(self, now: float, view: EngineView, here: Price, free: Price) -> Decision | None:
        """Nothing is broken: what the last search found holds until the next step might come. (A search prices the load
        under many caps, which takes milliseconds.)"""
        found, current = self._searched, self.standing.current_watts
        assert current is not None
        if found is None or now >= found.at + self.rules.step_seconds:
            return None
        if current == found.watts:
            why: Why = found.why if found.move == "stay" else "waiting"
            return self._to(now, view, current, why, found.words, here=here, free=free, target=found.target_watts)
        if found.action is None and current == found.from_watts and found.watts is not None:  # it was only advised
            return self._to(now, view, found.watts, found.why, found.words, here=found.predicted, free=free,
                            target=found.target_watts)  # fmt: skip
        return None

    def _search(self, now: float, view: EngineView, ladder: Ladder, prices: Prices, promises: Promises) -> Decision:
        """Where the steps lead from here, and the next of them."""
        current = self.standing.current_watts
        assert current is not None and view.limits is not None
        rung = ladder.nearest(current)
        here, free = prices.sure(rung), prices.sure(0)
        target, stop = self._target(rung, prices, promises, ladder)
        saved = 1.0 - prices[target].joules_per_token / here.joules_per_token
        heading = ladder.watts(target)
        if target == rung or saved < self.rules.hysteresis_share:
            binds = here.binding or prices[target].binding
            why: Why = "best" if binds else "not_binding"
            words = f"{here.joules_per_token:.4g} J a token; " + (
                f"lower: {stop}" if stop is not None else f"lower caps save under {self.rules.hysteresis_share:.1%}"
            )
            if not binds:
                words = f"it draws {here.demand_watts / view.gpus:.0f} W of {current:.0f} W; nothing is claimed"
            return self._to(now, view, current, why, words, here=here, free=free, target=heading)
        words = f"{heading:.0f} W would save {saved:.1%} of {here.joules_per_token:.4g} J a token"
        if target < rung:  # less time saves more than less power: the engine idles sooner
            return self._to(now, view, ladder.watts(rung - 1), "cheaper", words, here=prices.sure(rung - 1), free=free,
                            target=heading)  # fmt: skip
        held = self._held_back(now, view)
        if held is not None:
            return self._to(now, view, current, held[0], f"{words}; {held[1]}", here=here, free=free, target=heading)
        next_rung = min(target, rung + RUNGS_A_STEP)
        # A budget may have left the cap between two rungs: the step is measured from where it stands.
        watts = max(ladder.watts(next_rung), current - self.rules.step_share * view.limits.default)
        return self._to(now, view, watts, "cheaper", words, here=prices.sure(next_rung), free=free, target=heading)

    def _target(self, rung: int, prices: Prices, promises: Promises, ladder: Ladder) -> tuple[int, Broken | str | None]:
        """(the rung of least predicted joules that keeps all, what stands against the first one below it).

        Looks one rung up, and down until a promise would break: lower caps are slower still.
        """
        if rung > 0:
            above = prices[rung - 1].joules_per_token
            if above < prices[rung].joules_per_token * (1.0 - self.rules.hysteresis_share):
                return rung - 1, None
        kept, stop = self._furthest(rung, promises, ladder)
        if kept > rung and (broken := promises.would_break(kept)) is not None:
            # Intervals are dear: they are asked for only where the likely values hold, and of few rungs.
            low, stop = rung, broken
            while kept - low > 1:
                middle = (low + kept) // 2
                if (broken := promises.would_break(middle)) is None:
                    low = middle
                else:
                    kept, stop = middle, broken
            kept = low
        tried = {rung, kept, *range(rung, kept, RUNGS_A_STEP)}
        return min(sorted(tried), key=lambda each: prices[each].joules_per_token), stop

    def _furthest(self, rung: int, promises: Promises, ladder: Ladder) -> tuple[int, Broken | str | None]:
        """(the lowest rung down to which likely values keep all, what stands against the next one)."""
        lowest = self._lowest_allowed(ladder)
        stop: Broken | str | None = None
        stride = RUNGS_A_STEP
        while stride:
            candidate = rung + stride
            if candidate > lowest:
                stop = stop or (f"the floor, {ladder.watts(lowest):.0f} W" if lowest == ladder.rungs else "barred")
            elif (broken := promises.would_break(candidate, pessimistic=False)) is not None:
                stop = broken
            else:
                rung = candidate
                continue
            stride //= 2
        return rung, stop

    def _lowest_allowed(self, ladder: Ladder) -> int:
        """Rung, where a bar holds the one above it."""
        if self._bar is None:
            return ladder.rungs
        return min(ladder.rungs, max(ladder.at_least(self._bar[0]) - 1, 0))

    def _held_back(self, now: float, view: EngineView) -> tuple[Why, str] | None:
        """Why a step down must wait; None: it may be made."""
        rules, standing = self.rules, self.standing
        if now < self._calm_until:
            return "waiting", f"{self._calm_until - now:.0f} s of calm are still asked for"
        if (left := standing.last_down_at + rules.step_seconds - now) > 0:
            return "waiting", f"the next step may come in {left:.0f} s"
        if view.itl.total < rules.calls_least:
            return (
                "few_calls",
                f"{view.itl.total} answers in {rules.horizon_seconds:g} s, {rules.calls_least} are needed",
            )
        since = standing.moved_at + view.settle_seconds
        if view.itl.last_at <= since:
            return "few_calls", "nothing has been answered under the present cap"
        return None

    def _lift_bar(self, now: float, load: Load) -> None:
        if self._bar is not None:
            _, until, rate = self._bar
            if now >= until or load.useful_tokens / load.seconds < LOAD_FELL * rate:
                self._bar = None

    def _set_bar(self, watts: float, now: float, load: Load) -> None:
        self._bar = watts, now + self.rules.bar_seconds, load.useful_tokens / load.seconds

    def _to(
        self, now: float, view: EngineView, watts: float, why: Why, words: str, *, here: Price | None = None,
        free: Price | None = None, target: float | None = None,
    ) -> Decision:  # fmt: skip
        """The decision for this cap, with the action that it takes, if any."""
        current, prior = self.standing.current_watts, self.standing.prior_watts
        assert current is not None and prior is not None
        move: Move = "stay" if watts == current else "down" if watts < current else "up"
        action: SetCap | SetClock | None = None
        allowed = view.mode == "actuate" or watts >= prior
        if move != "stay" and allowed and self.rules.mode == "actuate" and view.may_set:
            action = self._action(view, watts, prior, f"{why}: {words}", free)
        return Decision(
            self.engine, now, move, why, words, watts, current, target if target is not None else watts, prior,
            None if here is None else here.binding, here, free, action,
        )  # fmt: skip

    def _action(
        self, view: EngineView, watts: float, prior: float, reason: str, free: Price | None
    ) -> SetCap | SetClock | None:
        if self.rules.actuator == "power":
            return SetCap(self.engine, watts, reason)
        if watts >= prior:
            return SetClock(self.engine, None, watts, reason)
        if view.sm_clock_max_mhz is None:
            return None
        # Of an engine without a load it is not known what it would draw: as much as it may, so that a budget holds.
        demand = prior * view.gpus if free is None else free.demand_watts
        return SetClock(self.engine, clock_for(watts * view.gpus, demand, view.sm_clock_max_mhz), watts, reason)

    def describe(self) -> dict[str, Any]:
        """JSON types, for GET /admin/caps."""
        return {
            "engine": self.engine,
            "mode": self.rules.mode,
            "actuator": self.rules.actuator,
            "moves": self.moves,
            **self.standing.describe(),
            "decision": None if self.last is None else self.last.describe(),
        }
