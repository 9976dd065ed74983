"""What is counted: plain numbers while calls run, Prometheus' words when somebody asks."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from proxy.routes import OTHER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from prometheus_client.core import Metric

    from proxy.call import Call
    from scheduler.core import Scheduler

LABEL_SETS_MAX = 2_000
"""Of `joulegate_calls`; further ones are counted with engine, model, key and reason `other`."""
MODELS_MAX = 256
"""Names of models that become labels; further ones are `other`."""
MODEL_LENGTH_MAX = 256
_BREAKER = {"closed": 0, "half_open": 1, "open": 2}

_SECONDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0),
    *(2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0),
)
# A decode step takes 5 to 50 ms on most cards: there the buckets are close.
_STEP_SECONDS = (
    *(0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1),
    *(0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0),
)
_OVERHEAD_SECONDS = (1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 0.1)


class Histogram:
    """Counts by bucket. `observe` is on the way of every token."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def family(self, name: str, text: str) -> HistogramMetricFamily:
        """For a scrape."""
        buckets, sum_so_far = [], 0
        for bound, count in zip((*map(repr, self.bounds), "+Inf"), self.counts, strict=True):
            sum_so_far += count
            buckets.append((bound, sum_so_far))
        return HistogramMetricFamily(name, text, buckets=buckets, sum_value=self.total)


class _Series:
    """What is counted for one set of labels: looked up once a call, added up by fewer labels at a scrape."""

    __slots__ = ("cached_tokens", "calls", "output_tokens", "prompt_tokens", "without_usage")

    def __init__(self) -> None:
        self.calls = self.without_usage = 0
        self.prompt_tokens = self.cached_tokens = self.output_tokens = 0


@dataclass(frozen=True, slots=True)
class EngineGauges:
    """An engine's present state; None = not known, and then not shown."""

    healthy: bool | None
    breaker: str
    in_flight: int
    running: int | None
    waiting: int | None
    kv_cache_usage: float | None


@dataclass(frozen=True, slots=True)
class GaugeSnapshot:
    """What is read off the gateway at a scrape."""

    client_connections: int = 0
    refused_connections: int = 0
    calls_held: int = 0
    log_lines_dropped: int = 0
    engines: dict[str, EngineGauges] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        scheduler: Scheduler,
        *,
        healthy: Mapping[str, bool | None],
        client_connections: int,
        refused_connections: int,
        log_lines_dropped: int,
    ) -> GaugeSnapshot:
        """From the scheduler's state and what the process knows beside it."""
        engines = {}
        for name, engine in scheduler.engines.items():
            load = engine.load
            engines[name] = EngineGauges(
                healthy.get(name),
                engine.breaker.state,
                engine.in_flight,
                load.running if load else None,
                load.waiting if load else None,
                load.kv_cache_usage if load else None,
            )
        return cls(client_connections, refused_connections, scheduler.ready.count, log_lines_dropped, engines)


