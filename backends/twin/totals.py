"""What has a simulated engine done since its start?"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backends.twin.steps import StepRun


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

    def add(self, run: StepRun, seconds: float) -> None:
        """A run of steps is done."""
        steps, batch = run.steps, run.batch
        self.steps += steps
        self.decode_tokens += steps * batch.decode
        self.context_tokens += steps * (batch.context + batch.repeated) + batch.decode * steps * (steps - 1) / 2
        self.prefill_tokens += batch.prefill
        self.attention_pairs += batch.pairs
        self.busy_seconds += seconds
        # As vLLM counts an iteration's tokens: a prefill that is done makes an output token too.
        done = sum(request.computed_tokens + count == request.target_tokens for request, count in run.chunks)
        tokens = batch.decode + batch.prefill + done
        self.steps_by_tokens[tokens] = self.steps_by_tokens.get(tokens, 0) + steps
