"""Which histograms does vLLM keep, and with which buckets?"""

from __future__ import annotations

ITERATION_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
FIRST_TOKEN_SECONDS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
TOKEN_SECONDS = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0),
)
LATENCY_SECONDS = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)


def counts_up_to(most: int) -> tuple[float, ...]:
    """1, 2, 5, 10, 20, 50 … as far as a count can go."""
    bounds: list[float] = []
    decade = 1
    while True:
        for step in (1, 2, 5):
            if step * decade > most:
                return tuple(bounds)
            bounds.append(float(step * decade))
        decade *= 10


HISTOGRAMS: tuple[tuple[str, str, tuple[float, ...] | None], ...] = (
    ("request_prompt_tokens", "Prompt tokens a request.", None),
    ("request_generation_tokens", "Output tokens a request.", None),
    ("request_max_num_generation_tokens", "Most output tokens of a request's sequences.", None),
    ("request_params_n", "The parameter n.", (1.0, 2.0, 5.0, 10.0, 20.0)),
    ("request_params_max_tokens", "The parameter max_tokens.", None),
    ("time_to_first_token_seconds", "Time to the first token.", FIRST_TOKEN_SECONDS),
    ("inter_token_latency_seconds", "Time between two tokens.", TOKEN_SECONDS),
    ("request_time_per_output_token_seconds", "Mean time an output token, by request.", TOKEN_SECONDS),
    ("e2e_request_latency_seconds", "Time from arrival to the last token.", LATENCY_SECONDS),
    ("request_queue_time_seconds", "Time waiting.", LATENCY_SECONDS),
    ("request_inference_time_seconds", "Time running.", LATENCY_SECONDS),
    ("request_prefill_time_seconds", "Time in prefill.", LATENCY_SECONDS),
    ("request_decode_time_seconds", "Time in decode.", LATENCY_SECONDS),
    ("request_num_preemptions", "Preemptions of a request.", (1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0)),
    ("request_prefill_kv_computed_tokens", "Prompt tokens computed anew.", None),
)
"""Name, what it is, bounds; None: counts up to the longest request."""
