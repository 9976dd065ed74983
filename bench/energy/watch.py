"""What does a gateway see of simulated engines? Calls as they pass, a meter like NVML's, counters like vLLM's."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, NamedTuple

from scheduler.actions import Dispatch
from scheduler.energy.window import Counters, Energy, MeterSample
from scheduler.events import CallArrived, CallFailed, CallFinished, ClientGone, FirstToken

if TYPE_CHECKING:
    from collections.abc import Callable

    from backends.twin.engine import TwinEngine
    from backends.twin.virtual import Mind, VirtualTime
    from scheduler.actions import Action
    from scheduler.energy.batch import Prefixes
    from scheduler.energy.window import Window
    from scheduler.energy.windows import WindowMaker
    from scheduler.events import Event

READ_SECONDS = 0.0033
"""A read of the energy counter takes up to this (measured on an H200): the sample's time is its beginning."""
JITTER_SECONDS = 0.01


class Sight(NamedTuple):
    """How well the gateway sees."""

    streamed_share: float = 0.5
    """Of the calls; others are black boxes until they end."""
    estimate_bias: float = 1.15
    estimate_spread: float = 0.15
    """Of prompt lengths, against the truth: log-normal."""
    cached_reported: bool = False
    """The usage says how much of a prompt was cached: vLLM's --enable-prompt-tokens-details, off by default."""
    prefixes_known: bool = False
    """Which calls share a prefix, and how long it is."""
    sample_seconds: float = 0.1
    probe_seconds: float = 0.5
    counters: bool = True
    """The engine has counters at all."""


class Watch:
    """A scheduler's mind with the eyes of energy: `World` is given this in the scheduler's place."""

    def __init__(
        self, mind: Mind, engine: TwinEngine, maker: WindowMaker, sight: Sight, seed: int,
        on_window: Callable[[Window], None],
    ) -> None:  # fmt: skip
        self._mind = mind
        self._engine = engine
        self._maker = maker
        self._sight = sight
        self._random = random.Random(seed)
        self._on_window = on_window
        self._arrived: dict[str, CallArrived] = {}
        self._streamed: set[str] = set()
        self.cached_tokens = 0
        """Of prompts whose first token is out, as vllm:prompt_tokens_cached_total."""
        self.prefixes_of: Callable[[str], Prefixes] = lambda _: ()
        self.joules_at_probe: dict[float, float] = {}
        """Time of a probe → the meter's exact value, which no gateway sees."""
        self.bypassed: set[str] = set()
        """Requests that the gateway knows nothing of."""

    def start(self, time: VirtualTime) -> None:
        """Begin to sample and to probe, from now on and for ever."""
        self._time = time
        self._sample()
        self._probe()

    def handle(self, event: Event, now: float) -> list[Action]:
        """The scheduler's own, and the windows are told."""
        maker = self._maker
        if isinstance(event, CallArrived):
            self._arrived[event.call_id] = event
        elif isinstance(event, FirstToken):
            request = self._engine.requests.get(event.call_id)
            if request is not None:
                self.cached_tokens += request.cached_tokens or 0
            if event.call_id in self._streamed:
                maker.first_token(event.call_id, now)
        elif isinstance(event, CallFinished):
            cached = event.cached_tokens if self._sight.cached_reported else None
            maker.finished(event.call_id, event.prompt_tokens, cached, event.output_tokens, now)
            self._streamed.discard(event.call_id)
        elif isinstance(event, ClientGone | CallFailed):
            maker.failed(event.call_id, now)
            self._streamed.discard(event.call_id)
        actions = self._mind.handle(event, now)
        for action in actions:
            if isinstance(action, Dispatch):
                self._sent(action.call_id, now)
        return actions

    def _sent(self, call_id: str, now: float) -> None:
        arrived, sight, rng = self._arrived.pop(call_id), self._sight, self._random
        estimate = arrived.prompt_tokens_estimate * sight.estimate_bias * rng.lognormvariate(0.0, sight.estimate_spread)
        streamed = rng.random() < sight.streamed_share
        if streamed:
            self._streamed.add(call_id)
        prefixes = self.prefixes_of(call_id) if sight.prefixes_known else ()
        limit = 2.0 * (arrived.max_output_tokens or 0) or None
        self._maker.sent(call_id, estimate, limit, now, streamed=streamed, prefixes=prefixes)

    def _progress(self, now: float) -> None:
        engine = self._engine
        for call_id in self._streamed:
            request = engine.requests.get(call_id)
            if request is not None and request.first_token_at is not None:
                self._maker.progress(call_id, float(engine.generated(request)), now)

    def _sample(self) -> None:
        time, engine, sight = self._time, self._engine, self._sight
        now = time.now
        clock_max = engine.calibration.card.sm_clock_max_mhz
        sample = MeterSample(
            now,
            Energy(engine.meter.joules_at((now // 0.1) * 0.1)),
            engine.meter.average_watts(),
            engine.limit.in_force_watts(now),
            engine.sm_clock_mhz < clock_max,
            "simulated",
        )
        # The sample is told when the read has ended; its time is when it began.
        time.at(now + self._random.uniform(0.2, 1.0) * READ_SECONDS, lambda: self._take(sample))
        jitter = self._random.uniform(-JITTER_SECONDS, JITTER_SECONDS)
        time.at(now + sight.sample_seconds + jitter, self._sample)

    def _take(self, sample: MeterSample) -> None:
        if (window := self._maker.sample(sample)) is not None:
            self._on_window(window)

    def _probe(self) -> None:
        time, engine, sight = self._time, self._engine, self._sight
        now = time.now
        self._progress(now)
        self.joules_at_probe[now] = engine.meter.joules
        if sight.counters and (window := self._maker.counters(self._counters(now))) is not None:
            self._on_window(window)
        jitter = self._random.uniform(-JITTER_SECONDS, JITTER_SECONDS) / 2
        time.at(now + sight.probe_seconds + jitter, self._probe)

    def _counters(self, now: float) -> Counters:
        engine = self._engine
        totals, run = engine.totals, engine._run  # vLLM counts each step, the twin each run
        done = run.done(engine.now) if run is not None else 0
        decode = run.batch.decode if run is not None else 0
        return Counters(
            now,
            float(totals.steps + done),
            float(totals.prompt_tokens),
            float(self.cached_tokens),
            float(totals.generation_tokens + done * decode),
            float(len(engine.running)),
            float(len(engine.requests) - len(engine.running)),
        )
