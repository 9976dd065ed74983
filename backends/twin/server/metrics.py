"""What does /metrics say? vLLM's names, types and labels, moving as vLLM's do, in the engine's seconds."""

from __future__ import annotations

import time
from bisect import bisect_left
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from backends.twin.server.buckets import HISTOGRAMS, ITERATION_TOKENS, counts_up_to

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from prometheus_client.core import Metric

    from backends.twin.request import Finished, FirstToken
    from backends.twin.server.runtime import Call, Runtime
    from backends.twin.totals import Totals

FINISHED_REASONS = ("stop", "length", "abort", "error", "repetition")


class Histogram:
    """Counts by bucket; many equal values at once cost as much as one."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """So many values of this size."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def cumulative(self) -> list[tuple[str, float]]:
        """As Prometheus wants them."""
        total, pairs = 0, []
        for bound, count in zip((*map(float, self.bounds), "+Inf"), self.counts, strict=True):
            total += count
            pairs.append((str(bound), float(total)))
        return pairs


class Observed:
    """What is counted of calls as they pass, beyond what the engine itself counts."""

    def __init__(self, max_model_len: int) -> None:
        self.ended_tokens = 0
        """Output tokens of calls that are finished or were aborted."""
        self.cached_prompt_tokens = 0
        self.refused = 0
        """Requests refused because there were too many."""
        self.success = dict.fromkeys(FINISHED_REASONS, 0)
        self.histograms = {name: Histogram(bounds or counts_up_to(max_model_len)) for name, _, bounds in HISTOGRAMS}
        self.http: dict[tuple[str, str, str], int] = {}
        """Answers by (handler, method, status class)."""

    def first_token(self, event: FirstToken) -> None:
        """A first token is on its way to its client."""
        request = event.request
        self.cached_prompt_tokens += request.cached_tokens or 0
        self.histograms["time_to_first_token_seconds"].observe(event.at - request.arrived_at)

    def finished(self, event: Finished, call: Call) -> None:
        """A last token is on its way to its client."""
        request, seen = event.request, self.histograms
        self.ended_tokens += request.output_tokens
        self.success[call.answer.finish_reason] += 1
        assert request.scheduled_at is not None and request.first_token_at is not None
        ended_at = event.at
        decode = ended_at - request.first_token_at
        values = {
            "e2e_request_latency_seconds": ended_at - request.arrived_at,
            "request_queue_time_seconds": request.scheduled_at - request.visible_at,
            "request_inference_time_seconds": ended_at - request.scheduled_at,
            "request_prefill_time_seconds": request.first_token_at - request.scheduled_at,
            "request_decode_time_seconds": decode,
            "request_time_per_output_token_seconds": decode / max(1, request.output_tokens - 1),
            "request_prompt_tokens": request.prompt_tokens,
            "request_generation_tokens": request.output_tokens,
            "request_max_num_generation_tokens": request.output_tokens,
            "request_params_max_tokens": call.max_tokens,
            "request_params_n": call.group.n,
            "request_num_preemptions": request.preemptions,
            "request_prefill_kv_computed_tokens": request.prompt_tokens - (request.cached_tokens or 0),
        }
        for name, value in values.items():
            seen[name].observe(value)

    def aborted(self, generated_tokens: int) -> None:
        """A client left. vLLM counts no such call as finished, so nothing else moves."""
        self.ended_tokens += generated_tokens

    def steps(self, totals: Totals, steps_before: int, tokens_before: int, busy_before: float) -> None:
        """Steps were done since the last look: each decoded token waited for its step."""
        steps, tokens = totals.steps - steps_before, totals.decode_tokens - tokens_before
        if steps and tokens:
            self.histograms["inter_token_latency_seconds"].observe((totals.busy_seconds - busy_before) / steps, tokens)

    def answered(self, handler: str, method: str, status: int) -> None:
        """An HTTP answer went out."""
        key = handler, method, f"{status // 100}xx"
        self.http[key] = self.http.get(key, 0) + 1


