"""Bursts: so many calls sent in one instant, to an idle engine or beside sequences that decode. On the twin."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from backends.twin.content import Piece

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backends.twin.steps import StepRun
    from bench.twin.lab import Lab, Sent

WATCHED_EVENTS = 12
"""Of the watched stream, so many more events are kept behind the last first token."""


class Burst(NamedTuple):
    """What is sent."""

    n: int
    prompt_tokens: int
    shared_tokens: int = 0
    """Common to its calls, and new to the engine."""
    cached: bool = False
    """The same prompts were answered before."""
    output_tokens: int = 8
    background: int = 0
    """Sequences that decode meanwhile."""
    background_tokens: int = 512
    """Their prompts."""
    idle_s: float = 1.0
    """How long nothing was sent before."""

    @classmethod
    def of(cls, row: dict[str, Any]) -> Self:
        """The burst that a row was measured with."""
        return cls(**{name: row[name] for name in cls._fields})


def figures(
    burst: Burst, first_s: Sequence[float], end_s: Sequence[float], events_s: Sequence[float]
) -> dict[str, float]:
    """What is compared; all times since the burst. `events_s`: tokens of a sequence that decodes meanwhile."""
    ordered = sorted(first_s)
    found = {"ttft_mean_s": sum(ordered) / len(ordered), "makespan_s": max(end_s)}
    if len(ordered) > 1:
        found |= {"ttft_first_s": ordered[0], "ttft_last_s": ordered[-1]}
    if burst.background:
        gaps = [(after - before, after) for before, after in pairwise(events_s)]
        found["stall_s"] = max((gap for gap, after in gaps if 0 < after <= ordered[-1] + 0.01), default=0.0)
    return found


def play(lab: Lab, row: dict[str, Any], _: list[float]) -> dict[str, Any]:
    """The same on the twin, each call sent when the measured one was."""
    burst = Burst.of(row)
    name = f"burst {lab.now}"
    behind = row.get("background_generated", 0)
    background = [lab.send(burst.background_tokens, 20_000) for _ in range(burst.background)]
    if background:
        last = background[-1]
        while lab.engine.generated(last.request) < max(1, behind):
            lab.run(until=lab.now + 0.002)
    if burst.cached:
        for number in range(burst.n):
            _send(lab, burst, name, number, 1)
        lab.run(until=lab.now + 0.5) if background else lab.run()
    lab.run(until=lab.now + burst.idle_s)
    start, events = lab.now, [0.0]

    def watch(run: StepRun) -> None:
        events.extend(run.at(step) - start for step in range(1, run.steps + 1))

    lab.engine.watch = watch
    sent: list[Sent] = []

    def send(number: int) -> None:
        sent.append(_send(lab, burst, name, number))

    for number, at in enumerate(row["written_s"]):
        lab.time.at(start + at, partial(send, number))
    while len(sent) < burst.n or any(each.finished_at is None for each in sent):
        lab.run(until=lab.now + 0.005)
    lab.engine.watch = None
    for each in background:
        lab.abort(each)
    lab.run()
    firsts = [each.first_token_at - start for each in sent if each.first_token_at is not None]
    ends = [each.finished_at - start for each in sent if each.finished_at is not None]
    return {**figures(burst, firsts, ends, events), "ttft_s": firsts, "end_s": ends, "events_s": events}


def _send(lab: Lab, burst: Burst, name: str, number: int, output_tokens: int | None = None) -> Sent:
    own = burst.prompt_tokens - burst.shared_tokens
    prefix = [Piece((name, "shared"), burst.shared_tokens)] if burst.shared_tokens else []
    prefix.append(Piece((name, number), own))
    return lab.send(burst.prompt_tokens, output_tokens or burst.output_tokens, prefix=prefix)
