"""What is counted, read back through Prometheus' own parsers."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client import Histogram as LibraryHistogram
from prometheus_client.core import Metric
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from proxy import metrics as module
from proxy.call import Call, Outcome
from proxy.identity import Identity
from proxy.metrics import EngineGauges, GaugeSnapshot, Histogram, Metrics

OF_WORKFLOWS = re.compile("joulegate_(workflow|parrot|batch|inference)")
OF_POLICIES = re.compile("joulegate_(policy|decision)")
OF_EXPERIMENTS = re.compile("joulegate_experiment")

Labels = tuple[tuple[str, str], ...]


def call(**changes: object) -> Call:
    """A finished stream of 5 s that was held 1 s."""
    made = Call("jg-1", "r-1", "POST", "/v1/completions", "/v1/completions", 100.0, 1e9, Identity("", "none"), "fifo")
    made.key_name, made.model, made.engine, made.attempts = "team", "m", "gpu0", 1
    made.dispatched_at, made.first_byte_at, made.finished_at = 101.0, 102.0, 105.0
    made.overhead_seconds, made.status, made.outcome = 3e-5, 200, Outcome.OK
    made.prompt_tokens, made.cached_tokens, made.output_tokens = 7, 4, 3
    for name, value in changes.items():
        assert hasattr(made, name)
        setattr(made, name, value)
    return made


def scraped(metrics: Metrics) -> dict[tuple[str, Labels], float]:
    """Every sample of a scrape."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse_text(metrics.text())
        for sample in family.samples
    }


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    """One sample, by all its labels; None = it is not there."""
    return scraped(metrics).get((name, tuple(sorted(labels.items()))))


def total(metrics: Metrics, name: str, **labels: str) -> float:
    """The sum over the samples with these labels among theirs."""
    return sum(
        count for (named, has), count in scraped(metrics).items() if named == name and set(labels.items()) <= set(has)
    )


def fresh(gauges: GaugeSnapshot | None = None) -> Metrics:
    """Metrics of a gateway that has done nothing yet."""
    snapshot = gauges or GaugeSnapshot()
    return Metrics(lambda: snapshot)


def test_a_call_is_counted_with_its_labels_and_times() -> None:
    metrics = fresh()
    metrics.finished(call())
    labels = {"route": "/v1/completions", "engine": "gpu0", "model": "m", "key": "team"}
    assert value(metrics, "joulegate_calls_total", **labels, outcome="ok", reason="-") == 1
    for kind, count in (("prompt", 7), ("cached", 4), ("output", 3)):
        assert value(metrics, "joulegate_tokens_total", engine="gpu0", model="m", kind=kind) == count
    for name, seconds in (("queue", 1), ("time_to_first_token", 2), ("call_duration", 5), ("overhead", 3e-5)):
        assert value(metrics, f"joulegate_{name}_seconds_sum") == pytest.approx(seconds)
        assert value(metrics, f"joulegate_{name}_seconds_count") == 1
    assert value(metrics, "joulegate_overhead_seconds_bucket", le="2.5e-05") == 0
    assert value(metrics, "joulegate_overhead_seconds_bucket", le="5e-05") == 1


@pytest.mark.parametrize("outcome", Outcome)
def test_every_outcome_is_counted_once(outcome: Outcome) -> None:
    metrics = fresh()
    metrics.finished(call(outcome=outcome, reason="why"))
    assert total(metrics, "joulegate_calls_total", outcome=outcome.value, reason="why") == 1
    assert total(metrics, "joulegate_calls_total") == 1


def test_a_call_that_no_engine_had_has_no_engine_and_no_times() -> None:
    metrics = fresh()
    nothing = {"engine": None, "dispatched_at": None, "first_byte_at": None, "model": "anything", "attempts": 0}
    metrics.finished(call(**nothing, outcome=Outcome.REFUSED, reason="queue_full", status=503))
    assert total(metrics, "joulegate_calls_total", engine="-", model="-", reason="queue_full") == 1
    assert value(metrics, "joulegate_call_duration_seconds_count") == 0
    assert value(metrics, "joulegate_queue_seconds_count") == 0


