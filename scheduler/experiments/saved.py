"""How does an experiment outlive its gateway? Its state as JSON, and back, in the block that is due then."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scheduler.experiments.agreement import Agreement
from scheduler.experiments.definition import ExperimentError, definition_of
from scheduler.experiments.experiment import Experiment, Live
from scheduler.experiments.rows import OpenRow

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scheduler.experiments.definition import Definition

VERSION = 1


def head(definition: Definition, started_at: float, pace: float = 1.0) -> dict[str, Any]:
    """First line of the file of closed blocks; each further line is a row's `as_json`, the last one `end`.
    `pace`: see `following.Clock`; `started_at` is Unix seconds times it."""
    return {"joulegate_experiment_blocks": VERSION, "definition": definition.as_json(), "started_at": started_at,
            "pace": pace}  # fmt: skip


def end(experiment: Experiment) -> dict[str, Any]:
    """Last line of that file."""
    return {"ended_at": experiment.ended_at, "stopped_why": experiment.stopped_why,
            "shadow": experiment.shadow._asdict(), "shadow_dropped": experiment.shadow_dropped,
            "cache_resets": experiment.cache_resets}  # fmt: skip


def saved(experiment: Experiment, now: float) -> dict[str, Any]:
    """All that a restart needs but the closed rows, which are the owner's. To be written once a few seconds and at
    each edge: what happens between the last time and a `kill -9` is in blocks that are marked anyway."""
    return {
        "joulegate_experiment": VERSION,
        "definition": experiment.definition.as_json(),
        "started_at": experiment.schedule.started_at,
        "saved_at": now,
        "ended_at": experiment.ended_at,
        "stopped_why": experiment.stopped_why,
        "opened": experiment.opened,
        "closed_blocks": list(experiment.closed_blocks),
        "marked": dict(experiment.marked),
        "forgotten": experiment.forgotten,
        "late": experiment.late,
        "counts": [list(count) for count in experiment.counts],
        "shadow": experiment.shadow._asdict(),
        "shadow_dropped": experiment.shadow_dropped,
        "cache_resets": list(experiment.cache_resets),
        "live": [
            [workflow_id, live.arm, live.block, live.began_at, live.counted, live.judged]
            for workflow_id, live in experiment.live.items()
        ],
        "rows": [row.state() for row in experiment.rows.values()],
        "guards": [guard.state() for guard in experiment.guards],
    }


def resume(state: Mapping[str, Any], now: float) -> Experiment:
    """Go on at `now`, by the wall clock. Blocks from the last save to now are marked; the block is the one that is due
    now, as if nothing had happened. A wall clock that went back meanwhile goes on from the time of the save. Raises
    ExperimentError for a state that another version wrote or that is damaged."""
    if state.get("joulegate_experiment") != VERSION:
        raise ExperimentError([f"joulegate_experiment: {state.get('joulegate_experiment')!r} is not {VERSION}"])
    try:
        experiment = Experiment(definition_of(state["definition"]), float(state["started_at"]))
        _restore(experiment, state)
        saved_at = float(state["saved_at"])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        if isinstance(error, ExperimentError):
            raise
        raise ExperimentError([f"the saved state is damaged: {error!r}"]) from None
    if experiment.ended_at is None:
        backwards = now < saved_at
        at = max(now, saved_at)
        experiment.skipped_to(at)
        experiment.mark("gateway_restart", saved_at, at)
        if backwards:
            experiment.mark("clock_jump", saved_at, at)
    return experiment


def _restore(experiment: Experiment, state: Mapping[str, Any]) -> None:
    experiment.ended_at = state["ended_at"]
    experiment.stopped_why = state["stopped_why"]
    experiment.opened = int(state["opened"])
    experiment.closed_blocks = list(state["closed_blocks"])
    experiment.marked = dict(state["marked"])
    experiment.forgotten, experiment.late = int(state["forgotten"]), int(state["late"])
    experiment.shadow = Agreement(**state["shadow"])
    experiment.shadow_dropped = state["shadow_dropped"]
    experiment.cache_resets = list(state["cache_resets"])
    if len(state["guards"]) != len(experiment.guards) or len(state["counts"]) != len(experiment.guards):
        raise ValueError("other guardrails than in its definition")
    experiment.counts = [list(count) for count in state["counts"]]
    for guard, kept in zip(experiment.guards, state["guards"], strict=True):
        guard.restore(kept)
    for workflow_id, arm, block, began_at, counted, judged in state["live"]:
        live = experiment.live[workflow_id] = Live(arm, block, began_at, counted)
        live.judged = judged
    for kept in state["rows"]:
        row = OpenRow.restored(experiment.schedule.block(int(kept["number"])), kept)
        experiment.rows[row.block.number, row.arm] = row
