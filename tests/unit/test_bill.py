"""The bill: a call from its dispatch to its settlement, accounts, and what happens when tables are full."""

from __future__ import annotations

import pytest

from scheduler.energy.bill import Bill, BillLimits
from scheduler.energy.bill_accounts import OTHERS, figure
from scheduler.energy.window import Energy
from scheduler.energy.work import Work
from tests.unit.bill_feed import TARIFF, closed, decoded, prefilled, share, window


def one_call(bill: Bill, call_id: str = "a", *, key: str = "k", workflow: str = "w", engine: str = "e") -> None:
    bill.dispatched(call_id, key, workflow, "m", engine, 0.0)


def totals(bill: Bill) -> dict[str, float]:
    """Marginal joules by key, over everything."""
    found: dict[str, float] = {}
    for account in bill.accounts:
        joules = figure([account]).marginal_joules
        found[account.name.key] = found.get(account.name.key, 0.0) + (joules or 0.0)
    return found


def test_a_call_is_preliminary_until_its_window_has_closed_and_settled_then() -> None:
    bill = Bill()
    bill.priced("e", TARIFF)
    one_call(bill)
    guess = bill.ended("a", 100, 0, 11, 1.0)
    assert guess is not None
    # 100 tokens prefilled, 10 decoded, 11 steps alone.
    assert guess.joules == pytest.approx(100 * 0.02 + 5000 * 1e-7 + 10 * 0.05 + 1055 * 1e-5 + 22.0)
    assert guess.source == "modelled"
    assert guess.low is not None and guess.high is not None
    assert 0 < guess.low < guess.joules < guess.high
    before = bill.call("a")
    assert before is not None
    assert not before.settled
    assert before.marginal_joules == guess.joules
    assert bill.workflow("k", "w").pending_joules == pytest.approx(guess.joules)
    work = prefilled(100) + decoded(10, context=1055)
    found = closed(bill, window(share("a", work, ended=True), joules=300.0))
    after = bill.call("a")
    assert after is not None
    assert after.settled and after.complete
    assert after.source == "measured"
    assert found.settled[0].joules == after.marginal_joules
    assert [call.id for call in found.settled] == ["a"]
    figures = bill.workflow("k", "w")
    assert figures.marginal_joules == after.marginal_joules
    assert figures.pending_joules == 0
    assert figures.calls == 1
    assert bill.preliminary("a") == guess


def test_what_a_client_is_told_is_what_is_booked_as_preliminary() -> None:
    bill = Bill()
    bill.priced("e", TARIFF, simulated=True)
    one_call(bill)
    told = bill.guess("a", 100, None, 5, 0.5)
    assert told is not None
    assert told.source == "simulated"
    assert bill.ended("a", 100, None, 5, 0.9) is told


def test_its_part_of_the_steps_is_that_of_its_whole_stay() -> None:
    bill = Bill()
    bill.priced("e", TARIFF)
    for name in "ab":
        bill.dispatched(name, "k", "", "m", "e", 0.0)
    guess = bill.ended("a", 0, 0, 101, 5.0)
    assert guess is not None
    context = sum(range(1, 101))
    assert guess.joules == pytest.approx(
        100 * TARIFF.decode_token + context * TARIFF.context_token + 50.5 * TARIFF.step
    )
    assert bill.guess("b", 0, 0, 101, 10.0).joules == pytest.approx(guess.joules + 25.25 * TARIFF.step)  # type: ignore[union-attr]


def test_a_call_without_any_engine_has_no_bill() -> None:
    bill = Bill()
    assert bill.ended("nobody", 1, 1, 1, 0.0) is None
    assert bill.guess("nobody", 1, 1, 1) is None
    assert bill.call("nobody") is None


@pytest.mark.parametrize(
    ("prompt", "output", "priced"), [(None, 5, True), (5, None, True), (5, 5, False)], ids=["prompt", "output", "model"]
)
def test_what_is_not_known_is_unavailable(prompt: int | None, output: int | None, priced: bool) -> None:
    bill = Bill()
    if priced:
        bill.priced("e", TARIFF)
    one_call(bill)
    guess = bill.ended("a", prompt, None, output, 1.0)
    assert guess == (None, None, None, "unavailable")


def test_a_retried_call_is_billed_on_both_engines_and_settled_after_both() -> None:
    bill = Bill()
    one_call(bill, engine="first")
    bill.dispatched("a", "k", "w", "m", "second", 1.0)
    bill.ended("a", 10, 0, 5, 2.0)
    found = closed(bill, window(share("a", decoded(3), ended=True), joules=400.0, engine="second"))
    assert found.settled == ()
    found = closed(bill, window(share("a", decoded(2), ended=True), joules=400.0, engine="first"))
    assert [one.id for one in found.settled] == ["a"]
    figures = bill.workflow("k", "w")
    assert figures.calls == 2
    by_engine = {account.name.engine: figure([account]).marginal_joules for account in bill.accounts}
    assert by_engine["first"] and by_engine["second"]
    assert sum(by_engine.values()) == pytest.approx(figures.marginal_joules)  # type: ignore[arg-type]


def test_a_cancelled_call_pays_for_what_it_had() -> None:
    bill = Bill()
    one_call(bill)
    closed(bill, window(share("a", decoded(10)), joules=400.0))
    bill.ended("a", 100, None, 10, 2.5)
    found = closed(bill, window(share("a", Work(), ended=True), joules=200.0, start=2.0))
    assert found.settled[0].joules
    assert bill.workflow("k", "w").marginal_joules == found.settled[0].joules


