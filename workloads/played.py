"""What became of a workflow that was played, call by call, as its client saw it?"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from workloads.shapes import WorkflowShape


class Arrival(NamedTuple):
    """A workflow that begins so many seconds after the play did (of a play by users: when one of them is free)."""

    seconds: float
    workflow: WorkflowShape
    deadline_seconds: float | None = None
    """From its intended start on."""
    workflow_class: str | None = None


class Tokens(NamedTuple):
    """Of a call, as the engine counts. None: it did not say."""

    prompt: int | None = None
    cached: int | None = None
    output: int | None = None


class PlayedCall(NamedTuple):
    """What became of one call. `status` 0: no answer; `error` is empty for a good one. None: nobody said."""

    node: str
    intended_at: float
    """When what it waits for was there: sent later than that, it waited for a place among `concurrency`."""
    sent_at: float
    answered_at: float
    status: int
    error: str = ""
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    """These three as the engine counts."""
    first_token_at: float | None = None
    """The first piece of a streamed answer."""
    held_seconds: float | None = None
    engine: str | None = None
    energy_joules: float | None = None
    energy_source: str | None = None
    """These four as a gateway says."""

    @property
    def good(self) -> bool:
        """Was it answered?"""
        return not self.error


class PlayedWorkflow(NamedTuple):
    """A workflow that is over: all its calls answered, or some failed and those behind them never sent; or the play was
    broken off, and these are the calls that were over by then."""

    workflow: WorkflowShape
    intended_at: float
    finished_at: float
    calls: tuple[PlayedCall, ...]
    workflow_id: str = ""
    """As the answers name it; empty where they do not."""

    @property
    def complete(self) -> bool:
        """Was every call of it answered?"""
        return len(self.calls) == len(self.workflow.calls) and all(call.good for call in self.calls)

    @property
    def seconds(self) -> float:
        """From when it should have begun to its last answer."""
        return self.finished_at - self.intended_at


def failures(workflows: Sequence[PlayedWorkflow]) -> list[PlayedCall]:
    """The calls that failed."""
    return [call for workflow in workflows for call in workflow.calls if not call.good]
