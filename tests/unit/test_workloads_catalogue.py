"""Workloads by name, preset, scale and parameter; when they begin; what their users are promised."""

from __future__ import annotations

import random
import statistics
from itertools import islice, pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workloads.arrivals import Arrivals
from workloads.catalogue import INPUTS, NAMES, OUTPUTS, Workload, WorkloadFault, parameters
from workloads.presets import PRESETS
from workloads.promises import Promise
from workloads.shapes import KINDS, stream


def first(workload: Workload, count: int = 20, seed: int = 1) -> list[Any]:
    return list(islice(workload.stream(random.Random(seed)), count))


@pytest.mark.parametrize("name", NAMES)
def test_the_published_workload_is_the_plain_one(name: str) -> None:
    assert first(Workload(name)) == list(islice(stream(name, random.Random(1)), 20))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", NAMES)
def test_a_preset_is_never_larger_than_what_was_published(name: str, preset: str) -> None:
    small = sum(call.prompt_tokens for workflow in first(Workload(name, preset), 60) for call in workflow.calls)
    published = sum(call.prompt_tokens for workflow in first(Workload(name), 60) for call in workflow.calls)
    assert small <= published


def test_every_length_is_scaled_as_what_it_is() -> None:
    lengths = {name for kind in KINDS for name in parameters(kind) if name.endswith("tokens")}
    assert lengths == INPUTS | OUTPUTS and not INPUTS & OUTPUTS
    plain, longer = (
        Workload("copilot").of("copilot"),
        Workload("copilot", input_scale=2, output_scale=0.5).of("copilot"),
    )
    assert longer["system_tokens"] == 2 * plain["system_tokens"]
    assert longer["output_tokens"] == (round(183 / 2), 230)
    assert Workload("chain", input_scale=2).of("chain")["chunks"] == parameters("chain")["chunks"]


def test_single_parameters_win_over_preset_and_scale() -> None:
    chain = Workload("chain", "cpu", input_scale=3, parameters={"chunk_tokens": [5, 7], "chain.chunks": 2})
    for workflow in first(chain):
        assert len(workflow.calls) == 2
        assert 5 <= workflow.calls[0].prompt[-1].tokens <= 7
    mixed = first(Workload("composite", parameters={"coding.rounds": 1}, mix={"coding": 1, "chat": 0}))
    assert {workflow.kind for workflow in mixed} == {"coding"}
    assert not any(call.node.startswith("review-1") for workflow in mixed for call in workflow.calls)


@pytest.mark.parametrize(
    ("workload", "place", "words"),
    [
        (Workload("codng"), ("name",), "did you mean 'coding'"),
        (Workload("chain", "tiny"), ("preset",), "there are published, small, cpu"),
        (Workload("chain", input_scale=0.0), ("input_scale",), "must be from"),
        (Workload("chain", parameters={"chunk_tokns": 3}), ("parameters", "chunk_tokns"), "did you mean"),
        (Workload("chain", parameters={"chunk_tokens": 0}), ("parameters", "chunk_tokens"), "from 1 to"),
        (Workload("chain", parameters={"chunk_tokens": [9, 3]}), ("parameters", "chunk_tokens"), "[least, most]"),
        (Workload("chain", parameters={"coding.rounds": 3}), ("parameters", "coding.rounds"), "is of coding"),
        (Workload("copilot", parameters={"system_tokens": [1, 2]}), ("parameters", "system_tokens"), "not a range"),
        (Workload("composite", parameters={"rounds": 3}), ("parameters", "rounds"), "chain.rounds"),
        (Workload("chain", mix={"chain": 1}), ("mix",), "composite alone"),
        (Workload("composite", mix={"chat": 0}), ("mix",), "no share above 0"),
        (Workload("composite", mix={"chat": -1}), ("mix", "chat"), "from 0 on"),
    ],
)
def test_what_is_wrong_is_named(workload: Workload, place: tuple[str, ...], words: str) -> None:
    with pytest.raises(WorkloadFault) as caught:
        workload.makers()
    assert caught.value.place == place and words in str(caught.value)


# --- arrivals ---


@pytest.mark.parametrize("kind", ["poisson", "bursty", "steady", "diurnal"])
def test_arrivals_have_the_rate_that_was_asked_for(kind: str) -> None:
    times = list(Arrivals(kind, cv=2.0, swing=4.0, period_seconds=500.0).times(random.Random(3), 20_000.0, 2.0))
    assert times == sorted(times) and times[0] >= 0 and times[-1] < 20_000.0
    mean_share = (1 + 1 / 4) / 2 if kind == "diurnal" else 1.0
    assert len(times) / 20_000.0 == pytest.approx(2.0 * mean_share, rel=0.06)


def test_bursts_have_the_spread_that_was_asked_for() -> None:
    for cv in (1.0, 3.0):
        times = list(Arrivals("bursty", cv=cv).times(random.Random(1), 60_000.0, 1.0))
        gaps = [after - before for before, after in pairwise(times)]
        assert statistics.stdev(gaps) / statistics.mean(gaps) == pytest.approx(cv, rel=0.1)


def test_a_day_has_its_peak_at_its_ends() -> None:
    times = list(Arrivals("diurnal", swing=10.0, period_seconds=100.0).times(random.Random(1), 100_000.0, 1.0))
    at_peak = sum(at % 100 < 10 or at % 100 > 90 for at in times)
    in_trough = sum(40 < at % 100 < 60 for at in times)
    assert at_peak > 5 * in_trough


@given(st.sampled_from(["poisson", "bursty", "steady", "diurnal"]), st.integers(0, 1000))
def test_the_same_seed_is_the_same_day(kind: str, seed: int) -> None:
    one, two = (list(Arrivals(kind).times(random.Random(seed), 50.0, 1.0)) for _ in range(2))
    assert one == two


@pytest.mark.parametrize(
    ("arrivals", "place"),
    [
        (Arrivals("now"), "kind"),
        (Arrivals(rate=0.0), "rate"),
        (Arrivals(rate=float("nan")), "rate"),
        (Arrivals(swing=0.5), "swing"),
        (Arrivals(users=0), "users"),
        (Arrivals(think_seconds=-1.0), "think_seconds"),
    ],
)
def test_impossible_arrivals_are_named(arrivals: Arrivals, place: str) -> None:
    with pytest.raises(WorkloadFault) as caught:
        arrivals.check()
    assert caught.value.place == (place,)


# --- promises ---


def test_a_deadline_is_a_time_or_a_multiple_or_none() -> None:
    assert Promise().deadline_seconds(3.0) is None
    assert Promise(deadline_ms=1500.0).deadline_seconds(None) == 1.5
    assert Promise(stretch=3.0).deadline_seconds(2.0) == 6.0
    with pytest.raises(ValueError, match="isolated"):
        Promise(stretch=3.0).deadline_seconds(None)
    for promise, place in (
        (Promise(1.0, 2.0), "stretch"),
        (Promise(-1.0), "deadline_ms"),
        (Promise(workflow_class="x"), "class"),
    ):
        with pytest.raises(WorkloadFault) as caught:
            promise.check()
        assert caught.value.place == (place,)
