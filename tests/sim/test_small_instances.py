"""`joule` on small random instances against the optimum that a search finds, and the search against all there is."""

from __future__ import annotations

from itertools import product

import pytest

from backends.twin import calibration as calibrations
from bench.policies.optimum import Job, Search
from bench.policies.small import CALIBRATION, RATIO_MOST, instance, jobs_of, mean, solve

SEEDS = (1, 2, 4, 6, 7, 9, 11, 12)


def test_joule_is_near_the_optimum_on_average() -> None:
    results = [solve(seed) for seed in SEEDS]
    print("seeds", SEEDS, [round(result.ratio, 3) for result in results])
    assert all(result.proven for result in results)
    assert all(result.ratio >= 1.0 - 1e-9 for result in results if not result.missed)
    assert mean([result.ratio for result in results]) <= RATIO_MOST
    assert mean([result.ratio for result in results]) < mean(
        [result.passthrough_joules / result.optimum_joules for result in results]
    )
    assert sum(result.missed for result in results) == 0


@pytest.mark.parametrize("seed", [6, 7, 12])
def test_the_search_finds_what_trying_all_finds(seed: int) -> None:
    jobs = jobs_of(instance(seed), 0.0)
    search = Search(jobs, calibrations.load(CALIBRATION))
    found = search.best()
    tried = []
    for releases in product(*(search.candidates(index) for index in range(len(jobs)))):
        played = search.play(dict(enumerate(releases)))
        if search.in_time(played):
            tried.append(played.joules)
    assert len(tried) > 10 and found.proven
    assert found.joules == pytest.approx(min(tried))


def test_the_affine_steps_are_the_twins_but_for_parts_of_steps() -> None:
    calibration = calibrations.load(CALIBRATION)
    search = Search([Job(0.0, 60.0, (), 400, 100), Job(1.0, 60.0, (), 400, 100)], calibration)
    apart, together = search.play({0: 0.0, 1: 20.0}), search.play({0: 20.0, 1: 20.0})
    step = calibration.energy.step
    assert apart.joules - together.joules == pytest.approx(100 * step, rel=0.02), "a hundred steps less"
    assert together.ends[0] == pytest.approx(apart.ends[1], rel=0.05)
