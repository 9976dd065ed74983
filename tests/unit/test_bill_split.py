"""One window's split: every microjoule goes somewhere, and to whom it belongs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.energy.bill_accounts import COMPONENTS, CPU, CPU_IDLE, IDLE, STEP, UNCERTAINTY
from scheduler.energy.bill_limit import NO_LIMIT
from scheduler.energy.bill_prices import Tariff
from scheduler.energy.bill_scale import Idle
from scheduler.energy.bill_split import split
from scheduler.energy.window import Energy
from scheduler.energy.work import NOTHING, Work
from tests.unit.bill_feed import TARIFF, decoded, prefilled, share, window

MICRO = 1_000_000
NOT_KNOWN = Idle()
amounts = st.floats(0, 1e5, allow_nan=False)
works = st.builds(Work, *[amounts] * len(Work._fields))
signed = st.builds(Work, *[st.floats(-1e4, 1e4, allow_nan=False)] * len(Work._fields))
shares = st.builds(
    share,
    st.text(min_size=1, max_size=3),
    works,
    correction=st.one_of(st.just(NOTHING), signed),
    seconds=st.floats(0, 10),
    ended=st.booleans(),
)
joules = st.one_of(st.none(), st.floats(0, 1e7, allow_nan=False))
energies = st.builds(Energy, joules, joules, joules)
prices = st.floats(0, 10, allow_nan=False)
left = st.floats(0.3, 1)
curves = st.one_of(st.just(()), st.tuples(*[left] * len(NO_LIMIT)))
tariffs = st.builds(
    Tariff, *[prices] * 6, st.floats(0, 1000), st.floats(0, 1), left, left, prefill_curve=curves, believed=st.none()
)
watts = st.one_of(st.none(), st.floats(0, 1000))


@given(
    st.lists(shares, max_size=8), energies, st.floats(0.01, 60), st.floats(0, 60), st.one_of(st.none(), tariffs),
    st.floats(0.2, 5), st.builds(Idle, watts, watts, watts), st.booleans(), st.sampled_from(["measured", "simulated"]),
)  # fmt: skip
def test_no_microjoule_is_made_or_lost(
    calls: list, energy: Energy, seconds: float, busy: float, tariff: Tariff | None, scale: float, idle: Idle,
    bypassed: bool, source: str,
) -> None:  # fmt: skip
    why = ("bypass",) if bypassed else ()
    made = window(*calls, energy=energy, seconds=seconds, busy=min(busy, seconds), why=why, source=source)
    bill = split(made, tariff, scale, idle)
    bill.validate()
    assert len(bill.rows) == len(calls)
    if energy.gpu is not None:
        assert bill.gpu.counter == round(energy.gpu * MICRO)
    assert (bill.cpu is None) == (energy.cpu is None)
    for side, metered in ((bill.cpu, energy.cpu), (bill.dram, energy.dram)):
        if side is not None and metered is not None:
            assert side.counter == round(metered * MICRO)


def test_each_term_is_paid_by_who_caused_it() -> None:
    made = window(
        share("a", decoded(10, batch=2, context=1000)),
        share("b", prefilled(100, steps=0.5)),
        joules=500.0,
    )
    bill = split(made, TARIFF, 1.0, NOT_KNOWN)
    first, second = bill.rows.tolist()
    assert first[:4] == [0, 500_000, 10_000, 10_000_000]
    assert second[:4] == [2_000_500, 0, 0, 1_000_000]
    assert first[IDLE] == second[IDLE] == 100 * MICRO  # 100 W for 2 s, by equal time
    assert bill.gpu.billed == sum(first[:4]) + sum(second[:4])
    assert bill.gpu.residual == 500 * MICRO - bill.gpu.billed - 200 * MICRO
    assert bill.source == "measured"
    assert first[UNCERTAINTY] == int(0.1 * sum(first[:4]))


def test_prices_are_scaled() -> None:
    made = window(share("a", decoded(10)), joules=500.0)
    assert split(made, TARIFF, 2.0, NOT_KNOWN).rows[0][STEP] == 40 * MICRO


def test_a_power_limit_takes_its_part_off_each_kind_of_work() -> None:
    made = window(share("a", decoded(10) + prefilled(100)), joules=500.0)
    row = split(made, TARIFF._replace(decode_left=0.9, prefill_left=0.5), 1.0, NOT_KNOWN).rows[0].tolist()
    assert row[:4] == [1_000_250, 450_000, 0, 19_800_000]


def test_a_step_is_shared_by_all_in_it_alike() -> None:
    made = window(*(share(name, decoded(10, batch=4)) for name in "abcd"), joules=900.0)
    rows = split(made, TARIFF, 1.0, NOT_KNOWN).rows.tolist()
    assert {row[STEP] for row in rows} == {5 * MICRO}  # ten steps of 2 J, a quarter each


def test_idle_power_is_paid_for_the_time_in_which_somebody_was_there() -> None:
    made = window(share("a", seconds=0.5), share("b", seconds=1.5), joules=300.0, seconds=4.0, busy=1.0)
    bill = split(made, TARIFF, 1.0, Idle(gpu_watts=60.0))
    assert [row[IDLE] for row in bill.rows] == [15 * MICRO, 45 * MICRO]
    assert bill.gpu.unused == 180 * MICRO
    assert bill.gpu.residual == 60 * MICRO


def test_nobody_pays_for_an_empty_window() -> None:
    bill = split(window(joules=210.0), TARIFF, 1.0, NOT_KNOWN)
    assert bill.gpu[:] == (210 * MICRO, 0, 0, 200 * MICRO, 10 * MICRO, 0)


def test_less_than_idle_power_is_all_idle_power() -> None:
    assert split(window(joules=150.0), TARIFF, 1.0, NOT_KNOWN).gpu.unused == 150 * MICRO


@pytest.mark.parametrize(("why", "bypass", "residual"), [((), 0, 170), (("bypass",), 170, 0)])
def test_what_bypassed_the_gateway_is_not_our_calls(why: tuple[str, ...], bypass: int, residual: int) -> None:
    made = window(share("a", decoded(10) + Work(decode_tokens=200)), joules=400.5, why=why)
    bill = split(made, TARIFF, 1.0, NOT_KNOWN)
    assert bill.gpu.billed == 30_500_000
    assert (bill.gpu.bypass, bill.gpu.residual) == (bypass * MICRO, residual * MICRO)


def test_nothing_bypassed_where_less_was_used_than_was_billed() -> None:
    bill = split(window(share("a", decoded(100)), joules=210.0, why=("bypass",)), TARIFF, 1.0, NOT_KNOWN)
    assert bill.gpu.bypass == 0
    assert bill.gpu.residual < 0


def test_without_a_meter_the_model_is_all_there_is() -> None:
    bill = split(window(share("a", decoded(10))), TARIFF, 1.0, NOT_KNOWN)
    assert bill.source == "modelled"
    assert bill.gpu.counter == bill.gpu.billed + 200 * MICRO
    assert bill.gpu.residual == 0


def test_without_prices_nobody_is_billed_and_nothing_is_said_to_be_0() -> None:
    bill = split(window(share("a", decoded(10)), energy=Energy(400.0, 50.0)), None, 1.0, NOT_KNOWN)
    assert bill.source == "unavailable"
    assert bill.gpu.residual == 400 * MICRO
    assert bill.cpu is not None
    assert bill.cpu.residual == 50 * MICRO


def test_a_simulated_meter_stays_simulated() -> None:
    assert split(window(joules=1.0, source="simulated"), TARIFF, 1.0, NOT_KNOWN).source == "simulated"


def test_the_processor_is_paid_by_steps_above_its_idle_power() -> None:
    made = window(share("a", decoded(30)), share("b", decoded(10)), energy=Energy(900.0, 100.0, None))
    bill = split(made, TARIFF, 1.0, Idle(cpu_watts=10.0))
    assert [row[CPU] for row in bill.rows] == [60 * MICRO, 20 * MICRO]
    assert [row[CPU_IDLE] for row in bill.rows] == [10 * MICRO, 10 * MICRO]
    assert bill.dram is None


def test_until_its_idle_power_is_known_no_call_pays_for_the_processor() -> None:
    bill = split(window(share("a", decoded(30)), energy=Energy(900.0, 100.0)), TARIFF, 1.0, NOT_KNOWN)
    assert bill.cpu is not None
    assert bill.cpu.billed == 0


def test_a_correction_is_booked_where_it_becomes_known() -> None:
    made = window(
        share("a", decoded(10), correction=Work(decode_tokens=-4.0), ended=True, more_steps=2.0),
        share("b", correction=Work(decode_tokens=-20.0)),
        joules=500.0,
    )
    rows = split(made, TARIFF, 1.0, NOT_KNOWN).rows.tolist()
    assert rows[0][1:4] == [300_000, 0, 24 * MICRO]
    assert rows[1][1] == -MICRO  # it gets back what it was billed too much


def test_a_prompt_that_is_put_right_has_the_limits_share_of_all_of_it() -> None:
    alone, half, amid = (1.0, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5), (0.9,) * 7, (0.4,) * 7
    tariff = TARIFF._replace(prefill_curve=(*alone, *half, *amid))
    for before, left in ((0.0, 0.8), (0.25, 0.85), (1.0, 0.4)):
        corrected = share("a", correction=Work(prefill_tokens=-100.0), ended=True, prompt_tokens=500.0)
        made = window(corrected._replace(step_tokens=1024.0, step_before=before), joules=500.0)
        [row] = split(made, tariff, 1.0, NOT_KNOWN).rows.tolist()
        assert row[0] == round(-100 * TARIFF.prefill_token * left * MICRO), "by the step that it was in"


def test_a_row_has_a_place_for_each_component() -> None:
    row = split(window(share("a"), joules=1.0), TARIFF, 1.0, NOT_KNOWN).rows[0]
    assert len(row) == len(COMPONENTS)