def test_a_call_that_windows_leave_out_is_settled_all_the_same() -> None:
    bill = Bill()
    one_call(bill)
    bill.ended("a", 10, 0, 5, 1.0)
    assert closed(bill, window(joules=300.0)).settled == ()  # it may be in the next one
    assert closed(bill, window(joules=300.0, start=2.0)).settled[0].joules is None  # nobody has billed it


def test_of_a_window_without_prices_a_call_is_not_said_to_have_used_nothing() -> None:
    bill = Bill()
    one_call(bill)
    bill.ended("a", 10, 0, 5, 1.0)
    found = closed(bill, window(share("a", decoded(4), ended=True), joules=300.0), None)
    assert found.settled[0].joules is None
    figures = bill.workflow("k", "w")
    assert figures.marginal_joules is None
    assert figures.source == "unavailable"
    assert not figures.complete


def test_figures_of_several_sources_are_as_good_as_the_weakest() -> None:
    bill = Bill()
    one_call(bill)
    closed(bill, window(share("a", decoded(4)), joules=300.0))
    closed(bill, window(share("a", decoded(4)), start=2.0))
    figures = bill.workflow("k", "w")
    assert figures.source == "modelled"
    assert set(figures.by_source) == {"measured", "modelled"}
    assert sum(figures.by_source.values()) == pytest.approx(figures.marginal_joules)
    call = bill.call("a")
    assert call is not None
    assert call.source == "modelled"


def test_shares_of_calls_that_nobody_knows_are_others() -> None:
    bill = Bill()
    closed(bill, window(share("ghost", decoded(10)), joules=400.0))
    assert totals(bill)[OTHERS] > 0


def test_a_full_table_of_accounts_loses_nothing() -> None:
    bill = Bill(BillLimits(accounts=4))
    for number in range(20):
        one_call(bill, f"c{number}", workflow=f"w{number}", key=f"k{number % 3}")
        start = 2.0 * number
        closed(bill, window(share(f"c{number}", decoded(10), ended=True), joules=400.0, start=start))
    assert len(bill.accounts) <= 4 + 4
    assert sum(totals(bill).values()) == pytest.approx(sum(bill.engines["e"].billed["measured"][:4]) / 1e6)
    assert bill.workflow("k0", "w0").source == "unavailable"
    assert any(account.name.workflow == OTHERS for account in bill.accounts)


def test_too_many_accounts_of_others_become_one() -> None:
    bill = Bill(BillLimits(accounts=2))
    for number in range(12):
        one_call(bill, f"c{number}", workflow="", key=f"k{number}")
    closed(bill, window(*(share(f"c{number}", decoded(5)) for number in range(12)), joules=900.0))
    assert len(bill.accounts) <= 2 + 3
    assert OTHERS in totals(bill)


def test_too_many_live_calls_give_the_oldest_up() -> None:
    bill = Bill(BillLimits(live_calls=2))
    for name in "abc":
        one_call(bill, name)
    assert bill.given_up == 1
    found = closed(bill, window(*(share(name, decoded(5), ended=True) for name in "abc"), joules=900.0))
    assert [one.id for one in found.settled] == ["a"]
    assert totals(bill)[OTHERS] > 0


def test_only_so_many_settled_calls_are_remembered() -> None:
    bill = Bill(BillLimits(settled_calls=3))
    for number in range(6):
        one_call(bill, f"c{number}")
        bill.ended(f"c{number}", 1, 0, 2, 1.0)
    closed(bill, window(*(share(f"c{number}", decoded(1), ended=True) for number in range(6)), joules=900.0))
    assert [bill.call(f"c{number}") is not None for number in range(6)] == [False, False, False, True, True, True]


def test_each_microjoule_is_drained_once() -> None:
    bill = Bill(BillLimits(accounts=3))
    drained: dict[str, int] = {}
    calls = 0
    for number in range(12):
        one_call(bill, f"c{number}", workflow=f"w{number % 5}")
        closed(
            bill,
            window(share(f"c{number}", decoded(10), ended=True), energy=Energy(400.0, 30.0), start=2.0 * number),
        )
        changes, engines = bill.drain()
        for change in changes:
            calls += change.calls
            drained["rows"] = drained.get("rows", 0) + sum(sum(row[:9]) for row in change.microjoules.values())
        for moved in engines:
            drained["engine"] = drained.get("engine", 0) + sum(moved.microjoules[1:4]) + sum(moved.microjoules[5:7])
            drained["counter"] = drained.get("counter", 0) + moved.microjoules[0] + moved.microjoules[4]
    assert bill.drain() == ([], [])
    assert calls == 12
    assert drained["rows"] + drained["engine"] == drained["counter"] == 12 * 430 * 1_000_000


def test_names_of_any_length_are_cut() -> None:
    bill = Bill()
    bill.dispatched("a", "k", "w" * 10_000, "m" * 10_000, "e", 0.0)
    assert {len(account.name.workflow) for account in bill.accounts} == {256}
    closed(bill, window(share("a", decoded(5), ended=True), joules=300.0))
    assert bill.workflow("k", "w" * 10_000).marginal_joules
