"""The twin's /metrics are vLLM's: names, types, labels, buckets, and what a call moves."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.vllm.children import wait_until
from tests.vllm.test_parity import completion_body
from tests.vllm.wire import OpenStream, ask, chat_body, gauge, running, wait_idle, waiting

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
ENDLESS = {"ignore_eos": True}
PATIENCE_SECONDS = 30.0

ABSENT = {
    # Of tool parsers and sleep mode, which the twin has not.
    "vllm:tool_call_parser_invocations",
    "vllm:sleep_mode_operation_duration_seconds",
    "vllm:sleep_mode_operations_in_flight",
}


def families(url: str) -> dict[str, tuple[str, frozenset[frozenset[str]], tuple[str, ...]]]:
    """vLLM's metrics: name → type, sets of labels, bucket bounds."""
    found = {}
    for family in text_string_to_metric_families(ask(url, "GET", "/metrics").body.decode()):
        if family.name.startswith("vllm:") and not family.name.endswith("_created"):
            labels = frozenset(frozenset(sample.labels) for sample in family.samples)
            bounds = dict.fromkeys(sample.labels["le"] for sample in family.samples if "le" in sample.labels)
            found[family.name] = family.type, labels, tuple(bounds)
    return found


def test_metrics_have_the_same_names_types_labels_and_buckets(engine: str, twin: str) -> None:
    for url in (engine, twin):
        assert ask(url, "POST", COMPLETIONS, completion_body()).status == 200
    real, ours = families(engine), families(twin)
    assert set(real) - set(ours) <= ABSENT
    assert set(ours) <= set(real)
    [config] = ours.pop("vllm:cache_config_info")[1]
    [real_config] = real["vllm:cache_config_info"][1]
    assert config <= real_config
    assert ours == {name: real[name] for name in ours}


MOVING = {
    "vllm:prompt_tokens_total": 5,
    "vllm:generation_tokens_total": 20,
    "vllm:prefix_cache_queries_total": 5,
    "vllm:request_success_total": 1,
    "vllm:time_to_first_token_seconds_count": 1,
    "vllm:inter_token_latency_seconds_count": 19,
    "vllm:e2e_request_latency_seconds_count": 1,
    "vllm:request_queue_time_seconds_count": 1,
    "vllm:request_prefill_time_seconds_count": 1,
    "vllm:request_decode_time_seconds_count": 1,
    "vllm:request_inference_time_seconds_count": 1,
    "vllm:request_time_per_output_token_seconds_count": 1,
    "vllm:request_prompt_tokens_sum": 5,
    "vllm:request_generation_tokens_sum": 20,
    "vllm:request_params_max_tokens_sum": 20,
    "vllm:request_params_n_sum": 1,
    "vllm:request_prefill_kv_computed_tokens_sum": 5,
    "vllm:iteration_tokens_total_sum": 25,
}
"""What one call of five prompt tokens and twenty output tokens adds."""


@pytest.mark.parametrize("streamed", [False, True])
def test_metrics_move_alike(idle_engine: str, twin: str, streamed: bool) -> None:
    for url in (idle_engine, twin):
        before = {name: gauge(url, name) for name in MOVING}
        answer = ask(
            url, "POST", COMPLETIONS, completion_body([5, 6, 7, 8, 9], max_tokens=20, stream=streamed, **ENDLESS)
        )
        assert answer.status == 200

        def moved(url: str = url, before: dict[str, float] = before) -> bool:
            return all(gauge(url, name) - before[name] == by for name, by in MOVING.items())

        try:
            wait_until(moved, 5, "all have moved")
        except AssertionError:
            assert {name: gauge(url, name) - before[name] for name in MOVING} == MOVING, url


def test_a_client_that_leaves_is_not_counted_as_finished(idle_engine: str, twin: str) -> None:
    for url in (idle_engine, twin):
        finished = gauge(url, "vllm:request_success_total")
        with OpenStream(url, CHAT, chat_body(max_tokens=16_000, **ENDLESS)) as stream:
            next(stream.events())
            assert running(url) == 1
        wait_idle(url, PATIENCE_SECONDS)
        assert waiting(url) == 0
        assert gauge(url, "vllm:request_success_total") == finished
        assert ask(url, "GET", "/load").json() == {"server_load": 0}
