"""Windows: whatever happens in whatever order, work is conserved."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.energy.window import Counters, Energy, MeterSample
from scheduler.energy.windows import WindowMaker, WindowRule
from tests.unit.energy_feed import assert_is_the_call, total

CALLS = st.lists(
    st.tuples(
        st.floats(0, 8),  # sent
        st.floats(0.01, 1),  # to the first token
        st.floats(0.01, 6),  # from there to the end
        st.integers(1, 3000),  # estimate
        st.integers(1, 3000),  # prompt
        st.floats(0, 1),  # share of it cached
        st.integers(1, 400),  # output
        st.booleans(),  # streamed
        st.sampled_from([None, "p", "q"]),  # prefix
        st.sampled_from(["finished", "finished", "no usage", "failed"]),
    ),
    max_size=8,
)


CallDrawn = tuple[float, float, float, int, int, float, int, bool, str | None, str]


def happenings(calls: list[CallDrawn], *, counted: bool, sample_seconds: float) -> list[tuple[float, int, str, int]]:
    """(time, order, what, number of the call) of all that happens in 18 seconds."""
    events: list[tuple[float, int, str, int]] = []
    for number, call in enumerate(calls):
        sent, first, rest = call[:3]
        events += [(sent, 0, "sent", number), (sent + first, 1, "first", number)]
        events += [(sent + first + rest * share, 1, "progress", number) for share in (0.3, 0.7)]
        events.append((sent + first + rest, 2, call[9], number))
    events += [(sample_seconds * k, 3, "sample", 0) for k in range(int(18 / sample_seconds))]
    events += [(0.5 * k, 4, "probe", 0) for k in range(36)] if counted else []
    return sorted(events)


def tell(maker: WindowMaker, call: CallDrawn, name: str, what: str, now: float) -> None:
    _, _, _, estimate, prompt, cached, output, streamed, prefix, _ = call
    if what == "sent":
        known = () if prefix is None else ((prefix, 0.5 * estimate),)
        maker.sent(name, estimate, output, now, streamed=streamed, prefixes=known)
    elif what == "first" and streamed:
        maker.first_token(name, now)
    elif what == "progress" and streamed:
        maker.progress(name, max(1, output // 3), now)
    elif what == "finished":
        maker.finished(name, prompt, int(cached * (prompt - 1)), output, now)
    elif what == "no usage":
        maker.finished(name, None, None, None, now)
    elif what == "failed":
        maker.failed(name, now)


@given(CALLS, st.booleans(), st.floats(0.05, 1.2), st.integers(0, 300))
def test_any_history_conserves_the_work(
    calls: list[CallDrawn], counted: bool, sample_seconds: float, steps_per_second: int
) -> None:
    maker = WindowMaker("e", 0.0, WindowRule(1.0))
    windows = []
    for now, _, what, number in happenings(calls, counted=counted, sample_seconds=sample_seconds):
        window = None
        if what == "sample":
            window = maker.sample(MeterSample(now, Energy(100 * now), 100.0, 700.0, False))
        elif what == "probe":
            window = maker.counters(Counters(now, now * steps_per_second, now * 100, now * 10, now * 50, 0.0, 0.0))
        else:
            tell(maker, calls[number], f"c{number}", what, now)
        maker.validate()
        windows += [window] if window is not None else []
    last = maker.close(18.0)
    windows += [last] if last is not None else []
    for window in windows:
        assert (window.work, window.correction) == window.calls.sums()
        assert 0 <= window.busy_seconds <= window.seconds + 1e-9
        assert all(value >= -1e-6 for share in window.calls for value in share.work)
        if window.calls and window.steps_counted:
            assert window.work.steps == pytest.approx(window.seconds * steps_per_second, abs=1e-6)
    assert [window.start for window in windows][1:] == [window.end for window in windows][:-1]
    for number, call in enumerate(calls):
        named = [share for window in windows for share in window.calls if share.call_id == f"c{number}"]
        assert sum(share.ended for share in named) == 1
        if call[9] == "finished":
            prompt = call[4]
            assert_is_the_call(total(windows, f"c{number}"), prompt, int(call[5] * (prompt - 1)), call[6])
