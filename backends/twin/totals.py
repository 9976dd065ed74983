"""What has a simulated engine done since its start?"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Totals:
    """Sums since the start."""

    steps: int = 0
    decode_tokens: int = 0
    context_tokens: float = 0.0
    prefill_tokens: int = 0
    attention_pairs: float = 0.0
    busy_seconds: float = 0.0
    generation_tokens: int = 0
    prompt_tokens: int = 0
    """Of finished prefills, cached ones included, as vLLM's vllm:prompt_tokens_total counts."""
    prefix_queries: int = 0
    prefix_hits: int = 0
    preemptions: int = 0
    steps_by_tokens: dict[int, int] = field(default_factory=dict)
    """Tokens computed in a step → number of such steps."""
