"""What has begun and is behind: which limit does it need?"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from backends.twin import calibration as calibrations
from backends.twin.prior import prior_of
from scheduler.energy.model import EnergyModel
from scheduler.holding.capneed import EARLY_SHARE, LOST_SHARE, SOON_SECONDS, Left, rung_needed
from scheduler.holding.capslack import slower
from scheduler.holding.flow import Flow

PRICES = EnergyModel(prior_of(calibrations.load("h200-llama-3.1-8b"))).prices()
RUNGS = [slower(PRICES, 12.0, 12_000.0, watts) for watts in range(700, 200, -35)]
NOW = 100.0


def begun(decode: float, prefill: float, seconds: float) -> tuple[Flow, Left]:
    """A workflow that takes so long at the lowest limit, and has so many seconds left."""
    flow = Flow(("e", object()), None)
    flow.deadline = NOW + seconds
    return flow, Left(decode, prefill)


SOME = st.builds(begun, st.floats(0.01, 20.0), st.floats(0.0, 5.0), st.floats(0.01, 40.0))


@given(st.lists(SOME, max_size=8))
def test_all_that_can_be_saved_ends_in_time_and_no_more_is_asked_for(lefts: list[tuple[Flow, Left]]) -> None:
    planned = RUNGS[-1]
    need = rung_needed(lefts, NOW, planned, RUNGS)

    def late(rung: int) -> int:
        count = 0
        for flow, left in lefts:
            decode, prefill = left.decode / planned.decode, left.prefill / planned.prefill
            seconds = flow.deadline - NOW
            if left.seconds >= SOON_SECONDS and LOST_SHARE * (decode + prefill) <= seconds:
                takes = decode * RUNGS[rung].decode + prefill * RUNGS[rung].prefill
                count += takes * (1.0 - EARLY_SHARE) > seconds * (1.0 + 1e-9)
        return count

    assert need == 0 or late(need) == 0
    assert need == len(RUNGS) - 1 or late(need + 1) > 0


def test_nobody_behind_needs_nothing() -> None:
    assert rung_needed([], NOW, RUNGS[-1], RUNGS) == len(RUNGS) - 1
    assert rung_needed([begun(5.0, 1.0, 60.0)], NOW, RUNGS[-1], RUNGS) == len(RUNGS) - 1


def test_what_is_lost_and_what_is_over_soon_is_let_be() -> None:
    lost, soon = begun(20.0, 0.0, 1.0), begun(0.4, 0.0, 0.1)
    assert rung_needed([lost, soon], NOW, RUNGS[-1], RUNGS) == len(RUNGS) - 1
