"""Which sizes of the workloads does a small engine on a CPU run in seconds? The published shapes, cut down."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from workloads.shapes import chain, chat, coding, copilot, map_reduce

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from workloads.shapes import WorkflowShape

OUTPUT = (28, 32)
"""Tokens. Much shorter answers are too short to be recognised in a later prompt (`SHORTEST` of workflow inference)."""

CPU: dict[str, Callable[[str, random.Random], WorkflowShape]] = {
    "chain": partial(chain, chunks=(3, 4), chunk_tokens=(60, 120), summary_tokens=OUTPUT, instruction_tokens=24),
    "map-reduce": partial(
        map_reduce, chunks=(3, 4), chunk_tokens=(60, 120), summary_tokens=OUTPUT, instruction_tokens=24
    ),
    "copilot": partial(copilot, system_tokens=180, query_tokens=(40, 80), output_tokens=OUTPUT),
    "coding": partial(
        coding,
        files=(2, 3),
        rounds=2,
        design_tokens=32,
        context_tokens=120,
        file_tokens=24,
        code_tokens=OUTPUT,
        review_tokens=30,
        revision_tokens=OUTPUT,
    ),
    "chat": partial(chat, prompt_tokens=(40, 80), output_tokens=OUTPUT),
}
"""Prompts of at most about 400 tokens of a small vocabulary, answers of 28 to 32."""
