"""When is a workflow of an experiment over, and what came of it? Calls as they happen in, outcomes out."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from scheduler.experiments.rows import WorkflowOutcome

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scheduler.events import CallArrived
    from scheduler.experiments.experiment import Experiment
    from scheduler.state import CallState

QUIET_LEAST_SECONDS = 1.0
ANSWERED, CLIENT_GONE = "answered", "client_gone"
ARM_AT_FAULT = ("engine_408", "engine_429")
"""Answers of an engine that the client is not to blame for; nor for any from 500 on."""


def client_at_fault(reason: str) -> bool:
    """The engine has refused the request as such (4xx): any other arm's would have, too."""
    return reason.startswith("engine_4") and reason not in ARM_AT_FAULT and reason[7:].isdecimal()


def name_of(arrived: CallArrived) -> str:
    """What an experiment calls its workflow: never one of another key's. A call that says nothing of a workflow is one
    of its own."""
    return f"{arrived.key}/{arrived.workflow_id}" if arrived.workflow_id else arrived.call_id


class Clock(NamedTuple):
    """From the core's seconds to an experiment's, and back."""

    core: float
    experiment: float
    """The same moment."""
    pace: float = 1.0
    """Seconds of the experiment in one of the core's: above 1 before a twin that is as much faster."""

    def at(self, now: float) -> float:
        """The experiment's seconds."""
        return self.experiment + (now - self.core) * self.pace

    def back(self, at: float) -> float:
        """The core's."""
        return self.core + (at - self.experiment) / self.pace


class Followed:
    """A workflow of which a call came."""

    __slots__ = (
        "at_fault", "began_at", "deadline_at", "failed", "gone", "heard_at", "live", "named", "output_tokens",
        "prompt_tokens", "unknown", "workflow", "workflow_class",
    )  # fmt: skip

    def __init__(self, began_at: float, *, named: bool, unknown: bool = False) -> None:
        self.began_at = began_at
        self.heard_at = began_at
        """Its last call's end. Both in the experiment's seconds."""
        self.named = named
        """It may have further calls."""
        self.unknown = unknown
        """It is of an earlier process, and nothing of it was seen here: nobody can say what came of it."""
        self.live = 0
        self.failed = self.gone = self.at_fault = False
        self.prompt_tokens = self.output_tokens = 0
        self.workflow: object = None
        self.workflow_class = "standard"
        self.deadline_at: float | None = None


class Following:
    """All workflows of an experiment that are under way.

    One with a name is over when the book of workflows says so, or (if it was not declared) when no call of it was live
    for `quiet_seconds`: half of the wash-out, so that one whose client never says that it is done is counted before its
    block's row is closed. Its time is that of its last answer.
    """

    def __init__(self, experiment: Experiment, clock: Clock) -> None:
        self._experiment = experiment
        self._clock = clock
        self.quiet_seconds = max(QUIET_LEAST_SECONDS, experiment.definition.washout_seconds / 2)
        self._known: dict[str, Followed] = {}
        self._idle: dict[str, None] = {}
        """Named, without a live call; that which was heard of longest ago first."""
        self._calls: dict[str, str] = {}
        for name, live in experiment.live.items():
            followed = self._known[name] = Followed(live.began_at, named=True, unknown=True)
            followed.heard_at = experiment.now
            self._idle[name] = None

    def arrived(self, call: CallState, now: float) -> None:
        """A call was taken in: give its workflow an arm. `now` in the core's seconds, as everywhere here."""
        name, at = name_of(call.arrived), self._clock.at(now)
        self._experiment.assign(name, at)
        live = self._experiment.live.get(name)
        followed = self._known.get(name)
        if live is None:  # it is over: nothing more is counted
            return
        arrived = call.arrived
        if followed is None:
            followed = self._known[name] = Followed(live.began_at, named=bool(arrived.workflow_id))
        followed.unknown = False
        followed.live += 1
        self._idle.pop(name, None)
        self._calls[arrived.call_id] = name
        followed.workflow = None if call.node is None else call.node.workflow
        if call.node is not None:
            followed.workflow_class = call.node.workflow.effective_class
            ends = call.node.workflow.deadline_at
            followed.deadline_at = None if ends is None else self._clock.at(ends)
        elif arrived.deadline_ms is not None and followed.deadline_at is None:
            followed.deadline_at = self._clock.at(now + arrived.deadline_ms / 1000.0)
        if call.node is None and arrived.workflow_class:
            followed.workflow_class = arrived.workflow_class

    def refused(self, arrived: CallArrived, now: float) -> None:
        """A call was refused because the policy holds too many: its workflow has failed."""
        name, at = name_of(arrived), self._clock.at(now)
        if (followed := self._known.get(name)) is not None:
            followed.failed = True
            return
        self._experiment.assign(name, at)
        self._experiment.record(WorkflowOutcome(name, 0.0, at, arrived.workflow_class or "standard", failed=True))

    def over(self, call_id: str, now: float, reason: str, prompt_tokens: int = 0, output_tokens: int = 0) -> None:
        """A call has ended. `reason`: why it has no answer; ANSWERED; `engine_` and the status of an answer that is an
        error."""
        name = self._calls.pop(call_id, None)
        followed = None if name is None else self._known.get(name)
        if name is None or followed is None:
            return
        followed.live -= 1
        followed.heard_at = self._clock.at(now)
        followed.prompt_tokens += prompt_tokens
        followed.output_tokens += output_tokens
        if reason == CLIENT_GONE:
            followed.gone = True
        elif client_at_fault(reason):
            followed.at_fault = True
        elif reason != ANSWERED:
            followed.failed = True
        if followed.live:
            return
        if not followed.named or self._closed(followed):
            self._ended(name, followed)
        else:
            self._idle[name] = None

    def tick(self, now: float) -> None:
        """Find those that are over without a call's saying so."""
        at = self._clock.at(now)
        for name, followed in list(self._quiet(at)):
            self._idle.pop(name, None)
            self._ended(name, followed)
        live = self._experiment.live
        for name in [name for name in self._known if name not in live]:  # the experiment has forgotten it
            self._idle.pop(name, None)
            del self._known[name]

    def _quiet(self, at: float) -> Iterator[tuple[str, Followed]]:
        for name in self._idle:
            followed = self._known[name]
            declared = getattr(followed.workflow, "origin", None) == "declared"
            if self._closed(followed) or (not declared and at - followed.heard_at >= self.quiet_seconds):
                yield name, followed

    @staticmethod
    def _closed(followed: Followed) -> bool:
        return getattr(followed.workflow, "closed_at", None) is not None

    def _ended(self, name: str, followed: Followed) -> None:
        del self._known[name]
        if followed.unknown or followed.gone:
            self._experiment.forget(name)
            return
        ended, due = followed.heard_at, followed.deadline_at
        if followed.at_fault and not followed.failed:
            self._experiment.client_fault(name)
            return
        failed = followed.failed or getattr(followed.workflow, "outcome", None) == "failed"
        self._experiment.record(
            WorkflowOutcome(
                name, ended - followed.began_at, ended, followed.workflow_class, failed,
                None if due is None else ended > due, followed.prompt_tokens, followed.output_tokens,
            )
        )  # fmt: skip

    def validate(self) -> None:
        """Every invariant. AssertionError otherwise."""
        live: dict[str, int] = {}
        for name in self._calls.values():
            live[name] = live.get(name, 0) + 1
        for name, followed in self._known.items():
            assert followed.live == live.get(name, 0), f"{name} counts {followed.live} live calls"
            assert (name in self._idle) == (followed.live == 0), f"{name} is idle and is not"
