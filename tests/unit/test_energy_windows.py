"""Windows: nothing that a call did is lost or counted twice, and what is not whole says so."""

from __future__ import annotations

import pytest

from scheduler.energy.window import Energy
from scheduler.energy.windows import WindowRule
from scheduler.energy.work import NOTHING, Work, call_work
from tests.unit.energy_feed import Feed, assert_is_the_call, total


def test_the_work_of_a_call_is_a_sum_over_its_steps() -> None:
    prompt, cached, output = 100, 32, 5
    steps = [prompt + k for k in range(1, output)]
    work = call_work(prompt, cached, output)
    assert work.context_tokens == cached + sum(steps)
    assert work.decode_tokens == output - 1
    # In two chunks as in one.
    assert work.attention_pairs == 40 * (32 + 20) + 28 * (72 + 14)
    assert call_work(prompt, cached, 0) == NOTHING
    assert call_work(10, 0, 1).decode_tokens == 0


def test_works_add_and_scale() -> None:
    one, other = Work(1, 2, 3, 4, 5, 6, 7), Work(7, 6, 5, 4, 3, 2, 1)
    assert one + other == Work(8, 8, 8, 8, 8, 8, 8)
    assert one + other - other == one
    assert 2 * one == one * 2 == Work(2, 4, 6, 8, 10, 12, 14)


def test_a_window_ends_at_a_probe_and_has_its_energy_from_edge_to_edge() -> None:
    feed = Feed()
    feed.call("a", 500, 101, 3.0)
    feed.wait(3.0)
    assert [round(window.seconds, 3) for window in feed.windows] == [2.0, 2.0, 2.0]
    for window in feed.windows:
        assert window.whole
        assert window.energy == Energy(pytest.approx(600.0))
        assert window.watts == pytest.approx(300.0)
        assert window.limit_watts == 700.0
        assert not window.throttled
    # The engine's steps are split among calls; nobody had a part in those of the last window.
    assert [window.work.steps for window in feed.windows] == [pytest.approx(200.0), pytest.approx(200.0), 0]
    assert sum(window.busy_seconds for window in feed.windows) == pytest.approx(3.0)
    assert_is_the_call(total(feed.windows, "a"), 500, 0, 101)


def test_steps_are_shared_with_whoever_decodes() -> None:
    feed = Feed()
    feed.maker.sent("long", 10, 1000, feed.now, streamed=True)
    feed.maker.first_token("long", feed.now)
    feed.prompts += 10
    feed.wait(1.0)
    feed.maker.sent("short", 10, 1000, feed.now, streamed=True)
    feed.maker.first_token("short", feed.now)
    feed.wait(1.0)
    shares = {share.call_id: share.work.steps for share in feed.windows[0].calls}
    assert shares["long"] == pytest.approx(150, rel=0.02)
    assert shares["short"] == pytest.approx(50, rel=0.05)
    assert sum(shares.values()) == pytest.approx(200)


def test_a_shared_prefix_is_read_again_by_all_but_one() -> None:
    feed = Feed()
    for name in "abcd":
        feed.maker.sent(name, 1000, None, feed.now, streamed=True, prefixes=(("system", 800.0),))
        feed.maker.first_token(name, feed.now)
        feed.prompts += 1000
    for tick in range(1, 26):
        feed.wait(0.1)
        for name in "abcd":
            feed.maker.progress(name, 1 + 10 * tick, feed.now)
    window = feed.windows[0]
    decoded = window.work.decode_tokens
    assert window.work.repeated_tokens == pytest.approx(decoded / 4 * 3 * 800, rel=0.05)
    assert window.work.context_tokens > 0


def test_each_stretch_of_a_prompt_is_shared_by_those_who_have_it() -> None:
    feed = Feed()
    for name in "abcd":
        further = (("task", 900.0),) if name in "ab" else ()
        feed.maker.sent(name, 1000, None, feed.now, streamed=True, prefixes=(("system", 400.0), *further))
        feed.maker.first_token(name, feed.now)
        feed.prompts += 1000
    for tick in range(1, 26):
        feed.wait(0.1)
        for name in "abcd":
            feed.maker.progress(name, 1 + 10 * tick, feed.now)
    shares = {share.call_id: share.work for share in feed.windows[0].calls}
    decoded = shares["a"].decode_tokens
    assert shares["c"].repeated_tokens == pytest.approx(decoded * 400 * 3 / 4, rel=0.05)
    assert shares["a"].repeated_tokens == pytest.approx(decoded * (400 * 3 / 4 + 500 / 2), rel=0.05)


