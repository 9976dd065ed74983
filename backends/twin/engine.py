"""The simulated engine: vLLM V1's scheduler over time, with runs of equal steps jumped in closed form."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backends.twin.content import Piece, runs_of_pieces
from backends.twin.cost import Batch, CostModel, StepCost
from backends.twin.decoding import DecodingSet
from backends.twin.invariants import validate
from backends.twin.limits import FeltDemand, PowerLimit
from backends.twin.meter import Meter
from backends.twin.prefix_cache import PrefixCache
from backends.twin.request import Event, Finished, FirstToken, Request, State
from backends.twin.steps import StepRun
from backends.twin.totals import Totals
from backends.twin.waiting import WaitingQueue

if TYPE_CHECKING:
    from collections.abc import Callable

    from backends.twin.calibration import Calibration
    from backends.twin.waiting import SchedulingPolicy

SETTLING_RUN_SECONDS = 0.02
"""While a power limit settles, runs are no longer than this."""


class TwinEngine:
    """`submit`, `abort`, `set_limit`, then `advance` to a time: events come out, in the order of their times.

    Pure and deterministic: time is what `advance` is told. Sequences that decode advance together by one token a step,
    so that a step costs the same however many they are: nothing is touched per sequence and token.
    """

    def __init__(self, calibration: Calibration, now: float = 0.0, policy: SchedulingPolicy = "priority") -> None:
        self.calibration = calibration
        self.costs = CostModel(calibration)
        self.limit = PowerLimit(calibration.card)
        self._felt = FeltDemand(calibration.cap, self.costs.idle_watts, now)
        self.meter = Meter(now)
        self.idle_watts = self.costs.idle_watts
        self.waiting = WaitingQueue(policy)
        limits = calibration.engine
        self._block_tokens = limits.block_tokens
        self.cache = PrefixCache(limits.kv_cache_tokens // limits.block_tokens)
        self.now = now
        self.totals = Totals()
        self.watch: Callable[[StepRun], None] | None = None
        """Called with each run of steps when it is done."""
        self.requests: dict[str, Request] = {}
        self.running: dict[str, Request] = {}
        """In prefill or decode, in the order of their admission."""
        self._blocked = False
        """No one can be admitted before a running one ends."""
        self._leaving: list[Request] = []
        """Running requests whose client left: given up when the run ends."""
        self._run: StepRun | None = None
        self.decoding = DecodingSet(limits.block_tokens)
        self._forgetting = False
        self._orders = 0
        self._frontend_free_at = self._host_free_at = now

    # --- what is asked of it ---

    def submit(self, request: Request, now: float) -> None:
        """A request reaches the API server. ValueError if it could never be run."""
        limits = self.calibration.engine
        tokens = request.prompt_tokens + request.output_tokens
        if tokens > min(self.calibration.model.max_model_len, limits.kv_cache_tokens):
            raise ValueError(f"request {request.id!r} of {tokens} tokens is longer than the model or its KV cache")
        if request.id in self.requests:
            raise ValueError(f"request {request.id!r} is there already")
        frontend = self.calibration.frontend
        self._orders += 1
        request.order = self._orders
        request.arrived_at = now
        self._frontend_free_at = max(self._frontend_free_at, now) + frontend.serial_seconds
        request.visible_at = self._frontend_free_at + frontend.input_seconds
        if not request.runs:
            request.runs = runs_of_pieces([Piece(("request", request.id), tokens)], self._block_tokens)
        self.requests[request.id] = request
        self.waiting.arrive(request)
        if not self._blocked:
            self._cut_run(request.visible_at)

    def abort(self, request_id: str, now: float) -> None:
        """The client left: its slot is free at the next step that can be scheduled."""
        request = self.requests.pop(request_id, None)
        if request is None:
            return
        request.aborted = True
        if request.state is State.WAITING:
            self.waiting.abort(request)
            self._blocked = False
        elif request.state is not State.INCOMING:
            self._leaving.append(request)
            self._cut_run(now)

    def set_limit_watts(self, watts: float, now: float) -> None:
        """Ask for a power limit, for all cards together. ValueError outside the card's range."""
        self.limit.set(watts, now)
        self._cut_run(now, ahead=False)

    def reset_prefix_cache(self, now: float) -> None:
        """At the next step all that run begin again, with nothing cached."""
        self._forgetting = True
        self._cut_run(now)

    # --- time ---

    def advance(self, to: float) -> list[Event]:
        """Simulate up to this time; returns the events whose cause lies in it."""
        events: list[Event] = []
        while True:
            run = self._run
            if run is None:
                wake = self.next_change()
                until = to if wake is None or wake > to else wake
                self.meter.add(until, (until - self.meter.now) * self.idle_watts)
                self.now = max(self.now, until)
                if until != wake:
                    return events
                self._schedule(self.now)
                continue
            end = run.end
            until = min(end, to)
            if until > self.meter.now:
                self.meter.add(until, run.joules(self.meter.now, until))
                self.now = until
            if end > to:
                return events
            self._complete(run, events)

    def next_change(self) -> float | None:
        """When something happens if nothing is asked before: the end of the run, or a request that becomes visible."""
        if self._run is not None:
            return self._run.end
        visible_at = self.waiting.next_visible_at
        return None if visible_at is None else max(visible_at, self.now)

    def next_step_end(self) -> float | None:
        """When the step under way ends; None while idle."""
        run = self._run
        return None if run is None else run.at(min(run.done(self.now) + 1, run.steps))

    def generated(self, request: Request) -> int:
        """Output tokens of a request up to now."""
        if request.state is not State.DECODE:
            return request.target_tokens - request.prompt_tokens
        done = self._run.done(self.now) if self._run is not None else 0
        return self.decoding.generated(request) + done

    @property
    def kv_usage(self) -> float:
        """Share of the KV cache's blocks that running sequences use."""
        run, used = self._run, self.cache.private + self.cache.held
        if run is not None:
            used += self.decoding.blocks_needed(run.done(self.now))
        return used / self.cache.blocks

    @property
    def sm_clock_mhz(self) -> float:
        """The clock of the cards now."""
        return self._run.cost.sm_clock_mhz if self._run is not None else self.calibration.card.sm_clock_max_mhz

    # --- scheduling ---

    def _schedule(self, scheduled_at: float) -> None:
        """vLLM V1's schedule(): running first, then waiting, under one budget of tokens. Starts the next run."""
        if self._forgetting:
            self._forget()
        self.waiting.let_in(scheduled_at)
        preempted = self._make_room_for_decode()
        budget = self.calibration.engine.max_num_batched_tokens - self.decoding.count
        chunks: list[tuple[Request, int]] = []
        pairs = read = 0.0
        before = self.totals.preemptions
        for request in list(self.running.values()) if len(self.running) > self.decoding.count else ():
            if request.state is State.PREFILL and budget:
                budget -= self._go_on(request, budget, chunks)
        preempted = preempted or self.totals.preemptions > before
        if not preempted:
            self._admit(budget, chunks)
        tokens = 0
        for request, count in chunks:
            tokens += count
            read += request.computed_tokens
            pairs += count * (request.computed_tokens + count / 2)
        if self.running:
            read += self.decoding.context_tokens
            repeated = min(read, self.cache.shared * self._block_tokens)
            batch = Batch(self.decoding.count, read - repeated, repeated, tokens, pairs)
            # After a preemption nobody is admitted in this step: in the next, somebody may be.
            self._start(scheduled_at, batch, chunks, 1 if preempted else self.decoding.steps_to_next_end())
        elif scheduled_at < self.now:
            self._schedule(self.now)  # nothing ran ahead: the core looks again at once

    def _room(self) -> int:
        """Blocks for prefill: those that this step's decode needs are its own."""
        return self.cache.available - self.decoding.blocks_needed(1)

    def _go_on(self, request: Request, budget: int, chunks: list[tuple[Request, int]]) -> int:
        """The next chunk of a running prefill; others are preempted for it, at last itself. How many tokens."""
        count = min(request.target_tokens - request.computed_tokens, budget)
        done, block = request.computed_tokens, self._block_tokens
        blocks = -(-(done + count) // block) - -(-done // block)
        scheduled = {each.id for each, _ in chunks}
        while blocks > self._room():
            victim = self.waiting.victim([each for each in self.running.values() if each.id not in scheduled])
            self._preempt(victim)
            if victim is request:
                return 0
        return self._chunk(request, count, chunks)

    def _chunk(self, request: Request, count: int, chunks: list[tuple[Request, int]]) -> int:
        """Schedule so many tokens of its prefill, for which there is room; returns them."""
        done, block = request.computed_tokens, self._block_tokens
        self.cache.private += -(-(done + count) // block) - -(-done // block)
        self.cache.make_room()
        if self.calibration.engine.prefix_caching:
            assert request.node is not None
            request.node = self.cache.extend(request.node, request.runs, (done + count) // block)
        chunks.append((request, count))
        return count

    def _admit(self, budget: int, chunks: list[tuple[Request, int]]) -> None:
        """Move waiting requests into the running, first come first or by priority, until one does not fit."""
        running, cache = self.running, self.cache
        self._blocked = False
        while (request := self.waiting.first()) is not None:
            if len(running) >= self.calibration.engine.max_num_seqs:
                self._blocked = True
                return
            if not budget:
                return
            node = cache.root
            if self.calibration.engine.prefix_caching:
                # The last token is always computed, for its logits.
                node = cache.match(request.runs, (request.target_tokens - 1) // self._block_tokens)
            cache.hold(node)
            request.node, request.computed_tokens = node, node.depth * self._block_tokens
            if -(-request.target_tokens // self._block_tokens) - node.depth > self._room():
                cache.let_go(node)  # as vLLM's scheduler_reserve_full_isl: not before all of its prompt fits
                request.node, request.computed_tokens = None, 0
                self._blocked = bool(running) and self.waiting.policy == "fcfs"
                return
            self.waiting.pop()
            budget -= self._chunk(request, min(request.target_tokens - request.computed_tokens, budget), chunks)
            if request.scheduled_at is None:
                request.scheduled_at = self.now
                request.cached_tokens = request.computed_tokens
                self.totals.prefix_queries += request.target_tokens
                self.totals.prefix_hits += request.computed_tokens
            request.state = State.PREFILL
            running[request.id] = request

    def _make_room_for_decode(self) -> bool:
        """Preempt, last admitted or least urgent first, until every decoding sequence can go one step further."""
        preempted = False
        while self._room() < 0:
            self._preempt(self.waiting.victim(self.running.values()))
            preempted = True
        return preempted

    def _preempt(self, request: Request) -> None:
        """By recomputation: its blocks are given up (they stay cached while there is room), its tokens remembered."""
        if request.state is State.DECODE:
            request.target_tokens = request.prompt_tokens + self.decoding.generated(request)
        self._leave(request)
        request.computed_tokens = 0
        request.preemptions += 1
        self.totals.preemptions += 1
        self.waiting.add(request)

    def _forget(self) -> None:
        for request in reversed(list(self.running.values())):
            self._preempt(request)
        self.cache.forget()
        self._forgetting = self._blocked = False

    # --- running ---

    def _start(self, scheduled_at: float, batch: Batch, chunks: list[tuple[Request, int]], steps_max: int) -> None:
        start = self.now
        limit_watts = self.limit.in_force_watts(start)
        felt_watts = self._felt.watts(start)
        # The host starts its kernels from when it is scheduled, the card when it is done with the step before.
        ready_at = scheduled_at + self.calibration.engine.prompt_step_seconds if chunks else start
        least = max(0.0, ready_at - start)
        cost = self.costs.step(batch, limit_watts, least_seconds=least, average_watts=felt_watts)
        run = StepRun(start, batch, chunks, cost)
        self._run, self._host_free_at = run, ready_at
        if chunks:
            return
        steps = steps_max
        if self.limit.settling(start) or (cost.demand_watts > limit_watts and self._felt.settles(cost.demand_watts)):
            steps = min(steps, 1 + int(SETTLING_RUN_SECONDS / cost.seconds))
        steps = self.decoding.steps_that_fit(steps, self.cache.available)
        if steps > 1:
            run.lengthen(steps, lambda more: self._cost_after(run, more, limit_watts, felt_watts))
        if not self._blocked and self.waiting.next_visible_at is not None:
            self._cut_run(self.waiting.next_visible_at)

    def _cost_after(self, run: StepRun, steps: int, limit_watts: float, felt_watts: float | None) -> StepCost:
        """What the step after so many of a run will cost."""
        batch, first = run.batch, run.cost
        if felt_watts is not None:
            felt_watts = self._felt.watts_after(first.demand_watts, steps * first.seconds)
        later = batch._replace(context=batch.context + steps * batch.decode)
        return self.costs.step(later, limit_watts, average_watts=felt_watts)

    def _cut_run(self, at: float, *, ahead: bool = True) -> None:
        """Something to schedule comes at this time: end the run with the last step that is scheduled before.

        With async scheduling (`ahead`) a step is scheduled soon after the one before it has started.
        """
        run = self._run
        if run is None or at >= run.end:
            return
        ahead = ahead and self.calibration.engine.async_scheduling
        if ahead:
            at -= self.calibration.engine.schedule_seconds
        steps = run.done(at) + 1 if at > run.start else 0  # done by the end of the step that `at` lies in
        run.steps = min(run.steps, max(1, steps + ahead))

    def _complete(self, run: StepRun, events: list[Event]) -> None:
        """All steps of a run are done: count them, hand out tokens, schedule what follows."""
        steps, batch = run.steps, run.batch
        self._felt.ran(self.now, run.demand_watts)
        if self.watch is not None:
            self.watch(run)
        self.totals.add(run, self.now - run.start)
        self.cache.private += self.decoding.blocks_needed(steps)
        self.cache.make_room()
        self.decoding.advance(steps)
        seen_at = self.now + self.calibration.frontend.output_seconds
        self.totals.generation_tokens += steps * batch.decode
        while (request := self.decoding.pop_finished()) is not None:
            if not request.aborted:
                self._finish(request, seen_at, events)
        for request, count in run.chunks:
            request.computed_tokens += count
            if request.computed_tokens == request.target_tokens and not request.aborted:
                self._first_or_next_token(request, seen_at, events)
        for request in self._leaving:
            if request.state is not State.GONE:
                self._leave(request)
                request.state = State.GONE
        self._leaving.clear()
        self._run = None
        limits = self.calibration.engine
        ahead_at = max(run.at(steps - 1) + limits.schedule_seconds, self._host_free_at)
        self._schedule(min(ahead_at, self.now) if limits.async_scheduling else self.now)

    def _first_or_next_token(self, request: Request, seen_at: float, events: list[Event]) -> None:
        """Prefill is done, which makes a token: the first, or after a preemption the next."""
        totals = self.totals
        totals.generation_tokens += 1
        if request.first_token_at is None:
            totals.prompt_tokens += request.prompt_tokens
            request.first_token_at = self.now
            events.append(FirstToken(seen_at, request))
        generated = request.target_tokens - request.prompt_tokens + 1
        if generated == request.output_tokens:
            self._finish(request, seen_at, events)
        else:
            self.decoding.join(request, generated)

    def _finish(self, request: Request, seen_at: float, events: list[Event]) -> None:
        self._leave(request)
        del self.requests[request.id]
        request.state = State.GONE
        events.append(Finished(seen_at, request))

    def _computed_tokens(self, request: Request) -> int:
        """Tokens in its KV cache at the end of the last completed run."""
        return self.decoding.computed(request) if request.state is State.DECODE else request.computed_tokens

    def _leave(self, request: Request) -> None:
        """Give up a running request's place: its whole blocks stay cached, the rest is free."""
        del self.running[request.id]
        computed, block = self._computed_tokens(request), self._block_tokens
        if request.state is State.DECODE:
            self.decoding.leave(request)
        node, cache = request.node, self.cache
        assert node is not None
        if self.calibration.engine.prefix_caching:
            node = cache.extend(node, request.runs, computed // block)
        cache.private -= -(-computed // block) - node.depth
        cache.let_go(node)
        request.node = None

    # --- checks ---

    def validate(self) -> None:
        """Every invariant between runs and within. AssertionError otherwise."""
        validate(self, self._run)
