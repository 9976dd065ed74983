"""Which rows does a play come to? Calls, workflows, windows, and the sums of the repeat."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from bench.load.sharing import shareable_tokens

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bench.load.columns import Kind
    from bench.load.load import Load
    from bench.load.playing import Playing
    from workloads.played import Arrival, PlayedCall, PlayedWorkflow

Number = TypeVar("Number", int, float)
TOKENS = ("prompt_tokens", "cached_tokens", "output_tokens")
JOULES = ("gpu_joules", "cpu_joules", "dram_joules")
COUNTED = ("busy_s", "steps", "generated_tokens", "prefilled_tokens")


def rows_of(load: Load, repeat: int, playing: Playing) -> dict[Kind, list[dict[str, Any]]]:
    """Of one repeat."""
    known = {
        arrival.workflow.id: (arrival, alone)
        for arrival, alone in zip(load.arrivals, load.isolated_seconds, strict=True)
    }
    calls: list[dict[str, Any]] = []
    workflows: list[dict[str, Any]] = []
    for played in playing.workflows:
        arrival, alone = known[played.workflow.id]
        of_it = [_call(repeat, played, call) for call in played.calls]
        calls += of_it
        workflows.append(_workflow(repeat, played, arrival, alone, of_it, playing.complete))
    windows = [{"repeat": repeat, **window} for window in playing.windows]
    whole = _repeat(load, repeat, playing, workflows, calls)
    return {"repeat": [whole], "workflow": workflows, "window": windows, "call": calls}


def _call(repeat: int, played: PlayedWorkflow, call: PlayedCall) -> dict[str, Any]:
    shape = next(each for each in played.workflow.calls if each.node == call.node)
    return {
        "repeat": repeat,
        "workflow": played.workflow.id,
        "kind": played.workflow.kind,
        "node": call.node,
        "after": list(shape.after),
        "intended_s": call.intended_at,
        "sent_s": call.sent_at,
        "first_token_s": call.first_token_at,
        "ended_s": call.answered_at,
        "seconds": call.answered_at - call.intended_at,
        "held_s": call.held_seconds,
        "status": call.status,
        "error": call.error,
        "good": call.good,
        "wanted_prompt_tokens": shape.prompt_tokens,
        "wanted_output_tokens": shape.output_tokens,
        "prompt_tokens": call.prompt_tokens,
        "cached_tokens": call.cached_tokens,
        "output_tokens": call.output_tokens,
        "engine": call.engine,
        "energy_source": call.energy_source or "unavailable",
        "gpu_joules": call.energy_joules,
    }


def _workflow(
    repeat: int, played: PlayedWorkflow, arrival: Arrival, alone: float, calls: list[dict[str, Any]], complete: bool
) -> dict[str, Any]:
    good = [call for call in calls if call["good"]]
    over = played.complete or any(not call["good"] for call in calls) or complete
    deadline = arrival.deadline_seconds
    missed: bool | None = None
    if deadline is not None and (over or played.seconds > deadline):  # of one that was broken off it is not known
        missed = not played.complete or played.seconds > deadline
    sources = {call["energy_source"] for call in good}
    joules = sum_or_none(call["gpu_joules"] for call in good)
    return {
        "repeat": repeat,
        "workflow": played.workflow.id,
        "kind": played.workflow.kind,
        "intended_s": played.intended_at,
        "ended_s": played.finished_at,
        "seconds": played.seconds,
        "good": played.complete,
        **{name: sum_or_none(call[name] for call in good) for name in TOKENS},
        "class": arrival.workflow_class,
        "isolated_s": alone,
        "deadline_s": deadline,
        "missed": missed,
        "calls": len(calls),
        "failed_calls": len(calls) - len(good),
        "energy_source": sources.pop() if len(sources) == 1 and joules is not None else "unavailable",
        "gpu_joules": joules,
    }


def _repeat(
    load: Load, repeat: int, playing: Playing, workflows: list[dict[str, Any]], calls: list[dict[str, Any]]
) -> dict[str, Any]:
    good = [call for call in calls if call["good"]]
    windows = playing.windows
    missed = [each["missed"] for each in workflows if each["missed"] is not None]
    return {
        "repeat": repeat,
        "seed": load.seed,
        "started_unix_s": playing.started_unix_seconds,
        "arrival_s": load.arrival_seconds,
        "ended_s": max((each["ended_s"] for each in workflows), default=0.0),
        "generating_s": generating_seconds(good),
        "complete": playing.complete,
        "workflows": len(workflows),
        "good_workflows": sum(each["good"] for each in workflows),
        "missed_workflows": sum(missed) if missed else None,
        "calls": len(calls),
        "failed_calls": len(calls) - len(good),
        **{name: sum_or_none(call[name] for call in good) for name in TOKENS},
        "shareable_tokens": shareable_tokens(call for each in playing.workflows for call in each.workflow.calls),
        "energy_source": playing.energy.gpu,
        **{name: sum_or_none(window.get(name) for window in windows) for name in JOULES},
        "idle_watts": playing.idle_watts,
        **{name: sum_or_none(window.get(name) for window in windows) for name in COUNTED},
    }


def sum_or_none(values: Iterable[Number | None]) -> Number | None:
    """None as soon as one is not known, or there is none."""
    found: Number | None = None
    for value in values:
        if value is None:
            return None
        found = value if found is None else found + value
    return found


def generating_seconds(calls: list[dict[str, Any]]) -> float | None:
    """The union of the stretches from first token to end. None where one has no first token."""
    if not calls or any(call["first_token_s"] is None for call in calls):
        return None
    total = reached = 0.0
    for start, end in sorted((call["first_token_s"], call["ended_s"]) for call in calls):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
