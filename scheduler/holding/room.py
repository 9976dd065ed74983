"""One engine's held and running work: which of it is sent now, by which rule, and when to look again."""

from __future__ import annotations

from math import floor, log2, sqrt
from typing import TYPE_CHECKING

from scheduler.holding.arrivals import Arrivals, Newcomers
from scheduler.holding.board import WAY_LEAST, Board, bucket_of
from scheduler.holding.flow import AT_ONCE, Flow, tail_of
from scheduler.holding.heaps import SPARE_ENTRIES, Sifted
from scheduler.holding.stepping import Stepping
from scheduler.holding.turns import Sent, Turns

if TYPE_CHECKING:
    from scheduler.holding.costs import StepCosts
    from scheduler.holding.margin import Margin
    from scheduler.holding.rules import Rules
    from scheduler.holding.work import CallWork
    from scheduler.state import CallState
    from scheduler.workflow.forecasts import Forecasts

STEP_BUCKETS_AN_OCTAVE = 4
INFINITE = float("inf")
ENTRIES_A_CALL = 32
"""No more are in the heaps, those out of date included, beside what each heap may spare."""


class Room:
    """Calls go in by `take`; `decide` queues those that are to go; `sent` and `ended` tell what came of it."""

    def __init__(
        self, name: str, costs: StepCosts, rules: Rules, margin: Margin, now: float, turns: Turns | None = None
    ) -> None:
        self.name = name
        self.rules = rules
        self.margin = margin
        self.stepping = Stepping(costs, now)
        self.board = Board()
        self.arrivals = Arrivals(now)
        self._newcomers = Newcomers()
        self.flow_of: dict[CallState, Flow] = {}
        """Of the calls that are held or run."""
        self.held = 0
        self.queue = Turns() if turns is None else turns
        """Calls that are to go now."""
        self.queued: set[CallState] = set()
        self._waiting: dict[int, Sifted] = {}
        """By the octave of their length, the earliest deadline first."""
        self._joined_tokens = self._joined_work = 0.0
        self._lumps = 0.0
        """Work that joined what runs, ever: what was said of ends before is later by what came since."""
        self._ends = Sifted(lambda entry: entry[2].urgent and entry[2].ends_at == -entry[0])
        self._tight = Sifted(lambda entry: entry[2].tight_key == entry[0] and self._may_stay(entry[2]))
        self._count = 0
        self.changed = True
        """Something came, went, ended or costs otherwise since the last decision."""
        self.came = True
        """A call came, or costs are others, since it was looked who can wait no longer."""
        self._wake_at = self._again_at = 0.0
        self.decided_at = self._people_at = float("-inf")

    @property
    def costs(self) -> StepCosts:
        """What its engine's steps cost."""
        return self.stepping.costs

    def load(self) -> float:
        """By how much what is here lengthens each step: the share that company adds to the steps' fixed time."""
        waiting = sum(self.board.present.rate.values())  # seconds of work a second alone, of all that are here
        return max(self.stepping.token_seconds / self.costs.step_seconds, waiting)

    # --- a call's life ---

    def take(self, call: CallState, flow: Flow, work: CallWork, forecasts: Forecasts, now: float) -> None:
        """A call is held here from now on."""
        first = not flow.left_steps and not call.attempts
        flow.expect(call, work, forecasts, self.costs)
        tail = tail_of(call, work, self.costs)
        if first:
            slack = flow.deadline - now - tail if flow.deadline > AT_ONCE else 0.0
            self.arrivals.came(flow.left_marginal, flow.prompts, slack, now)
        flow.take(call, work, tail)
        if flow.people:
            self._people_at = now
        self.came = True
        self.flow_of[call] = flow
        flow.urgent = False
        self.held += 1
        self.board.prefill += work.prefill_seconds
        bucket = floor(STEP_BUCKETS_AN_OCTAVE * log2(work.steps))
        heap = self._waiting.get(bucket)
        if heap is None:
            heap = self._waiting[bucket] = Sifted(lambda entry: self._work_of_waiting(entry[2]) is not None)
        heap.push((flow.deadline, call.sequence, call))
        self._place(flow)
        if flow.deadline > AT_ONCE and self._alone(flow, now):
            self._begin(flow, now, "alone")

    def sent(self, call: CallState, now: float) -> None:
        """It goes to the engine."""
        flow = self.flow_of[call]
        work = self._let_go(call, flow)
        steps = self.stepping
        self.queue.serve(call, work.marginal_seconds + work.steps * self.costs.step_seconds / self.rules.full_batch)
        steps.add(call, flow, work, now)
        step = self.costs.step_seconds
        flow.run_tail = max(tail_of(call, work, self.costs), flow.run_tail - (steps.steps - flow.run_steps) * step)
        flow.run_steps = steps.steps
        flow.running += 1
        flow.prompted(work)
        if not flow.urgent:
            self._joined_tokens += work.token_seconds
            self._joined_work += work.token_seconds * work.steps
        self._place(flow)
        if flow.deadline > AT_ONCE and not flow.urgent:
            self._foresee(flow, now)

    def ended(self, call: CallState, now: float) -> Flow:
        """It is over, held or at the engine; returns its flow."""
        flow = self.flow_of.pop(call)
        ran = call not in flow.held
        if not ran:
            work = self._let_go(call, flow)
        else:
            steps = self.stepping
            work = steps.remove(call, now).work
            flow.running -= 1
            if not flow.running:
                flow.run_tail = 0.0
            if not steps.running:
                self._joined_tokens = self._joined_work = 0.0
            elif not flow.urgent:
                self._joined_tokens = max(0.0, self._joined_tokens - work.token_seconds)
                self._joined_work = max(0.0, self._joined_work - work.token_seconds * work.steps)
        flow.done(work, ran=ran)
        self._place(flow)
        if flow.running and (flow.urgent or flow.deadline > AT_ONCE):
            self._foresee(flow, now)
        return flow

    def evacuate(self) -> list[tuple[CallState, Flow]]:
        """Nothing is held here any more: returns what was, and of which flows."""
        calls = [(call, flow) for call, flow in self.flow_of.items() if call in flow.held]
        for call, flow in calls:
            del self.flow_of[call]
            self._let_go(call, flow)
            self._place(flow)
        self.queue.clear()
        return calls

    def _may_stay(self, flow: Flow) -> bool:
        return flow.present or self.stepping.now - flow.left_at < self.rules.between_seconds

    def _let_go(self, call: CallState, flow: Flow) -> CallWork:
        work = flow.let_go(call)
        self.held -= 1
        self.queued.discard(call)
        self.board.prefill = max(0.0, self.board.prefill - work.prefill_seconds) if self.held else 0.0
        return work

    def _place(self, flow: Flow) -> None:
        self.changed = True
        if not flow.present:
            self.board.leave(flow)
            flow.left_at = self.stepping.now
            return
        step = self.costs.step_seconds
        tail = flow.tail(self.stepping.steps, step)
        self.board.place(flow, tail, tail * flow.fixed_share(step))

    def _alone(self, flow: Flow, now: float) -> bool:
        """Nobody is here, and nobody is to be expected before it must begin."""
        if self.board.present.flows > 1 or self.stepping.running:
            return False
        slack = flow.deadline - now - flow.held_tail
        return self.arrivals.expected(max(slack, 0.0), now) < self.rules.company_least

    # --- decisions ---

    def decide(self, now: float) -> float:
        """Queue what is to go now; returns when to look again, infinity if nothing is held."""
        self.decided_at = now
        if not self.changed and now < min(self._wake_at, self._again_at):
            return self._wake_at  # in so little time, nobody has more company than before
        stepping, rules = self.stepping, self.rules
        stepping.advance(now)
        if self.came or now >= min(self._wake_at, self._again_at):  # what goes makes nobody more urgent
            self.came, self._again_at = False, now + rules.again_seconds
            self._wake_at = self._begin_due(now)
        self.changed = False
        waiting = self.held - len(self.queued)
        if waiting:
            live = waiting + len(self.queued) + len(stepping.running)
            on = bool(stepping.running or self.queued)
            if live >= rules.full_batch and (on or live >= rules.start_full * rules.full_batch):
                self._fill(now)
            elif on:
                self._join(now)
        return self._wake_at

    def _begin_due(self, now: float) -> float:
        """Who can wait no longer; returns when the next one can."""
        arrivals, rules = self.arrivals, self.rules
        self._newcomers = arrivals.newcomers(now)
        due, wake = self.board.due(
            now, self.margin.value, rules.pad_seconds, self.stepping.prefill_seconds, rules.full_batch,
            self._newcomers, rules.burst,
        )  # fmt: skip
        for flow in due:
            self._begin(flow, now, "interactive" if flow.deadline == AT_ONCE else "urgent")
        return wake

    def _begin(self, flow: Flow, now: float, rule: str) -> None:
        """It can wait no longer."""
        flow.urgent = True
        order = flow.deadline
        left = flow.held_tail + flow.left_marginal
        if order < now + left:  # without a deadline, or with one that is lost: who needs least goes first
            order = now + min(self.rules.shortest_first * left, self.rules.ageing_seconds)
        for call in flow.held:
            if call not in self.queued:
                self._send(call, order, rule)
        self._place(flow)
        self._foresee(flow, now)

    def _send(self, call: CallState, order: float, rule: str) -> None:
        self.queued.add(call)
        self.queue.push(Sent(order, call.sequence, call, rule))

    def _foresee(self, flow: Flow, now: float) -> None:
        """When a workflow that runs ends, as things look; how much it can bear till its deadline."""
        costs, stepping = self.costs, self.stepping
        tail = flow.tail(stepping.steps, costs.step_seconds)
        fixed = tail * flow.fixed_share(costs.step_seconds)
        begun = self.board.begun
        company = begun.company(bucket_of(tail), max(tail, WAY_LEAST)) + stepping.prefill_seconds + flow.prefill
        company += min(self._joined_work, self._joined_tokens * fixed / costs.step_seconds)
        takes = fixed + company
        flow.ends_at = now + takes
        margin = max(self.margin.value - self.rules.join_margin, -0.02)
        allowed = flow.deadline - now - takes * (1.0 + margin)
        allowed -= self.rules.join_burst * sqrt(self._newcomers.square_rate * max(takes, 0.0))
        if flow.deadline == AT_ONCE:
            allowed = takes * self.rules.interactive_stretch
        self._count += 1
        if flow.urgent:
            self._ends.push((-flow.ends_at, self._count, flow))
        flow.run_steps, flow.run_tail = stepping.steps, max(tail if flow.running else 0.0, 0.0)
        flow.tight_key = allowed + self._lumps
        self._tight.push((flow.tight_key, self._count, flow))

    def _horizon(self, now: float) -> float:
        """For how long steps are made anyway."""
        ends = self._ends
        until = self.stepping.ends_at()
        while (entry := ends.top()) is not None:
            if self._stays(entry[2], now):
                until = max(until, -entry[0])
                break
            ends.pop()
        return until - now

    def _bearable(self, now: float) -> float:
        """Work that may join before a workflow that runs misses its deadline."""
        tight = self._tight
        while (entry := tight.top()) is not None:
            if self._stays(entry[2], now):
                return float(entry[0] - self._lumps)
            tight.pop()
        return INFINITE

    def _stays(self, flow: Flow, now: float) -> bool:
        """It runs or is to, or its next call is to be expected any moment."""
        if flow.urgent and flow.held:
            return True
        return flow.running > 0 or (not flow.held and now - flow.left_at < self.rules.between_seconds)

    def _join(self, now: float) -> None:
        """Calls whose steps are for the most part made anyway."""
        horizon, bearable = self._horizon(now), self._bearable(now)
        stepping, cover = self.stepping, self.rules.cover_share
        room = self.rules.full_batch - len(stepping.running) - len(self.queued)
        step = stepping.step_seconds
        prefill, tokens = self._room_for_people(now)
        for bucket in sorted(self._waiting):
            if cover * step * 2.0 ** (bucket / STEP_BUCKETS_AN_OCTAVE) > horizon or room < 1 or bearable <= 0.0:
                return
            heap = self._waiting[bucket]
            while room >= 1 and (entry := heap.top()) is not None:
                order, _, call = entry
                work = self.flow_of[call].held[call]
                if cover * stepping.seconds_of(work) > horizon:
                    break
                lump = work.marginal_seconds
                prefill -= work.prefill_seconds
                tokens -= work.token_seconds
                if lump > bearable or min(prefill, tokens) < 0.0:
                    return
                heap.pop()
                bearable -= lump
                self._lumps += lump
                room -= 1
                self._send(call, order, "covered")
            if not heap:
                del self._waiting[bucket]

    def _room_for_people(self, now: float) -> tuple[float, float]:
        """(seconds of prompts, seconds of work in each step) that may go along: little, where somebody who is not to be
        held came lately, and may come again."""
        rules, stepping = self.rules, self.stepping
        if now - self._people_at > rules.people_seconds:
            return INFINITE, INFINITE
        tokens = rules.people_stretch * self.costs.step_seconds - stepping.token_seconds
        return rules.people_prefill_seconds - stepping.prefill_seconds, tokens

    def _fill(self, now: float) -> None:
        """So many wait that steps are full: more company saves nothing. The earliest deadlines first. (But few, where
        somebody may come who is not to be held: hundreds of prompts at once would be before that one.)"""
        prefill, tokens = self._room_for_people(now)
        room = int(self.rules.full_batch) - len(self.stepping.running) - len(self.queued)
        while room > 0:
            best: Sifted | None = None
            first = None
            for bucket in list(self._waiting):
                heap = self._waiting[bucket]
                entry = heap.top()
                if entry is None:
                    del self._waiting[bucket]
                elif first is None or entry < first:
                    best, first = heap, entry
            if best is None or first is None:
                return
            work = self.flow_of[first[2]].held[first[2]]
            prefill -= work.prefill_seconds
            tokens -= work.token_seconds
            if min(prefill, tokens) < 0.0:
                return
            best.pop()
            self._send(first[2], first[0], "full")
            room -= 1

    def _work_of_waiting(self, call: CallState) -> CallWork | None:
        """None: it waits no longer."""
        if call in self.queued:
            return None
        flow = self.flow_of.get(call)
        return None if flow is None else flow.held.get(call)

    @property
    def entries(self) -> int:
        """Of all heaps, those out of date included."""
        waiting = sum(len(heap) for heap in self._waiting.values())
        return len(self._ends) + len(self._tight) + waiting + self.board.entries + self.stepping.entries

    def validate(self) -> None:
        """AssertionError for what does not hold."""
        flows = list({id(flow): flow for flow in self.flow_of.values()}.values())
        held = sum(len(flow.held) for flow in flows)
        assert self.held == held, f"{self.name} counts {self.held} held calls, there are {held}"
        assert sum(flow.running for flow in flows) == len(self.stepping.running)
        assert self.queued <= {call for flow in flows for call in flow.held}, "queued and not held"
        heaps = 3 + len(self._waiting) + self.board.heaps
        assert self.entries <= 2 * SPARE_ENTRIES * heaps + ENTRIES_A_CALL * (len(self.flow_of) + 1), "heaps grow"
        self.stepping.validate()
        self.queue.validate(self.queued)
        self.board.validate(flows)