def test_how_a_prompt_begins_may_be_found_out_until_it_is_prefilled() -> None:
    feed = Feed()
    for name in "ab":
        feed.maker.sent(name, 1000, None, feed.now, streamed=True)
        feed.maker.placed(name, (("system", 800.0),))
        feed.maker.first_token(name, feed.now)
        feed.maker.placed(name, (("other", 800.0),))  # too late: of no effect
    for tick in range(1, 26):
        feed.wait(0.1)
        for name in "ab":
            feed.maker.progress(name, 1 + 10 * tick, feed.now)
    work = feed.windows[0].work
    assert work.repeated_tokens == pytest.approx(work.decode_tokens * 800 / 2, rel=0.05)


def test_what_was_guessed_of_a_call_that_is_no_stream_is_put_right_at_its_end() -> None:
    feed = Feed()
    feed.maker.sent("a", 800, 4000, feed.now, streamed=False)  # in truth 1,000 of them, 200 cached, 150 out
    feed.prompts += 1000
    feed.wait(2.5)
    assert feed.windows[0].work.decode_tokens > 0
    closed = feed.windows[0]
    feed.maker.finished("a", 1000, 200, 150, feed.now)
    feed.wait(2.0)
    assert feed.windows[0] is closed
    last = feed.windows[1]
    assert last.correction != NOTHING
    assert_is_the_call(total(feed.windows, "a"), 1000, 200, 150)


def test_an_embedding_has_a_prompt_and_no_output() -> None:
    feed = Feed()
    feed.maker.sent("a", 300, 0, feed.now, streamed=False)
    feed.wait(0.1)
    feed.maker.finished("a", 320, 0, 0, feed.now)
    feed.wait(3.0)
    assert total(feed.windows, "a").prefill_tokens == 320


def test_estimates_of_prompts_are_corrected_by_what_earlier_ones_turned_out_to_be() -> None:
    feed = Feed()
    for number in range(20):
        feed.maker.sent(f"a{number}", 100, 10, feed.now, streamed=True)
        feed.maker.finished(f"a{number}", 150, 0, 5, feed.now)
    feed.probe()
    assert feed.maker.prompt_ratio == pytest.approx(1.5)


def test_who_fails_keeps_what_was_done_and_may_be_sent_again() -> None:
    feed = Feed()
    feed.maker.sent("a", 100, 50, feed.now, streamed=True)
    feed.maker.failed("a", feed.now)
    feed.maker.sent("a", 100, 50, feed.now, streamed=True)
    with pytest.raises(ValueError, match="already"):
        feed.maker.sent("a", 100, 50, feed.now, streamed=True)
    feed.wait(0.2)
    feed.maker.first_token("a", feed.now)
    feed.maker.progress("a", 21, feed.now)
    feed.maker.failed("a", feed.now)
    feed.wait(3.0)
    assert [share.ended for share in feed.windows[0].calls] == [True, True]
    assert_is_the_call(total(feed.windows, "a"), 100, 0, 21)


def test_calls_that_are_not_there_change_nothing() -> None:
    feed = Feed()
    maker = feed.maker
    maker.first_token("x", 0.1)
    maker.progress("x", 5, 0.2)
    maker.finished("x", 1, 1, 1, 0.3)
    maker.failed("x", 0.4)
    feed.wait(2.5)
    assert feed.windows[0].calls.ids == []
    assert feed.windows[0].busy_seconds == 0


# --- what makes a window not whole ---


def test_a_gap_between_samples_marks_the_window() -> None:
    feed = Feed()
    feed.wait(2.0, samples=False)
    feed.wait(3.0)
    assert "samples_missing" in feed.windows[0].why
    assert feed.windows[-1].whole


def test_no_sample_at_all_still_gives_windows_without_energy() -> None:
    feed = Feed()
    feed.wait(10.0, samples=False)
    assert len(feed.windows) >= 3
    assert all(window.energy == Energy() and "samples_missing" in window.why for window in feed.windows)


def test_a_meter_that_goes_back_or_away_is_no_zero() -> None:
    feed = Feed()
    feed.wait(1.0)
    feed.joules = 0.0
    feed.wait(1.5)
    assert "meter_reset" in feed.windows[0].why
    assert feed.windows[0].energy.gpu is None
    feed.now += 0.1
    feed.sample(joules=Energy(None), state="lost")
    feed.wait(2.0)
    assert "meter_unavailable" in feed.windows[1].why
    feed.wait(4.0)
    assert feed.windows[-1].whole