def test_unknown_tokens_are_counted_as_unknown_and_not_as_zero() -> None:
    metrics = fresh()
    metrics.finished(call(prompt_tokens=None, cached_tokens=None, output_tokens=None))
    assert value(metrics, "joulegate_calls_without_usage_total", engine="gpu0", route="/v1/completions") == 1
    assert not [name for name, _ in scraped(metrics) if name == "joulegate_tokens_total"]
    metrics.finished(call(prompt_tokens=5, cached_tokens=None, output_tokens=None))
    assert value(metrics, "joulegate_tokens_total", engine="gpu0", model="m", kind="prompt") == 5
    assert value(metrics, "joulegate_tokens_total", engine="gpu0", model="m", kind="output") is None


def test_no_engine_can_make_a_counter_go_down() -> None:
    metrics = fresh()
    metrics.finished(call())
    metrics.finished(call(prompt_tokens=-1000, cached_tokens=-1000, output_tokens=-1000))
    assert value(metrics, "joulegate_tokens_total", engine="gpu0", model="m", kind="prompt") == 7
    assert value(metrics, "joulegate_tokens_total", engine="gpu0", model="m", kind="output") == 3


def test_attempts_that_failed_and_further_attempts() -> None:
    metrics = fresh()
    metrics.engine_failed("gpu0", "connect_refused")
    metrics.engine_failed("gpu0", "connect_refused")
    metrics.finished(call(attempts=2))
    assert value(metrics, "joulegate_attempts_failed_total", engine="gpu0", reason="connect_refused") == 2
    assert value(metrics, "joulegate_retries_total") == 1


def test_a_clients_words_do_not_become_labels() -> None:
    """A model is a label once an engine has answered for it, and then for its failures too."""
    metrics = fresh()
    for number in range(100):
        metrics.finished(call(model=f"invented-{number}", status=404, outcome=Outcome.ENGINE_4XX, reason="engine_4xx"))
        metrics.finished(call(model=f"invented-{number}", route="other"))
    metrics.finished(call(model="x" * 1000))
    assert {dict(labels)["model"] for name, labels in scraped(metrics) if name == "joulegate_calls_total"} == {"-"}
    metrics.finished(call(model="real"))
    metrics.finished(call(model="real", first_byte_at=None, outcome=Outcome.TIMEOUT, reason="first_byte_timeout"))
    assert total(metrics, "joulegate_calls_total", model="real", outcome="timeout") == 1


def test_models_over_the_limit_are_other() -> None:
    metrics = fresh()
    for number in range(module.MODELS_MAX + 10):
        metrics.finished(call(model=f"adapter-{number}"))
    assert total(metrics, "joulegate_calls_total", model="other") == 10
    assert total(metrics, "joulegate_calls_total") == module.MODELS_MAX + 10


def test_label_sets_over_the_limit_are_other_and_no_call_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LABEL_SETS_MAX", 20)
    metrics = fresh()
    for number in range(100):
        metrics.finished(call(key_name=f"key-{number}"))
        metrics.finished(call(key_name=f"key-{number}", outcome=Outcome.TIMEOUT, reason="idle_timeout"))
    assert total(metrics, "joulegate_calls_total") == 200
    assert total(metrics, "joulegate_calls_total", outcome="ok") == 100
    assert total(metrics, "joulegate_calls_total", outcome="timeout", key="other") == 90
    assert total(metrics, "joulegate_tokens_total", kind="output") == 600
    series = [labels for name, labels in scraped(metrics) if name == "joulegate_calls_total"]
    assert len(series) == 22, "the limit, and one `other` for each route and outcome"


def test_labels_cannot_break_the_format() -> None:
    metrics = fresh()
    wild = 'a"b\\c\nd{e="f"} 1\n# TYPE x counter'
    metrics.finished(call(key_name=wild))
    assert total(metrics, "joulegate_calls_total", key=wild) == 1


@pytest.mark.parametrize("seconds", [0.0, 0.001, 0.0010001, 0.3, 600.0, 1e9, math.inf])
def test_a_histogram_counts_as_the_librarys_own_does(seconds: float) -> None:
    ours = Histogram((0.001, 0.3, 600.0))
    registry = CollectorRegistry()
    theirs = LibraryHistogram("h", "", buckets=(0.001, 0.3, 600.0), registry=registry)
    for observed in (seconds, 0.002):
        ours.observe(observed)
        theirs.observe(observed)

    def samples(families: list[Metric]) -> dict[tuple[str, str], float]:
        found = [sample for family in families for sample in family.samples if not sample.name.endswith("_created")]
        return {(sample.name, sample.labels.get("le", "")): sample.value for sample in found}

    assert samples([ours.family("h", "")]) == samples(list(registry.collect()))


