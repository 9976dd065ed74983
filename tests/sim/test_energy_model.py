"""Windows and the live model on the twin, in virtual time: what the gateway tells itself against what happened."""

from __future__ import annotations

import pytest

from backends.twin.request import Request
from bench.energy.model import figures
from bench.energy.play import Play, Scene
from bench.energy.watch import Sight
from scheduler.energy.window import Window
from scheduler.energy.work import NOTHING, Work

ALL_SEEN = Sight(streamed_share=1.0, estimate_bias=1.0, estimate_spread=0.0, cached_reported=True)


def told(windows: list[Window]) -> Work:
    work = NOTHING
    for window in windows:
        work += window.work + window.correction
    return work


@pytest.mark.parametrize("seed", [11, 12])
@pytest.mark.parametrize(
    "sight", [Sight(cached_reported=True), ALL_SEEN, Sight(streamed_share=0.0, cached_reported=True)]
)
def test_what_windows_tell_is_what_the_engine_did(seed: int, sight: Sight) -> None:
    print("seed", seed)
    # For the last minutes nobody comes any more, so that all calls end.
    play = Play(Scene(traffic_seconds=90.0, seconds=400.0, seed=seed, sight=sight, rates=(6.0, 12.0))).run()
    totals, work = play.engine.totals, told(play.windows)
    assert not play.engine.requests
    assert play.player.calls > 20
    assert work.steps == pytest.approx(totals.steps, rel=0.01)
    assert work.decode_tokens == pytest.approx(totals.decode_tokens)
    assert work.prefill_tokens == pytest.approx(totals.prefill_tokens)
    assert work.prompts == play.player.calls
    # A prompt that is cut into chunks reads what it has again: the closed form leaves that out.
    assert work.context_tokens + work.repeated_tokens == pytest.approx(totals.context_tokens, rel=0.01)
    assert work.attention_pairs == pytest.approx(totals.attention_pairs, rel=0.01)
    joules = sum(window.energy.gpu or 0.0 for window in play.windows)
    assert joules == pytest.approx(play.engine.meter.joules, rel=0.02)
    busy = sum(window.busy_seconds for window in play.windows)
    assert busy == pytest.approx(totals.busy_seconds, rel=0.02)


def test_the_cached_part_is_found_by_the_engines_counters_alone() -> None:
    play = Play(Scene(traffic_seconds=60.0, seconds=240.0, seed=3, workload="copilot", rates=(2.0, 4.0))).run()
    totals, work = play.engine.totals, told(play.windows)
    assert totals.prefix_hits > 3 * totals.prefill_tokens
    assert work.prefill_tokens == pytest.approx(totals.prefill_tokens, rel=0.1)


@pytest.mark.parametrize(("calibration", "seed"), [("h200-llama-3.1-8b", 21), ("h100-qwen3-14b", 22)])
def test_energy_is_known_before_it_is_seen_and_again_after_a_swap(calibration: str, seed: int) -> None:
    print("seed", seed)
    swap_to = "h100-qwen3-14b" if calibration.startswith("h200") else "h200-llama-3.1-8b"
    play = Play(Scene(calibration, swap_to, seconds=600.0, swap_seconds=360.0, seed=seed, rates=(1.0, 4.0, 8.0))).run()
    early, late = figures(play.rows, 60.0, 180.0), figures(play.rows, 300.0, 600.0)
    swapped, whole = figures(play.rows, 720.0), figures(play.rows, 60.0)
    assert early is not None
    assert late is not None
    assert swapped is not None
    assert whole is not None
    assert early.error < 0.03
    assert late.error < 0.02
    assert swapped.error < 0.02
    assert whole.covered > 0.87
    assert play.model.describe()["drift"]["alarms"] >= 1
    play.model.validate()
    play.maker.validate()


def test_caps_that_move_are_followed() -> None:
    play = Play(Scene(cap_watts=(250.0, 350.0, 500.0, 700.0), seconds=600.0, seed=31)).run()
    late = figures(play.rows, 200.0)
    assert late is not None
    assert late.error < 0.02
    assert play.model.describe()["windows"]["cap_binding"] > 50


def test_traffic_that_bypasses_the_gateway_is_marked_and_not_learned_from() -> None:
    play = Play(Scene(seconds=300.0, seed=41, rates=(1.0, 2.0), prior_off=0.0))
    time, engine = play.world.time, play.engine

    def foreign(number: int = 0) -> None:
        engine.submit(Request(f"foreign-{number}", 500, 400), time.now)
        if time.now < 250:
            time.at(time.now + 1.0, lambda: foreign(number + 1))

    time.at(150.0, foreign)
    play.run()
    before = [window for window in play.windows if 10 < window.end < 150]
    during = [window for window in play.windows if window.start > 155 and window.end < 245]
    after = [window for window in play.windows if window.start > 270]
    assert not any("bypass" in window.why for window in before)
    assert sum("bypass" in window.why for window in during) >= 0.9 * len(during)
    assert not any("bypass" in window.why for window in after)
    # Twice the energy for the work that it knows of, and yet no alarm: nothing was learned of it.
    assert play.model.describe()["drift"]["alarms"] == 0


def test_a_meter_that_is_lost_for_a_while_and_an_engine_that_is_started_anew() -> None:
    play = Play(Scene(seconds=200.0, seed=51))
    time, maker = play.world.time, play.maker
    take = maker.sample
    gone = (60.0, 90.0)
    maker.sample = lambda sample: None if gone[0] < sample.at < gone[1] else take(sample)  # type: ignore[method-assign]
    time.at(120.0, lambda: maker.restarted(time.now))
    play.run()
    for window in play.windows:
        # An edge needs a sample behind it: a window that ends just before the gap has none either.
        missing = window.start < gone[1] and window.end > gone[0] - 0.2
        inside = window.start > gone[0] and window.end < gone[1]
        assert ("samples_missing" in window.why) <= missing, window
        assert not inside or window.why == ("samples_missing",)
        assert window.energy.gpu is None or not inside
        assert ("engine_restarted" in window.why) == (window.start <= 120.0 < window.end)
