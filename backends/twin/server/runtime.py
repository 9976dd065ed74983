"""Who lets the simulated engine run in real time, and tells each call what it has got? Timers only: nothing polls."""

from __future__ import annotations

import asyncio
import time
from heapq import heappop, heappush
from math import ceil
from typing import TYPE_CHECKING, NamedTuple

from backends.twin.request import Finished, FirstToken, Request

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from backends.twin.content import Run
    from backends.twin.engine import TwinEngine
    from backends.twin.server.answers import Answer
    from backends.twin.server.metrics import Observed


class Planned(NamedTuple):
    """One sequence to run. `max_tokens` is what was asked for."""

    prompt_tokens: int
    answer: Answer
    runs: Sequence[Run]
    max_tokens: int


class Call:
    """One sequence under way. `ready`: output tokens that its client may see by now."""

    __slots__ = ("answer", "finished", "group", "index", "max_tokens", "ready", "request", "seen")

    def __init__(self, group: Group, index: int, sequence: Planned, request: Request) -> None:
        self.group = group
        self.index = index
        self.answer = sequence.answer
        self.max_tokens = sequence.max_tokens
        self.request = request
        self.ready = 0
        self.seen = 0
        """Tokens that are on their way to the client."""
        self.finished = False


class Group:
    """The sequences of one HTTP request; whoever waits is told which of them have news."""

    def __init__(self, streamed: bool, n: int) -> None:
        self.streamed = streamed
        self.n = n
        """Sequences a prompt."""
        self.calls: list[Call] = []
        self.open = 0
        self._news: dict[Call, None] = {}
        self._waiter: asyncio.Future[None] | None = None

    def tell(self, call: Call) -> None:
        """This one has got further."""
        self._news[call] = None
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def news(self) -> list[Call]:
        """Those that got further since the last time; empty when all are finished and told."""
        if not self._news and self.open:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        news, self._news = list(self._news), {}
        return news

    async def whole(self) -> None:
        """Wait until all are finished."""
        while self.open:
            await self.news()


