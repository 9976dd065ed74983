"""Users with workflows who send at once or hold calls back by a simple rule: on a real engine and on the twin alike."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from bench.twin.play import calls_per_workflow
from workloads.shapes import stream

if TYPE_CHECKING:
    from collections.abc import Callable

    from backends.twin.calibration import Calibration
    from workloads.shapes import CallShape, Part, WorkflowShape


class Answer(NamedTuple):
    """What a stage knows of an answered call. None: it does not."""

    written_at: float | None = None
    """The request was with the engine."""
    first_token_at: float | None = None
    cached_tokens: int | None = None


class Stage(Protocol):
    """Where it is played: a clock, and an engine to send calls to."""

    @property
    def now(self) -> float:
        """Seconds."""

    def at(self, time: float, action: Callable[[], None]) -> None:
        """Do this then."""

    def send(self, prompt: tuple[Part, ...], output_tokens: int, done: Callable[[Answer], None]) -> None:
        """Send a call now; `done` when its answer is complete."""


class Rule(NamedTuple):
    """How calls are held back. `slack` None: not at all.

    Else a workflow may take `slack` times as long as alone. Ready calls are held until the first of them must start,
    then all go; while some run, a newcomer goes with them if what still runs covers at least `share` of its own time.
    A batch takes longer than a lone call: by `pessimism`, it is assumed.
    """

    slack: float | None = None
    share: float = 0.3
    pessimism: float = 1.4

    @property
    def name(self) -> str:
        """As it stands in a row."""
        return "at once" if self.slack is None else f"hold {self.slack:g}x"


class Run(NamedTuple):
    """What is played: `rate` calls a second of one kind of workflow, arrivals for so many seconds, from a seed."""

    workload: str
    rate: float
    seconds: float
    seed: int
    rule: Rule
    salt: str = ""
    """Runs of equal salts have equal prompts, which an engine that played one has in its cache for the next."""

    @classmethod
    def of(cls, row: dict[str, Any]) -> Run:
        """The run that a row was measured in. KeyError if it does not say."""
        rule = Rule(*row["rule_options"]) if row["rule_options"] else Rule()
        return cls(row["workload"], row["rate"], row["arrival_seconds"], row["seed"], rule, row.get("salt", ""))

    def prompt(self, call: CallShape) -> tuple[Part, ...]:
        """What is sent for a call."""
        if not self.salt:
            return call.prompt
        return tuple(part._replace(text=f"{self.salt} {part.text}") for part in call.prompt)


CALL_COLUMNS = (
    "workflow", "node", "prompt_tokens", "output_tokens", "ready_s", "sent_s", "written_s", "first_token_s", "ended_s",
    "cached_tokens",
)  # fmt: skip
"""Of `Crowd.calls`: seconds since the start of the run."""
CallRow = tuple[int, str, int, int, float, float, float | None, float | None, float, int | None]


class _Live:
    def __init__(self, number: int, workflow: WorkflowShape, arrived_at: float, longest: dict[str, float]) -> None:
        self.number = number
        self.workflow = workflow
        self.arrived_at = arrived_at
        self.finished_at: float | None = None
        self.longest = longest
        """Node → seconds of the longest path from it on, each call alone on the engine."""
        self.isolated_seconds = max(longest.values())
        self.left = len(workflow.calls)
        self.waits = {call.node: len(call.after) for call in workflow.calls}


class Crowd:
    """Plays a run on a stage; `summary` when nothing is left."""

    def __init__(
        self, stage: Stage, run: Run, calibration: Calibration, on_done: Callable[[], None] | None = None
    ) -> None:
        self.stage = stage
        self.run = run
        self.live: list[_Live] = []
        self.calls: list[CallRow] = []
        """Each call that was answered, in that order."""
        self.running: dict[int, float] = {}
        """Calls under way → when they are thought to end."""
        self.arriving = True
        self._calibration = calibration
        self._on_done = on_done
        self._held: list[tuple[_Live, CallShape, float]] = []
        self._release_at = float("inf")
        self._sent = 0
        self.started_at = stage.now
        self._random = random.Random(run.seed + 1)
        self._workflows = stream(run.workload, random.Random(run.seed))
        self._gap = calls_per_workflow(stream(run.workload, random.Random(0))) / run.rate
        self._arrive_later()

    @property
    def done(self) -> bool:
        """All workflows have arrived and ended."""
        return not self.arriving and all(live.finished_at is not None for live in self.live)

    def summary(self, joules: float, until: float) -> dict[str, Any]:
        """The row: energy from the first second of arrivals to the last answer, times of workflows."""
        seconds = [live.finished_at - live.arrived_at for live in self.live if live.finished_at is not None]
        ratios = [took / live.isolated_seconds for took, live in zip(seconds, self.live, strict=True)]
        run, n = self.run, len(self.live)
        slack = run.rule.slack
        return {
            "kind": "workflows",
            "workload": run.workload,
            "rate": run.rate,
            "rule": run.rule.name,
            "rule_options": list(run.rule) if slack is not None else [],
            "arrival_seconds": run.seconds,
            "seed": run.seed,
            **({"salt": run.salt} if run.salt else {}),
            "n": n,
            "calls": self._sent,
            "output_tokens": sum(call.output_tokens for live in self.live for call in live.workflow.calls),
            "duration_s": until - self.started_at,
            "j_per_workflow": joules / n,
            "power_w": joules / (until - self.started_at),
            "p50_s": _quantile(seconds, 0.5),
            "p95_s": _quantile(seconds, 0.95),
            "p95_per_isolated": _quantile(ratios, 0.95),
            "misses": sum(ratio > slack for ratio in ratios) / n if slack is not None else 0.0,
        }

    # --- arrivals ---

    def _arrive_later(self) -> None:
        at = self.stage.now + self._random.expovariate(1 / self._gap)
        if at > self.started_at + self.run.seconds:
            self.arriving = False
        else:
            self.stage.at(at, self._arrive)

    def _arrive(self) -> None:
        workflow = next(self._workflows)
        live = _Live(len(self.live), workflow, self.stage.now, self._longest(workflow))
        self.live.append(live)
        for call in workflow.calls:
            if not call.after:
                self._ready(live, call)
        self._arrive_later()

    # --- holding ---

    def _ready(self, live: _Live, call: CallShape) -> None:
        slack = self.run.rule.slack
        if slack is None or self._covered() >= self.run.rule.share * self._alone(call):
            self._send(live, call, self.stage.now)
            return
        self._held.append((live, call, self.stage.now))
        latest = live.arrived_at + slack * live.isolated_seconds - self.run.rule.pessimism * live.longest[call.node]
        if latest < self._release_at:
            self._release_at = latest
            self.stage.at(max(latest, self.stage.now), lambda: self._release(latest))

    def _covered(self) -> float:
        """For how much longer something is thought to run."""
        return max(self.running.values(), default=0.0) - self.stage.now

    def _release(self, at: float) -> None:
        if at != self._release_at:
            return  # an earlier one has taken its place
        held, self._held = self._held, []
        self._release_at = float("inf")
        for held_call in held:
            self._send(*held_call)

    def _send(self, live: _Live, call: CallShape, ready_at: float) -> None:
        self._sent += 1
        number, sent_at = self._sent, self.stage.now
        self.running[number] = sent_at + self.run.rule.pessimism * self._alone(call)

        def answered(answer: Answer) -> None:
            del self.running[number]
            self._note(live, call, ready_at, sent_at, answer)
            self._answered(live, call)

        self.stage.send(self.run.prompt(call), call.output_tokens, answered)

    def _note(self, live: _Live, call: CallShape, ready_at: float, sent_at: float, answer: Answer) -> None:
        def since(at: float) -> float:
            return round(at - self.started_at, 5)

        written, first = (None if at is None else since(at) for at in answer[:2])
        sizes = live.number, call.node, call.prompt_tokens, call.output_tokens
        ended = since(self.stage.now)
        self.calls.append((*sizes, since(ready_at), since(sent_at), written, first, ended, answer.cached_tokens))

    def _answered(self, live: _Live, call: CallShape) -> None:
        live.left -= 1
        if not live.left:
            live.finished_at = self.stage.now
            if self.done and self._on_done is not None:
                self._on_done()
        for child in live.workflow.calls:
            if call.node in child.after:
                live.waits[child.node] -= 1
                if not live.waits[child.node]:
                    self._ready(live, child)

    # --- how long things take ---

    def _alone(self, call: CallShape) -> float:
        """A call alone on the engine, nothing cached."""
        terms, frontend = self._calibration.time, self._calibration.frontend
        prompt, output = call.prompt_tokens, call.output_tokens
        step = terms.step + terms.decode_token + terms.context_token * (prompt + output / 2)
        prefill = terms.prefill_token * prompt + terms.attention_pair * prompt * prompt / 2
        return frontend.input_seconds + prefill + output * step + frontend.output_seconds

    def _longest(self, workflow: WorkflowShape) -> dict[str, float]:
        longest: dict[str, float] = {}
        for call in reversed(workflow.calls):
            behind = (longest[child.node] for child in workflow.calls if call.node in child.after)
            longest[call.node] = self._alone(call) + max(behind, default=0.0)
        return longest


def _quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]
