"""How much of the room could a policy use that knows all deadlines, with calls that pause at any step and no slowdown?

Then the fewest steps that meet all deadlines are made by the lazy rule: steps run only while some workflow can wait no
longer, and all that are there go along. What is later can be used by whoever comes later, and who came before is there
already. Real calls cannot pause, company lengthens steps, and who comes is not known: no policy gets there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from backends.twin import calibration as calibrations
from bench.policies.cells import traffic

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.policies.lab import Outcome

Job = tuple[float, float, float]
"""Arrival, deadline, and seconds of steps that it needs."""


def at_once_seconds(jobs: Sequence[Job]) -> float:
    """Seconds in which steps run if each job begins when it comes."""
    total, until = 0.0, 0.0
    for arrival, _, needs in sorted(jobs):
        total += max(0.0, arrival + needs - max(until, arrival))
        until = max(until, arrival + needs)
    return total


def lazy_seconds(jobs: Sequence[Job]) -> float:
    """Seconds in which steps run by the lazy rule. Each job can be done by its deadline alone."""
    coming = sorted(jobs)
    now = total = 0.0
    live: list[list[float]] = []  # deadline, what is left
    next_one = 0
    while next_one < len(coming) or live:
        if not live:
            now = max(now, coming[next_one][0])
        while next_one < len(coming) and coming[next_one][0] <= now + 1e-9:
            _, deadline, needs = coming[next_one]
            live.append([deadline, needs])
            next_one += 1
        arrives = coming[next_one][0] if next_one < len(coming) else float("inf")
        latest = min(deadline - left for deadline, left in live)
        if latest > now + 1e-9:
            now = min(latest, arrives)
            continue
        must = [left for deadline, left in live if deadline - left <= now + 1e-9]
        passed = min(*must, arrives - now)
        now, total = now + passed, total + passed
        for job in live:
            job[1] -= passed
        live = [job for job in live if job[1] > 1e-9]
    return total


def share(baseline: Outcome) -> float | None:
    """Of the room under this baseline; None without a deadline that is a multiple of the time alone."""
    run = baseline.run
    stretch = run.promise.stretch
    if stretch is None:
        return None
    arrivals = traffic(run.cell, run.seconds, run.seed, run.calibration)
    jobs = [(each.at, each.at + stretch * each.isolated_seconds, each.isolated_seconds) for each in arrivals]
    saved = 1 - lazy_seconds(jobs) / at_once_seconds(jobs)
    step_joules = calibrations.load(run.calibration).energy.step * baseline.steps
    return saved * step_joules / (baseline.joules - baseline.bound_joules - baseline.idle_watts * baseline.ended_at)
