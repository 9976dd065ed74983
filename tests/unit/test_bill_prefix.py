"""Shared prefixes: who used it pays the same, whoever came first; and the sum stays what was spent."""

from __future__ import annotations

import random

import pytest

from scheduler.energy.bill import Bill, BillLimits
from scheduler.energy.bill_prefix import MEMBERS_MAX
from tests.unit.bill_feed import closed, decoded, prefilled, share, window

MARKS = (("system", 1000.0),)
PREFIX_JOULES = 1000 * 0.02 + 500_000 * 1e-7


class Clients:
    """Calls one after the other, a window for each."""

    def __init__(self, limits: BillLimits | None = None) -> None:
        self.bill = Bill(limits)
        self.at = 0.0
        self.moved: dict[str, float] = {}

    def call(
        self, call_id: str, *, cached: float, key: str = "k", marks: tuple = MARKS, prompt: float = 1100.0
    ) -> None:
        """A call with so much of its prompt found in the cache."""
        bill = self.bill
        bill.dispatched(call_id, key, call_id, "m", "e", self.at, marks)
        bill.ended(call_id, prompt, cached, 2, self.at + 1)
        own = prefilled(prompt) if not cached else prefilled(prompt - cached)._replace(
            attention_pairs=(prompt * prompt - cached * cached) / 2
        )  # fmt: skip
        found = closed(bill, window(share(call_id, own + decoded(1), ended=True), joules=900.0, start=self.at))
        self.at += 2
        for key_name, _, joules in found.moved:
            self.moved[key_name] = self.moved.get(key_name, 0.0) + joules
        assert sum(one.joules for one in found.moved) == pytest.approx(0.0, abs=1e-9)

    def prefill(self, call_id: str) -> float:
        """What it pays for prefill now, at the prices of its windows."""
        bill = self.bill.call(call_id)
        assert bill is not None
        return bill.components["prefill"] / self.bill.engines["e"].company.scale


def test_the_second_takes_over_half() -> None:
    clients = Clients()
    clients.call("first", cached=0)
    alone = clients.prefill("first")
    clients.call("second", cached=1000)
    own = 100 * 0.02 + (1100**2 - 1000**2) / 2 * 1e-7
    assert alone == pytest.approx(PREFIX_JOULES + own, rel=0.02)
    assert clients.prefill("first") == pytest.approx(PREFIX_JOULES / 2 + own, rel=0.05)
    assert clients.prefill("second") == pytest.approx(PREFIX_JOULES / 2 + own, rel=0.05)


def test_a_whole_crowd_pays_the_same() -> None:
    clients = Clients()
    clients.call("c0", cached=0)
    for number in range(1, 4):
        clients.call(f"c{number}", cached=1000)
    paid = [clients.prefill(f"c{number}") for number in range(4)]
    assert max(paid) - min(paid) < 0.05 * paid[0]


def test_who_settles_first_makes_no_difference() -> None:
    """The second may be over before the first, which computed what it used."""
    clients = Clients()
    clients.call("user", cached=1000)
    clients.call("payer", cached=0)
    assert clients.prefill("user") == pytest.approx(clients.prefill("payer"), rel=0.05)


def test_other_prompts_share_nothing() -> None:
    clients = Clients()
    clients.call("a", cached=0, marks=(("one", 1000.0),))
    before = clients.prefill("a")
    clients.call("b", cached=1000, marks=(("other", 1000.0),))
    clients.call("c", cached=0, marks=())
    assert clients.prefill("a") == pytest.approx(before, rel=0.05)
    assert clients.moved == {}


def test_growing_prefixes_share_what_they_have_in_common() -> None:
    clients = Clients()
    clients.call("turn-1", cached=0, marks=(("s", 1000.0),), prompt=1500.0)
    clients.call("turn-2", cached=1500, marks=(("s", 1000.0), ("s|one", 1500.0)), prompt=2000.0)
    first, second = clients.prefill("turn-1"), clients.prefill("turn-2")
    # Half of the first 1000 tokens moved; nobody knows that turn-2 used the 500 behind them too.
    own = 500 * 0.02 + (1500**2 - 1000**2) / 2 * 1e-7
    assert first == pytest.approx(PREFIX_JOULES / 2 + own, rel=0.05)
    assert second == pytest.approx(PREFIX_JOULES / 2 + 500 * 0.02 + (2000**2 - 1500**2) / 2 * 1e-7, rel=0.05)


@pytest.mark.parametrize("across", [True, False])
def test_keys_share_if_they_are_meant_to(across: bool) -> None:
    clients = Clients(BillLimits(prefixes_across_keys=across))
    clients.call("a", cached=0, key="one")
    clients.call("b", cached=1000, key="two")
    assert bool(clients.moved) == across
    assert (clients.prefill("b") > PREFIX_JOULES / 3) == across


def test_many_users_in_bounded_memory_pay_for_it_once() -> None:
    clients = Clients(BillLimits(prefixes=2))
    rng = random.Random(3)
    clients.call("c0", cached=0)
    for number in range(1, 3 * MEMBERS_MAX):
        clients.call(f"c{number}", cached=1000 if rng.random() < 0.98 else 0)
    paid = [clients.prefill(f"c{number}") for number in range(3 * MEMBERS_MAX)]
    # The first is no worse off than anybody, and no newcomer pays for what so many have paid already.
    assert paid[0] < 5.0
    clients.bill.prefixes.validate()


def test_forgotten_prefixes_stay_paid() -> None:
    clients = Clients(BillLimits(prefixes=1))
    clients.call("a", cached=0, marks=(("one", 1000.0),))
    before = clients.prefill("a")
    clients.call("b", cached=0, marks=(("two", 1000.0),))
    clients.call("c", cached=1000, marks=(("one", 1000.0),))
    assert clients.prefill("a") == pytest.approx(before, rel=0.05)
    assert len(clients.bill.prefixes) == 1


def test_what_two_computed_at_once_is_shared_too() -> None:
    clients = Clients()
    clients.call("a", cached=0)
    clients.call("b", cached=0)
    clients.call("c", cached=1000)
    assert clients.prefill("c") == pytest.approx(2 / 3 * PREFIX_JOULES + 2.01, rel=0.06)
