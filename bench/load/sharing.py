"""How much of a load's prompts could come from a prefix cache? What an endless one would have had, to check against."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from workloads.shapes import CallShape

BLOCK_TOKENS = 16
"""vLLM's: only whole blocks are cached."""
SHARED_LEAST = 0.5
"""An engine that finds less than this share of it is said not to share prefixes."""

_Node = dict[tuple[str, int], "_Node"]


def shareable_tokens(calls: Iterable[CallShape]) -> int:
    """Prompt tokens that an earlier one of these calls began with as well, in whole blocks; the last token of a prompt
    is always computed."""
    root: _Node = {}
    total = 0
    for call in calls:
        node, shared, found = root, 0, True
        for part in call.prompt:
            key = part.text, part.tokens
            found = found and key in node
            if found:
                shared += part.tokens
            node = node.setdefault(key, {})
        shared = min(shared, call.prompt_tokens - 1)
        total += shared // BLOCK_TOKENS * BLOCK_TOKENS
    return total
