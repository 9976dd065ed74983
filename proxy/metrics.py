"""What is counted: plain numbers while calls run, Prometheus' words when somebody asks."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from prometheus_client.core import Metric

    from proxy.call import Call
    from scheduler.core import Scheduler

LABEL_SETS_MAX = 2_000
"""Of a counter with labels from clients; further ones are counted under `other`."""
_BREAKER = {"closed": 0, "half_open": 1, "open": 2}

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
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
        family = HistogramMetricFamily(name, text)
        buckets, sum_so_far = [], 0
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            sum_so_far += count
            buckets.append(("+Inf" if bound == float("inf") else repr(bound), sum_so_far))
        family.add_metric([], buckets, self.total)
        return family


class Counters:
    """Counts by label values; their number is bounded, since some values come from clients."""

    __slots__ = ("labels", "values")

    def __init__(self, *labels: str) -> None:
        self.labels = labels
        self.values: dict[tuple[str, ...], int] = {}

    def add(self, values: tuple[str, ...], count: int = 1) -> None:
        """Count."""
        known = self.values
        if values in known:
            known[values] += count
        elif len(known) < LABEL_SETS_MAX:
            known[values] = count
        else:
            other = ("other",) * len(values)
            known[other] = known.get(other, 0) + count

    def family(self, name: str, text: str) -> CounterMetricFamily:
        """For a scrape."""
        family = CounterMetricFamily(name, text, labels=self.labels)
        for values, count in self.values.items():
            family.add_metric(values, count)
        return family


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

    def __init__(self, gauges: Callable[[], GaugeSnapshot], version: str = "") -> None:
        self._gauges = gauges
        self._version = version
        self.calls = Counters("route", "engine", "model", "key", "outcome", "reason")
        self.tokens = Counters("engine", "model", "kind")
        self.without_usage = Counters("engine", "route")
        self.attempts_failed = Counters("engine", "reason")
        self.ttft = Histogram(_SECONDS)
        self.itl = Histogram(_SECONDS)
        self.duration = Histogram(_SECONDS)
        self.queue = Histogram(_SECONDS)
        self.overhead = Histogram(_OVERHEAD_SECONDS)
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(self)

    def finished(self, call: Call) -> None:
        """Count a call that has ended."""
        engine, outcome = call.engine or "-", call.outcome
        # A model that no engine answered for is a client's own word: such words are not made into labels.
        model = call.model or "-" if call.first_byte_at is not None else "-"
        self.calls.add((call.route, engine, model, call.key_name, outcome or "-", call.reason or "-"))
        if call.dispatched_at is None or call.finished_at is None:
            return
        arrived_at = call.arrived_at
        self.queue.observe(call.dispatched_at - arrived_at)
        self.overhead.observe(call.overhead_seconds)
        self.duration.observe(call.finished_at - arrived_at)
        if call.first_byte_at is None:
            return
        self.ttft.observe(call.first_byte_at - arrived_at)
        prompt, output = call.prompt_tokens, call.output_tokens
        if prompt is None and output is None:
            self.without_usage.add((engine, call.route))
            return
        add = self.tokens.add
        if prompt:
            add((engine, model, "prompt"), prompt)
        if call.cached_tokens:
            add((engine, model, "cached"), call.cached_tokens)
        if output:
            add((engine, model, "output"), output)

    def engine_failed(self, engine: str, reason: str) -> None:
        """Count an attempt at an engine that failed, whether or not the call was tried again."""
        self.attempts_failed.add((engine, reason))

    def text(self) -> str:
        """As Prometheus reads it."""
        return generate_latest(self.registry).decode()

    def collect(self) -> Iterator[Metric]:
        """Called by prometheus-client at a scrape."""
        yield self.calls.family("joulegate_calls", "Calls that ended, by outcome; reason - for ok")
        yield self.tokens.family("joulegate_tokens", "Tokens as the engines reported them; cached is part of prompt")
        yield self.without_usage.family("joulegate_calls_without_usage", "Answers that reported no token counts")
        yield self.attempts_failed.family("joulegate_attempts_failed", "Attempts at an engine that failed")
        yield self.ttft.family("joulegate_time_to_first_token_seconds", "From a call's arrival to its answer's first byte")
        yield self.itl.family("joulegate_inter_token_latency_seconds", "Between two reads of a streamed answer")
        yield self.duration.family("joulegate_call_duration_seconds", "From a call's arrival to its end")
        yield self.queue.family("joulegate_queue_seconds", "How long calls were held by the scheduler")
        yield self.overhead.family("joulegate_overhead_seconds", "The gateway's own work before an engine has the call")
        yield from self._collect_gauges()

    def _collect_gauges(self) -> Iterator[Metric]:
        now = self._gauges()
        yield GaugeMetricFamily("joulegate_client_connections", "Open client connections", now.client_connections)
        yield CounterMetricFamily(
            "joulegate_client_connections_refused", "Over limits.client_connections", now.refused_connections
        )
        yield GaugeMetricFamily("joulegate_calls_held", "Calls that wait in the gateway", now.calls_held)
        yield CounterMetricFamily("joulegate_log_lines_dropped", "Over log.buffer_bytes", now.log_lines_dropped)
        build = GaugeMetricFamily("joulegate_build_info", "The running version", labels=["version"])
        build.add_metric([self._version], 1)
        yield build
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