def test_gauges_are_read_at_the_scrape_and_unknown_ones_are_absent() -> None:
    known = EngineGauges(healthy=True, breaker="half_open", in_flight=5, running=4, waiting=0, kv_cache_usage=0.25)
    unknown = EngineGauges(healthy=None, breaker="open", in_flight=0, running=None, waiting=None, kv_cache_usage=None)
    metrics = fresh(
        GaugeSnapshot(
            client_connections=9,
            refused_connections=2,
            calls_held=3,
            log_lines_dropped=1,
            engines={"gpu0": known, "gpu1": unknown, "gpu2": EngineGauges(False, "closed", 0, None, None, None)},
        )
    )
    assert value(metrics, "joulegate_client_connections") == 9
    assert value(metrics, "joulegate_client_connections_refused_total") == 2
    assert value(metrics, "joulegate_calls_held") == 3
    assert value(metrics, "joulegate_log_lines_dropped_total") == 1
    by_name = {"up": 1, "breaker_state": 1, "calls_in_flight": 5, "running_calls": 4, "waiting_calls": 0}
    for name, expected in {**by_name, "kv_cache_usage_ratio": 0.25}.items():
        assert value(metrics, f"joulegate_engine_{name}", engine="gpu0") == expected, name
    for name in ("up", "running_calls", "waiting_calls", "kv_cache_usage_ratio"):
        assert value(metrics, f"joulegate_engine_{name}", engine="gpu1") is None, name
    assert value(metrics, "joulegate_engine_breaker_state", engine="gpu1") == 2
    assert value(metrics, "joulegate_engine_up", engine="gpu2") == 0


def test_both_formats_hold_the_same_and_say_what_runs() -> None:
    metrics = fresh()
    metrics.finished(call())
    metrics.itl.observe(0.02)
    openmetrics = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse_openmetrics(generate_openmetrics(metrics.registry).decode())
        for sample in family.samples
        if sample.name.startswith("joulegate_")
    }
    plain = {key: count for key, count in scraped(metrics).items() if key[0].startswith("joulegate_")}
    assert openmetrics == plain
    assert [dict(labels).keys() for name, labels in plain if name == "joulegate_build_info"] == [{"version": 0}.keys()]
    resident_bytes = value(metrics, "process_resident_memory_bytes")
    assert resident_bytes is not None and resident_bytes > 0


def test_the_documentation_lists_the_metrics_that_there_are() -> None:
    gauges = GaugeSnapshot(engines={"gpu0": EngineGauges(True, "closed", 0, 0, 0, 0.0)})
    metrics = fresh(gauges)
    metrics.finished(call())
    metrics.finished(call(prompt_tokens=None, output_tokens=None))
    metrics.engine_failed("gpu0", "connect_refused")
    suffix = re.compile(r"_(bucket|count|sum)$")
    exposed: dict[str, set[str]] = {}
    for name, labels in scraped(metrics):
        if name.startswith("joulegate_"):
            exposed.setdefault(suffix.sub("", name), set()).update(dict(labels).keys() - {"le"})
    text = (Path(__file__).resolve().parents[2] / "docs" / "observability.md").read_text()
    rows = re.findall(r"^\| `(joulegate_\w+)` \|([\w, ]*)\|", text, re.MULTILINE)
    documented = {name: set(filter(None, labels.strip().split(", "))) for name, labels in rows}
    # Those of workflows, policies and experiments are read off a whole gateway, in tests/e2e.
    here = {name: labels for name, labels in documented.items() if not OF_WORKFLOWS.match(name)}
    here = {name: labels for name, labels in here.items() if not OF_EXPERIMENTS.match(name)}
    assert {name: labels for name, labels in here.items() if not OF_POLICIES.match(name)} == exposed


def test_what_is_counted_while_the_gauges_are_read_is_in_the_scrape() -> None:
    """The gateway counts the calls that have ended since the last time when it is asked for its gauges."""

    def settle() -> GaugeSnapshot:
        metrics.finished(call())
        return GaugeSnapshot()

    metrics = Metrics(settle)
    assert total(metrics, "joulegate_calls_total") == 1
    assert total(metrics, "joulegate_calls_total") == 2
