"""Whose turn is it: keys by their weights, within them by slack."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from scheduler.events import CallArrived
from scheduler.holding.turns import Sent, Turns
from scheduler.state import CallState


class TestTurns:
    @given(
        st.lists(st.floats(0.1, 10.0), min_size=2, max_size=5),
        st.lists(st.tuples(st.floats(0.0, 100.0), st.floats(0.001, 1.0)), min_size=40, max_size=120),
    )
    def test_keys_that_wait_get_work_by_their_weights_whatever_deadlines_they_claim(
        self, weights: list[float], calls: list[tuple[float, float]]
    ) -> None:
        turns = Turns(lambda key: weights[int(key)], apart_seconds=2.0)
        queued: dict[CallState, float] = {}
        for number, (order, work) in enumerate(calls):
            for key in range(len(weights)):
                call = CallState(CallArrived(f"{key}/{number}", str(key), None, "", 1), 0.0, number * 9 + key)
                queued[call] = work
                turns.push(Sent(order * (1 + 50 * (key == 0)), call.sequence, call, "urgent"))
        served = [0.0] * len(weights)
        while queued:
            first = turns.first(queued)
            assert first is not None
            key = int(first.call.arrived.key)
            turns.serve(first.call, work := queued.pop(first.call))
            turns.validate(queued)
            served[key] += work / weights[key]
            waiting = {int(call.arrived.key) for call in queued}
            if len(waiting) == len(weights):
                assert max(served) - min(served) <= 2.0 + 1.0 / min(weights) + 1e-6
        assert turns.first(queued) is None and turns.entries == 0

    def test_within_its_share_a_key_is_served_by_slack(self) -> None:
        turns = Turns()
        calls = [CallState(CallArrived(f"c{i}", "ab"[i % 2], None, "", 1), 0.0, i) for i in range(6)]
        for call, order in zip(calls, (5.0, 1.0, 4.0, 2.0, 9.0, 3.0), strict=True):
            turns.push(Sent(order, call.sequence, call, "urgent"))
        queued, went = set(calls), []
        while (first := turns.first(queued)) is not None:
            queued.remove(first.call)
            turns.serve(first.call, 0.1)
            went.append(first.order)
        assert went == sorted(went)

    def test_a_key_that_comes_back_is_not_paid_for_its_absence(self) -> None:
        turns = Turns(apart_seconds=0.5)
        calls = [CallState(CallArrived(f"c{i}", "a", None, "", 1), 0.0, i) for i in range(10)]
        late = [CallState(CallArrived(f"d{i}", "b", None, "", 1), 0.0, 100 + i) for i in range(10)]
        queued = set(calls)
        for call in calls:
            turns.push(Sent(1.0, call.sequence, call, "urgent"))
        for _ in range(5):
            first = turns.first(queued)
            assert first is not None
            queued.remove(first.call)
            turns.serve(first.call, 1.0)
        for call in late:
            turns.push(Sent(2.0, call.sequence, call, "urgent"))
        queued.update(late)
        went = []
        for _ in range(6):
            first = turns.first(queued)
            assert first is not None
            queued.remove(first.call)
            turns.serve(first.call, 1.0)
            went.append(first.call.arrived.key)
        assert sorted(went) == ["a"] * 3 + ["b"] * 3