class Runtime:
    """One engine on one event loop, `speed` times as fast as real time."""

    def __init__(self, engine: TwinEngine, observed: Observed, speed: float = 1.0) -> None:
        self.engine = engine
        self.speed = speed
        self._observed = observed
        self._loop = asyncio.get_running_loop()
        # Not the loop's own clock, which uvloop keeps in whole milliseconds.
        self._started = time.monotonic() - engine.now / speed
        self._calls: dict[Request, Call] = {}
        self._streams: dict[Request, Call] = {}
        """Those that decode and whose clients follow each token."""
        self._due: list[tuple[float, int, Call, int]] = []
        """Heap of (when the client sees it, order, call, tokens it has then)."""
        self._orders = 0
        self._timer: asyncio.TimerHandle | None = None
        self._awake = asyncio.Event()
        self._awake.set()
        self._idle: asyncio.Future[None] | None = None
        """Done when nothing runs any more: it is to sleep then."""

    def now(self) -> float:
        """The engine's time, in simulated seconds since the start."""
        return (time.monotonic() - self._started) * self.speed

    def look(self) -> float:
        """Bring the engine up to now; returns its time."""
        now = self.now()
        before = self.engine.totals.steps, self.engine.totals.decode_tokens, self.engine.totals.busy_seconds
        output_seconds = self.engine.calibration.frontend.output_seconds
        for event in self.engine.advance(now):
            call = self._calls[event.request]
            if isinstance(event, FirstToken):
                self._observed.first_token(event)
                if call.group.streamed:
                    self._streams[event.request] = call
                    self._later(event.at, call, 1)
            else:
                self._finished(call, event)
        self._observed.steps(self.engine.totals, *before)
        for request, call in self._streams.items():
            tokens = self.engine.generated(request)
            if tokens > call.seen:
                self._later(now + output_seconds, call, tokens)
        self._hand_out(now)
        return now

    def start(self, sequences: Iterable[Planned], request_id: str, priority: int, group: Group) -> Group:
        """Submit the sequences of one HTTP request, in their order. ValueError if one could never be run."""
        now = self.look()
        try:
            for index, sequence in enumerate(sequences):
                self._orders += 1
                request = Request(
                    f"{request_id}-{self._orders}",
                    sequence.prompt_tokens,
                    len(sequence.answer.token_ids),
                    sequence.runs,
                    priority,
                )
                self.engine.submit(request, now)
                call = Call(group, index, sequence, request)
                group.calls.append(call)
                group.open += 1
                self._calls[request] = call
        except ValueError:
            self.leave(group)
            raise
        self._arm()
        return group

    def leave(self, group: Group) -> None:
        """Its client is gone or served: what still runs of it is aborted."""
        if not group.open:
            return
        now = self.look()
        for call in group.calls:
            call.finished = True
            if self._calls.pop(call.request, None) is not None:
                self._streams.pop(call.request, None)
                self._observed.aborted(self.engine.generated(call.request))
                self.engine.abort(call.request.id, now)
        group.open = 0
        self._arm()

    def set_limit_watts(self, watts: float) -> None:
        """Ask for a power limit, for all cards together. ValueError outside the card's range."""
        self.engine.set_limit_watts(watts, self.look())
        self._arm()

    def reset_prefix_cache(self) -> None:
        """Whatever runs begins again."""
        self.engine.reset_prefix_cache(self.look())
        self._arm()

    # --- sleep ---

    @property
    def asleep(self) -> bool:
        """Nothing is computed until it is woken."""
        return not self._awake.is_set()

    async def awake(self) -> None:
        """Wait until it is."""
        await self._awake.wait()

    async def sleep(self) -> None:
        """Level 1: the KV cache is forgotten; requests that come wait; those that run end first."""
        self._awake.clear()
        self.look()
        if self._calls:
            self._idle = asyncio.get_running_loop().create_future()
            await self._idle
        self.engine.reset_prefix_cache(self.look())
        self.engine.idle_watts = self.engine.calibration.card.asleep_watts or self.engine.costs.idle_watts
        self._arm()

    def wake_up(self) -> None:
        """It computes again; what waited is let in."""
        self.look()
        self.engine.idle_watts = self.engine.costs.idle_watts
        self._awake.set()

    def generation_tokens(self) -> int:
        """Output tokens since the start, those of calls under way included. After `look`."""
        return self._observed.ended_tokens + sum(map(self.engine.generated, self._calls))

    def waiting_count(self) -> int:
        """Calls that are here and not running. After `look`."""
        engine = self.engine
        return len(engine.requests) - sum(not request.aborted for request in engine.running.values())

    def close(self) -> None:
        """No more timers."""
        if self._timer is not None:
            self._timer.cancel()

    # --- inside ---

    def _finished(self, call: Call, event: Finished) -> None:
        self._streams.pop(call.request, None)
        del self._calls[call.request]
        self._later(event.at, call, call.request.output_tokens)
        self._observed.finished(event, call)

    def _later(self, at: float, call: Call, tokens: int) -> None:
        call.seen = tokens
        self._orders += 1
        heappush(self._due, (at, self._orders, call, tokens))

    def _hand_out(self, now: float) -> None:
        if self._idle is not None and not self._calls and not self._idle.done():
            self._idle.set_result(None)
        due = self._due
        while due and due[0][0] <= now:
            _, _, call, tokens = heappop(due)
            if call.finished or tokens <= call.ready:
                continue
            call.ready = tokens
            if tokens == call.request.output_tokens:
                call.finished = True
                call.group.open -= 1
            call.group.tell(call)

    def _arm(self) -> None:
        """One timer, for the next thing that happens by itself."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        engine = self.engine
        times = [engine.next_change(), engine.next_step_end() if self._streams else None]
        if self._due:
            times.append(self._due[0][0])
        known = [at for at in times if at is not None]
        if known:
            delay = self._started + min(known) / self.speed - time.monotonic()
            # Up to the next millisecond: timers are no finer, and one that is early would find nothing to do.
            self._timer = self._loop.call_later(max(0, ceil(delay * 1000)) / 1000, self._wake)

    def _wake(self) -> None:
        self._timer = None
        self.look()
        self._arm()
