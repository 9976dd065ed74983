"""Which sizes do the workloads come in? The published shapes, and cuts of them for smaller machines."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from workloads.shapes import KINDS

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Mapping

    from workloads.shapes import WorkflowShape

OUTPUT = (28, 32)
"""Tokens. Much shorter answers are too short to be recognised in a later prompt (`SHORTEST` of workflow inference)."""
_DOCUMENT = {"chunks": (3, 4), "chunk_tokens": (60, 120), "summary_tokens": OUTPUT, "instruction_tokens": 24}
_SHORTER = {"chunks": (3, 6), "chunk_tokens": (256, 768)}

PRESETS: dict[str, dict[str, Mapping[str, Any]]] = {
    "published": {},
    "small": {
        "chain": _SHORTER,
        "map-reduce": _SHORTER,
        "copilot": {"system_tokens": 1500, "query_tokens": (200, 600), "output_tokens": (80, 200)},
        "coding": {
            "files": (2, 4),
            "rounds": 2,
            "design_tokens": 200,
            "context_tokens": 700,
            "code_tokens": (150, 250),
            "review_tokens": 90,
            "revision_tokens": (150, 200),
        },
    },
    "cpu": {
        "chain": _DOCUMENT,
        "map-reduce": _DOCUMENT,
        "copilot": {"system_tokens": 180, "query_tokens": (40, 80), "output_tokens": OUTPUT},
        "coding": {
            "files": (2, 3),
            "rounds": 2,
            "design_tokens": 32,
            "context_tokens": 120,
            "file_tokens": 24,
            "code_tokens": OUTPUT,
            "review_tokens": 30,
            "revision_tokens": OUTPUT,
        },
        "chat": {"prompt_tokens": (40, 80), "output_tokens": OUTPUT},
    },
}
"""Name → kind → the parameters that differ from the published shape. `small`: what two cores tokenize at several times
real time beside all else. `cpu`: prompts of at most about 400 tokens of a small vocabulary, answers of 28 to 32, for
engines on a CPU."""


def kinds(preset: str) -> dict[str, Callable[[str, random.Random], WorkflowShape]]:
    """All kinds of workflow in a preset's sizes. KeyError for an unknown preset."""
    return {kind: partial(make, **PRESETS[preset].get(kind, {})) for kind, make in KINDS.items()}


CPU = kinds("cpu")