class EngineCollector(Collector):
    """Reads the engine when somebody asks."""

    def __init__(self, runtime: Runtime, observed: Observed, model_name: str) -> None:
        self._runtime, self._observed = runtime, observed
        self._names, self._values = ("engine", "model_name"), ("0", model_name)
        self._created = time.time()

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        metric = GaugeMetricFamily(f"vllm:{name}", text, labels=self._names)
        metric.add_metric(self._values, value)
        return metric

    def _counter(self, name: str, text: str, values: dict[str, float] | float, label: str = "source") -> Metric:
        many = isinstance(values, dict)
        metric = CounterMetricFamily(f"vllm:{name}", text, labels=(*self._names, label) if many else self._names)
        for key, value in values.items() if isinstance(values, dict) else (("", values),):
            metric.add_metric((*self._values, key) if many else self._values, value, created=self._created)
        return metric

    def collect(self) -> Iterator[Metric]:
        """All vllm: metrics, and what says that they are simulated."""
        self._runtime.look()
        yield from self._gauges()
        yield from self._counters()
        yield from self._histograms()
        yield self._cache_config()
        yield from self._ours()
        http = CounterMetricFamily(
            "http_requests", "HTTP answers by method, status and handler.", labels=("handler", "method", "status")
        )
        for key, count in self._observed.http.items():
            http.add_metric(key, count, created=self._created)
        yield http

    def _gauges(self) -> Iterator[Metric]:
        engine, queued = self._runtime.engine, self._runtime.waiting_count()
        yield self._gauge("num_requests_running", "Requests in the running batch.", len(engine.running))
        yield self._gauge("num_requests_waiting", "Requests that wait to be scheduled.", queued)
        waiting = GaugeMetricFamily(
            "vllm:num_requests_waiting_by_reason", "Waiting requests by reason.", labels=(*self._names, "reason")
        )
        waiting.add_metric((*self._values, "capacity"), queued)
        waiting.add_metric((*self._values, "deferred"), 0)
        yield waiting
        sleep = GaugeMetricFamily(
            "vllm:engine_sleep_state", "Sleep state, 1 for what it is.", labels=(*self._names, "sleep_state")
        )
        now = "weights_offloaded" if self._runtime.asleep else "awake"
        for state in ("awake", "weights_offloaded", "discard_all"):
            sleep.add_metric((*self._values, state), float(state == now))
        yield sleep
        yield self._gauge("kv_cache_usage_perc", "KV cache in use; 1 is all of it.", engine.kv_usage)

    def _counters(self) -> Iterator[Metric]:
        totals, observed = self._runtime.engine.totals, self._observed
        cached = observed.cached_prompt_tokens
        for name in ("flops", "read_bytes", "write_bytes"):
            yield self._counter(
                f"estimated_{name}_per_gpu", "Not estimated, as in vLLM without --enable-mfu-metrics.", 0
            )
        yield self._counter("prefix_cache_queries", "Tokens looked up in the prefix cache.", totals.prefix_queries)
        yield self._counter("prefix_cache_hits", "Tokens found in the prefix cache.", totals.prefix_hits)
        for name in (
            "external_prefix_cache_queries",
            "external_prefix_cache_hits",
            "mm_cache_queries",
            "mm_cache_hits",
        ):
            yield self._counter(name, "The twin has no such cache.", 0)
        yield self._counter("num_preemptions", "Preemptions.", totals.preemptions)
        yield self._counter("prompt_tokens", "Prompt tokens processed.", totals.prompt_tokens)
        sources = {
            "local_compute": totals.prompt_tokens - cached,
            "local_cache_hit": cached,
            "external_kv_transfer": 0.0,
        }
        yield self._counter("prompt_tokens_by_source", "Prompt tokens by source.", sources)
        yield self._counter("prompt_tokens_cached", "Prompt tokens found in a cache.", cached)
        tiers = {"device": cached, "host": 0.0, "p2p": 0.0, "disk": 0.0, "external_unspecified": 0.0}
        yield self._counter("prompt_tokens_cached_by_source", "Cached prompt tokens by cache tier.", tiers)
        yield self._counter("generation_tokens", "Output tokens.", self._runtime.generation_tokens())
        success = {reason: float(count) for reason, count in observed.success.items()}
        yield self._counter("request_success", "Finished requests.", success, "finished_reason")
        refused = CounterMetricFamily(
            "vllm:admission_rejections", "Requests refused because of a limit.", labels=("model_name", "reason")
        )
        for reason, count in (("max_num_queued_reqs", self._observed.refused), ("max_num_queued_tokens", 0)):
            refused.add_metric((self._values[1], reason), count, created=self._created)
        yield refused

    def _histograms(self) -> Iterator[Metric]:
        for name, text, _ in HISTOGRAMS:
            yield self._histogram(name, text, self._observed.histograms[name])
        totals = self._runtime.engine.totals
        steps = Histogram(ITERATION_TOKENS)
        for tokens, count in totals.steps_by_tokens.items():
            steps.observe(tokens, count)
        # vLLM counts what a step made besides what it computed: a prefill's last step has one token more.
        steps.sum = totals.prefill_tokens + totals.generation_tokens
        yield self._histogram("iteration_tokens_total", "Tokens an engine step.", steps)

    def _histogram(self, name: str, text: str, histogram: Histogram) -> Metric:
        metric = HistogramMetricFamily(f"vllm:{name}", text, labels=self._names)
        metric.add_metric(self._values, histogram.cumulative(), sum_value=histogram.sum)
        for suffix in ("_created",):
            metric.add_sample(f"vllm:{name}{suffix}", dict(zip(self._names, self._values, strict=True)), self._created)
        return metric

    def _cache_config(self) -> Metric:
        limits = self._runtime.engine.calibration.engine
        blocks = limits.kv_cache_tokens // limits.block_tokens
        max_model_len = self._runtime.engine.calibration.model.max_model_len
        info = {
            "_block_size_resolved": "True",
            "block_size": str(limits.block_tokens),
            "cache_dtype": "auto",
            "enable_prefix_caching": str(limits.prefix_caching),
            "engine": "0",
            "gpu_memory_utilization": "0.9",
            "kv_cache_max_concurrency": f"{limits.kv_cache_tokens / max_model_len:.4f}",
            "kv_cache_size_tokens": str(blocks * limits.block_tokens),
            "num_cpu_blocks": "None",
            "num_gpu_blocks": str(blocks),
            "prefix_caching_hash_algo": "sha256",
            "sliding_window": "None",
        }
        metric = GaugeMetricFamily("vllm:cache_config_info", "The KV cache's configuration.", labels=tuple(info))
        metric.add_metric(tuple(info.values()), 1)
        return metric

    def _ours(self) -> Iterator[Metric]:
        engine = self._runtime.engine
        calibration = engine.calibration
        info = GaugeMetricFamily(
            "joulegate_twin_info",
            "This engine and its power are simulated.",
            labels=("calibration", "card", "gpus", "model", "source"),
        )
        labels = (
            calibration.name,
            calibration.card.name,
            str(calibration.card.gpus),
            calibration.model.id,
            "simulated",
        )
        info.add_metric(labels, 1)
        yield info
        yield GaugeMetricFamily("joulegate_twin_speed", "Simulated seconds a real second.", value=self._runtime.speed)
        yield CounterMetricFamily(
            "joulegate_twin_simulated_seconds", "Simulated time since the start.", value=engine.now
        )
        yield CounterMetricFamily(
            "joulegate_twin_energy_joules", "Simulated energy of all cards.", value=engine.meter.counter_joules()
        )


class Metrics:
    """The page itself."""

    def __init__(self, runtime: Runtime, observed: Observed, model_name: str) -> None:
        registry = CollectorRegistry(auto_describe=False)
        GCCollector(registry)
        PlatformCollector(registry)
        ProcessCollector(registry=registry)
        registry.register(EngineCollector(runtime, observed, model_name))
        self._registry = registry

    def page(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)
