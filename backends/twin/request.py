"""One sequence as the simulated engine holds it, and what the engine says of it."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backends.twin.content import Run
    from backends.twin.prefix_cache import Node


class State(Enum):
    """Where a request is."""

    INCOMING = "incoming"
    """In the API server, not yet seen by the engine's core."""
    WAITING = "waiting"
    PREFILL = "prefill"
    DECODE = "decode"
    GONE = "gone"
    """Finished or aborted."""


class Request:
    """What is asked of the engine. The number of output tokens is known from the start: the twin's text is a function
    of the prompt, so where it will end is too. Times are the engine's seconds; None = has not happened.

    `runs` cover the prompt and the output behind it, as far as there are whole blocks.
    """

    __slots__ = (
        "aborted",
        "arrived_at",
        "cached_tokens",
        "computed_at_join",
        "computed_tokens",
        "ends_at_step",
        "first_token_at",
        "generated_at_join",
        "id",
        "joined_at_step",
        "node",
        "order",
        "output_tokens",
        "preemptions",
        "priority",
        "prompt_tokens",
        "runs",
        "scheduled_at",
        "state",
        "target_tokens",
        "visible_at",
    )

    def __init__(
        self, request_id: str, prompt_tokens: int, output_tokens: int, runs: Sequence[Run] = (), priority: int = 0
    ) -> None:
        if prompt_tokens < 1 or output_tokens < 1:
            raise ValueError(f"prompt_tokens ({prompt_tokens}) and output_tokens ({output_tokens}) must be at least 1")
        self.id = request_id
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.runs = runs
        self.priority = priority
        """Lower runs first, as vLLM means it; used under the priority policy alone."""
        self.order = 0
        self.state = State.INCOMING
        self.aborted = False
        self.arrived_at = 0.0
        self.visible_at = 0.0
        self.scheduled_at: float | None = None
        self.first_token_at: float | None = None
        self.cached_tokens: int | None = None
        """Prompt tokens found in the prefix cache when it was first scheduled."""
        self.preemptions = 0
        self.computed_tokens = 0
        """In the KV cache, while in prefill."""
        self.target_tokens = prompt_tokens
        """What prefill must compute: the prompt, and after a preemption what had been generated too."""
        self.node: Node | None = None
        """Where its held part of the prefix cache ends."""
        # While decoding, everything advances by one a step: kept as it was when the request joined.
        self.joined_at_step = 0
        self.computed_at_join = 0
        self.generated_at_join = 0
        self.ends_at_step = 0


class FirstToken(NamedTuple):
    """The first output token reaches the client at this time."""

    at: float
    request: Request


class Finished(NamedTuple):
    """The last output token reaches the client at this time."""

    at: float
    request: Request


Event = FirstToken | Finished