def test_cpu_and_dram_come_apart() -> None:
    feed = Feed()
    while len(feed.windows) < 2:
        feed.wait(0.1, samples=False)
        feed.sample(joules=Energy(feed.joules, 50 * feed.now, None))
    assert feed.windows[1].energy.cpu == pytest.approx(50 * feed.windows[1].seconds)
    assert feed.windows[1].energy.dram is None
    assert feed.windows[1].whole


def test_an_engine_whose_counters_go_back_was_started_anew() -> None:
    feed = Feed()
    feed.wait(3.0)
    feed.steps = feed.prompts = feed.generated = 0.0
    feed.wait(4.0)
    assert [window.why for window in feed.windows] == [(), ("engine_reset",), ()]
    feed.maker.restarted(feed.now)
    feed.wait(3.0)
    assert "engine_restarted" in feed.windows[3].why


def test_counters_that_do_not_come_any_more_do_not_stop_the_windows() -> None:
    feed = Feed()
    feed.wait(2.5)
    feed.with_counters = False
    feed.wait(6.0)
    assert len(feed.windows) >= 2
    assert "counters_missing" in feed.windows[1].why
    assert not feed.windows[1].steps_counted


def test_without_counters_windows_end_at_samples_and_steps_come_from_streams() -> None:
    feed = Feed(counters=False)
    feed.call("a", 500, 301, 3.0)
    feed.wait(3.0)
    assert all(window.whole and not window.steps_counted for window in feed.windows)
    assert sum(window.work.steps for window in feed.windows) == pytest.approx(301, rel=0.1)
    assert_is_the_call(total(feed.windows, "a"), 500, 0, 301)


def test_more_running_than_sent_is_a_bypass() -> None:
    feed = Feed()
    feed.maker.sent("a", 100, 50, feed.now, streamed=True)
    feed.probe(running=1)
    feed.wait(2.5)
    assert feed.windows[0].whole
    feed.probe(running=2)
    feed.wait(2.0)
    assert feed.windows[1].why == ("bypass",)
    feed.wait(2.0)
    assert feed.windows[2].whole


def test_more_tokens_than_calls_made_are_a_bypass() -> None:
    feed = Feed()
    feed.wait(1.0)
    feed.generated += 200
    feed.wait(4.0)
    assert [window.why for window in feed.windows] == [("bypass",), ()]


def test_what_does_not_fit_into_the_table_marks_the_window() -> None:
    feed = Feed(WindowRule(2.0, 0.0, 2))
    for name in "abc":
        feed.maker.sent(name, 10, 10, feed.now, streamed=True)
        feed.maker.failed(name, feed.now)
    feed.maker.validate()
    feed.wait(2.5)
    assert "calls_left_out" in feed.windows[0].why
    assert len(feed.windows[0].calls) == 2
    feed.wait(2.0)
    assert feed.windows[1].whole


def test_at_shutdown_what_is_open_is_given_out() -> None:
    feed = Feed()
    feed.call("a", 100, 11, 1.0)
    window = feed.maker.close(feed.now)
    assert window is not None
    assert_is_the_call(total([window], "a"), 100, 0, 11)
    assert feed.maker.close(feed.now) is None


def test_a_limit_that_moves_is_said() -> None:
    feed = Feed()
    feed.wait(1.0)
    feed.now += 0.1
    feed.sample(limit_watts=500.0, throttled=True)
    feed.wait(1.5)
    assert feed.windows[0].limit_moved
    assert feed.windows[0].throttled
    feed.wait(2.0)
    assert not feed.windows[1].limit_moved


def test_the_models_work_has_the_prompt_tokens_that_the_engine_counts() -> None:
    feed = Feed()
    feed.maker.sent("a", 800, 4000, feed.now, streamed=True)  # in truth 1,000 of them
    feed.maker.first_token("a", feed.now)
    feed.prompts += 1000
    feed.wait(2.5)
    window = feed.windows[0]
    assert window.work.prefill_tokens == pytest.approx(800)
    assert window.seen.prefill_tokens == pytest.approx(1000)
    assert window.seen.attention_pairs == pytest.approx(window.work.attention_pairs * 1000 / 800)
    assert window.seen._replace(prefill_tokens=0, attention_pairs=0, context_tokens=0) == window.work._replace(
        prefill_tokens=0, attention_pairs=0, context_tokens=0
    )


def test_an_engine_that_counts_no_prompt_tokens_leaves_the_work_as_it_is_told() -> None:
    feed = Feed(counters=False)
    feed.call("a", 500, 101, 3.0)
    assert all(window.counted is None and window.seen == window.work for window in feed.windows)