class Metrics(Collector):
    """All metrics of a gateway. `gauges` is called at each scrape."""

    def __init__(self, gauges: Callable[[], GaugeSnapshot]) -> None:
        self._gauges = gauges
        self._series: dict[tuple[str, ...], _Series] = {}
        self._models: set[str] = set()
        self._attempts_failed: dict[tuple[str, ...], int] = {}
        self._retries = 0
        self.ttft = Histogram(_SECONDS)
        self.itl = Histogram(_STEP_SECONDS)
        self.duration = Histogram(_SECONDS)
        self.queue = Histogram(_SECONDS)
        self.overhead = Histogram(_OVERHEAD_SECONDS)
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    def finished(self, call: Call) -> None:
        """Count a call that has ended. Its times and outcome are set."""
        outcome, model, first_byte_at = call.outcome, call.model, call.first_byte_at
        if model is None:
            model = "-"
        elif model not in self._models:
            model = self._new_model(call, model)
        # The members of a StrEnum hash in Python, their values in C.
        word = outcome._value_ if outcome is not None else "-"
        labels = (call.route, call.engine or "-", model, call.key_name, word, call.reason or "-")
        series = self._series.get(labels)
        if series is None:
            series = self._new_series(labels)
        series.calls += 1
        dispatched_at, finished_at = call.dispatched_at, call.finished_at
        if dispatched_at is None or finished_at is None:
            return
        arrived_at = call.arrived_at
        self.queue.observe(dispatched_at - arrived_at)
        self.overhead.observe(call.overhead_seconds)
        self.duration.observe(finished_at - arrived_at)
        if call.attempts > 1:
            self._retries += call.attempts - 1
        if first_byte_at is None:
            return
        self.ttft.observe(first_byte_at - arrived_at)
        prompt, cached, output = call.prompt_tokens, call.cached_tokens, call.output_tokens
        if prompt is None and output is None:
            series.without_usage += 1
            return
        # A counter never goes down, whatever an engine says.
        if prompt is not None and prompt > 0:
            series.prompt_tokens += prompt
        if cached is not None and cached > 0:
            series.cached_tokens += cached
        if output is not None and output > 0:
            series.output_tokens += output

    def engine_failed(self, engine: str, reason: str) -> None:
        """Count an attempt at an engine that failed, whether or not the call was tried again."""
        labels = (engine, reason)
        self._attempts_failed[labels] = self._attempts_failed.get(labels, 0) + 1

    def text(self) -> str:
        """As Prometheus reads it."""
        return generate_latest(self.registry).decode()

    def _new_model(self, call: Call, model: str) -> str:
        """The label of a model not met before. Only a name for which an engine has answered becomes one: until then it
        is a client's own word, and anybody can invent as many as they like."""
        answered = call.first_byte_at is not None and call.status is not None and call.status < 400
        if not answered or call.route == OTHER.label or len(model) > MODEL_LENGTH_MAX:
            return "-"
        if len(self._models) >= MODELS_MAX:
            return "other"
        self._models.add(model)
        return model

    def _new_series(self, labels: tuple[str, ...]) -> _Series:
        if len(self._series) >= LABEL_SETS_MAX:
            route, _, _, _, outcome, _ = labels
            labels = (route, "other", "other", "other", outcome, "other")
        return self._series.setdefault(labels, _Series())

    def collect(self) -> Iterator[Metric]:
        """Called by prometheus-client at a scrape."""
        now = self._gauges()  # first: the gateway may count what has ended since the last time
        yield from self._collect_counters()
        for histogram, name, text in (
            (self.ttft, "time_to_first_token", "From a call's arrival to its answer's first byte, held time included"),
            (self.itl, "inter_token_latency", "Between two reads of a streamed answer; a read may hold several tokens"),
            (self.duration, "call_duration", "From a call's arrival to its end"),
            (self.queue, "queue", "How long calls were held by the scheduler"),
            (self.overhead, "overhead", "The gateway's own work before an engine has the call"),
        ):
            yield histogram.family(f"joulegate_{name}_seconds", text)
        yield from self._collect_gauges(now)

    def _collect_counters(self) -> Iterator[Metric]:
        calls = CounterMetricFamily(
            "joulegate_calls",
            f"Calls that ended, by outcome; reason is - for ok; label sets over {LABEL_SETS_MAX} are counted as other",
            labels=("route", "engine", "model", "key", "outcome", "reason"),
        )
        tokens: dict[tuple[str, ...], int] = {}
        silent: dict[tuple[str, ...], int] = {}
        for labels, series in self._series.items():
            calls.add_metric(labels, series.calls)
            route, engine, model = labels[:3]
            for kind, count in (
                ("prompt", series.prompt_tokens),
                ("cached", series.cached_tokens),
                ("output", series.output_tokens),
            ):
                if count:
                    tokens[engine, model, kind] = tokens.get((engine, model, kind), 0) + count
            if series.without_usage:
                silent[engine, route] = silent.get((engine, route), 0) + series.without_usage
        yield calls
        text = "Tokens as the engines reported them; cached is part of prompt"
        yield _counter("joulegate_tokens", text, ("engine", "model", "kind"), tokens)
        text = "Answers that reported no token counts"
        yield _counter("joulegate_calls_without_usage", text, ("engine", "route"), silent)
        text = "Attempts at an engine that failed, whether or not the call was tried again"
        yield _counter("joulegate_attempts_failed", text, ("engine", "reason"), self._attempts_failed)
        yield CounterMetricFamily("joulegate_retries", "Further attempts at calls that have ended", self._retries)

    def _collect_gauges(self, now: GaugeSnapshot) -> Iterator[Metric]:
        yield GaugeMetricFamily("joulegate_client_connections", "Open client connections", now.client_connections)
        yield CounterMetricFamily(
            "joulegate_client_connections_refused", "Over limits.client_connections", now.refused_connections
        )
        yield GaugeMetricFamily("joulegate_calls_held", "Calls that wait in the gateway", now.calls_held)
        yield CounterMetricFamily(
            "joulegate_log_lines_dropped", "Lines of the call log never written", now.log_lines_dropped
        )
        yield InfoMetricFamily("joulegate_build", "The running version", {"version": _version()})
        for name, text, value_of in (
            ("up", "1 if the last probe was good", lambda e: None if e.healthy is None else int(e.healthy)),
            ("breaker_state", "0 closed, 1 half-open, 2 open", lambda e: _BREAKER[e.breaker]),
            ("calls_in_flight", "Calls that the gateway has given to the engine", lambda e: e.in_flight),
            ("running_calls", "num_requests_running of the engine's own metrics", lambda e: e.running),
            ("waiting_calls", "num_requests_waiting of the engine's own metrics", lambda e: e.waiting),
            ("kv_cache_usage_ratio", "kv_cache_usage_perc of the engine's own metrics", lambda e: e.kv_cache_usage),
        ):
            family = GaugeMetricFamily(f"joulegate_engine_{name}", text, labels=["engine"])
            for engine, gauges in now.engines.items():
                if (value := value_of(gauges)) is not None:  # unknown is absent, never 0
                    family.add_metric([engine], value)
            yield family


def _counter(name: str, text: str, labels: tuple[str, ...], counts: dict[tuple[str, ...], int]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=labels)
    for values, count in counts.items():
        family.add_metric(values, count)
    return family


def _version() -> str:
    try:
        return version("joulegate")
    except PackageNotFoundError:  # run from a checkout
        return "unknown"
