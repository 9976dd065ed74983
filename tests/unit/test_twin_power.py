"""The simulated cards' power: the counter's ticks, means, limits that settle, and the interface of a real card."""

from __future__ import annotations

import pytest

from backends.power.device import Unavailable
from backends.twin.calibration import load
from backends.twin.content import Piece, runs_of_pieces, runs_of_tokens
from backends.twin.device import TwinDevice
from backends.twin.engine import TwinEngine
from backends.twin.limits import PowerLimit
from backends.twin.meter import Meter
from backends.twin.request import Request

H200 = load("h200-llama-3.1-8b")
TP2 = load("h100-qwen3-32b-tp2")


def test_the_counter_moves_every_100_ms() -> None:
    meter = Meter(0.0)
    meter.add(1.05, 105.0)
    assert meter.counter_joules() == pytest.approx(100.0)
    meter.add(1.09, 4.0)
    assert meter.counter_joules() == pytest.approx(100.0)
    meter.add(1.10, 1.0)
    assert meter.counter_joules() == pytest.approx(110.0)


def test_power_is_the_mean_of_the_last_second() -> None:
    meter = Meter(0.0)
    assert meter.average_watts() is None
    meter.add(10.0, 1000.0)
    meter.add(10.5, 250.0)
    assert meter.average_watts() == pytest.approx(300.0)
    assert meter.instant_watts() == pytest.approx(500.0)


def test_old_points_are_forgotten() -> None:
    meter = Meter(0.0)
    for step in range(10_000):
        meter.add((step + 1) / 100, 1.0)
    assert len(meter._points) < 250
    assert meter.joules == 10_000


def test_a_limit_settles_towards_what_was_asked() -> None:
    limit = PowerLimit(H200.card)
    limit.set(300.0, 10.0)
    assert limit.requested_watts == 300.0
    values = [limit.in_force_watts(10.0 + step / 10) for step in range(30)]
    assert values[0] == pytest.approx(700.0)
    assert values == sorted(values, reverse=True)
    assert values[-1] == 300.0
    assert limit.settling(10.0)
    assert not limit.settling(13.0)


def test_a_limit_changed_on_its_way_goes_on_from_there() -> None:
    limit = PowerLimit(H200.card)
    limit.set(300.0, 0.0)
    between = limit.in_force_watts(0.2)
    limit.set(600.0, 0.2)
    assert limit.in_force_watts(0.2) == pytest.approx(between)


@pytest.mark.parametrize("watts", [199.0, 701.0, -1.0])
def test_a_limit_out_of_range_is_refused_in_watts_of_a_card(watts: float) -> None:
    with pytest.raises(ValueError, match="from 200 to 700 W"):
        PowerLimit(TP2.card).set(watts * 2, 0.0)


def busy(seconds: float = 10.0) -> TwinEngine:
    engine = TwinEngine(H200)
    for number in range(64):
        engine.submit(Request(f"r{number}", 256, 4000), 0.0)
    engine.advance(seconds)
    return engine


def test_a_device_reads_as_a_card_does() -> None:
    engine = busy()
    device = TwinDevice(engine, lambda: engine.now)
    assert device.source == "simulated"
    assert 600 < device.power_watts() <= 700
    assert device.energy_joules() == pytest.approx(engine.meter.joules, rel=0.02)
    assert device.limits() == (700, 700, 700, 200, 700)
    with pytest.raises(Unavailable, match="temperature_celsius: not_supported"):
        device.temperature_celsius()
    assert "temperature_celsius" not in device.capabilities


def test_a_new_device_has_no_mean_yet() -> None:
    engine = TwinEngine(H200)
    with pytest.raises(Unavailable):
        TwinDevice(engine, lambda: 0.0).power_watts()


def test_a_cap_set_on_the_device_binds_and_slows() -> None:
    engine = busy()
    device = TwinDevice(engine, lambda: engine.now)
    device.set_limit_watts(350.0)
    engine.advance(12.0)
    assert device.limits().enforced_watts == 350.0
    settled = engine.totals.generation_tokens
    engine.advance(17.0)
    capped = engine.totals.generation_tokens - settled
    free = busy(17.0).totals.generation_tokens - busy(12.0).totals.generation_tokens
    assert 0.4 * free < capped < 0.8 * free
    assert device.power_watts() == pytest.approx(350 * H200.cap.draw, rel=0.01)
    assert device.throttle_reasons() == {"sw_power_cap"}
    assert device.sm_clock_mhz() < 1980
    engine.validate()


def test_cards_of_one_engine_share_its_work() -> None:
    engine = TwinEngine(TP2)
    engine.submit(Request("r", 256, 500), 0.0)
    engine.advance(5.0)
    device = TwinDevice(engine, lambda: engine.now)
    assert device.power_watts() == pytest.approx((engine.meter.average_watts() or 0) / 2)
    device.set_limit_watts(400.0)
    assert engine.limit.requested_watts == 800.0
    assert device.limits().requested_watts == 400.0


def test_an_idle_engine_draws_idle_power() -> None:
    engine = TwinEngine(H200)
    engine.advance(100.0)
    assert engine.meter.joules == pytest.approx(100 * H200.card.idle_watts)


# --- content ---


def test_tokens_and_pieces_give_the_same_sharing() -> None:
    """Two prompts share as many blocks whether they are known by ids or by pieces."""
    first, second = [1] * 40 + [2] * 30, [1] * 40 + [3] * 30
    by_tokens = [runs_of_tokens(ids, 16) for ids in (first, second)]
    shared = sum(1 for one, other in zip(*by_tokens, strict=True) if one == other)
    pieces = [runs_of_pieces([Piece("system", 40), Piece(name, 30)], 16) for name in ("a", "b")]
    assert shared == 2
    assert pieces[0][0] == pieces[1][0]
    assert pieces[0][0].blocks == shared
    assert pieces[0][1] != pieces[1][1]
    assert sum(run.blocks for run in pieces[0]) == 70 // 16


def test_many_small_pieces_in_one_block() -> None:
    runs = runs_of_pieces([Piece(number, 3) for number in range(11)], 16)
    assert [run.blocks for run in runs] == [1, 1]
    assert runs[0].name != runs[1].name
