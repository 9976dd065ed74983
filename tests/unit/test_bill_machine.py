"""Any order of calls and windows: books agree to the microjoule, tables stay bounded, everything is drained once."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from scheduler.energy.bill import Bill, BillLimits
from scheduler.energy.window import Energy
from scheduler.energy.work import NOTHING, Work
from tests.unit.bill_feed import TARIFF, share, window

ENGINES = ("e1", "e2")
tokens = st.one_of(st.none(), st.integers(0, 5000))
amounts = st.floats(0, 2000, allow_nan=False)
works = st.builds(Work, *[amounts] * len(Work._fields))
changes = st.one_of(st.just(NOTHING), st.builds(Work, *[st.floats(-500, 500, allow_nan=False)] * len(Work._fields)))
metered = st.one_of(st.none(), st.floats(0, 1e5, allow_nan=False))


class Bills(RuleBasedStateMachine):
    """Calls named c0, c1 …, some of them never heard of."""

    def __init__(self) -> None:
        super().__init__()
        limits = BillLimits(live_calls=6, settled_calls=4, accounts=5, prefixes=3)
        self.bill = Bill(limits)
        self.now = 0.0
        self.calls = 0
        self.drained: dict[str, int] = {}
        self.counted = {"gpu": 0, "cpu": 0, "dram": 0}
        self.settled: list[str] = []
        self.dispatched: set[str] = set()

    @rule(
        engine=st.sampled_from(ENGINES), key=st.sampled_from(["a", "b", "*"]), workflow=st.sampled_from(["", "w", "x"]),
        marks=st.lists(st.tuples(st.sampled_from("pqr"), st.floats(1, 3000)), max_size=3), timed=st.booleans(),
    )  # fmt: skip
    def arrive(self, engine: str, key: str, workflow: str, marks: list, timed: bool) -> None:
        growing = tuple(sorted(marks, key=lambda mark: mark[1]))
        name = f"c{self.calls}"
        self.calls += 1
        self.dispatched.add(name)
        self.bill.dispatched(name, key, workflow, "m", engine, self.now if timed else None, growing)

    @rule(number=st.integers(0, 40), engine=st.sampled_from(ENGINES))
    def retry(self, number: int, engine: str) -> None:
        name = f"c{number}"
        known = self.bill.call(name)
        if name in self.dispatched and known is not None and not known.settled:  # what is over is not tried again
            self.bill.dispatched(name, "a", "w", "m", engine, self.now)

    @rule(number=st.integers(0, 40), prompt=tokens, cached=tokens, output=tokens)
    def end(self, number: int, prompt: int | None, cached: int | None, output: int | None) -> None:
        self.bill.ended(f"c{number}", prompt, cached, output, self.now)

    @rule(
        engine=st.sampled_from(ENGINES), seconds=st.floats(0.5, 5), data=st.data(), gpu=metered, cpu=metered,
        dram=metered, why=st.sampled_from([(), (), ("bypass",), ("meter_reset",)]), priced=st.booleans(),
        source=st.sampled_from(["measured", "simulated"]),
    )  # fmt: skip
    def close(
        self, engine: str, seconds: float, data: st.DataObject, gpu: float | None, cpu: float | None,
        dram: float | None, why: tuple[str, ...], priced: bool, source: str,
    ) -> None:  # fmt: skip
        names = data.draw(st.lists(st.integers(0, self.calls + 1), max_size=5))
        calls = [
            share(
                f"c{name}", data.draw(works), correction=data.draw(changes),
                seconds=data.draw(st.floats(0, 5)), ended=data.draw(st.booleans()),
            )
            for name in names
        ]  # fmt: skip
        energy = Energy(gpu, cpu, dram)
        made = window(*calls, energy=energy, start=self.now, seconds=seconds, why=why, engine=engine, source=source)
        found = self.bill.close(made, TARIFF if priced else None)
        found.bill.validate()
        self.now += seconds
        bill = found.bill
        for device, side in (("gpu", bill.gpu), ("cpu", bill.cpu), ("dram", bill.dram)):
            self.counted[device] += 0 if side is None else side.counter
        assert sum(round(one.joules * 1e6) for one in found.moved) == 0
        for one in found.settled:
            assert one.id not in self.settled
            self.settled.append(one.id)

    @rule()
    def drain(self) -> None:
        changes, engines = self.bill.drain()
        for change in changes:
            for row in change.microjoules.values():
                for device, places in (("gpu", range(5)), ("cpu", (5, 6)), ("dram", (7, 8))):
                    self.drained[device] = self.drained.get(device, 0) + sum(row[place] for place in places)
        for moved in engines:
            row = moved.microjoules
            for device, places in (("gpu", (1, 2, 3)), ("cpu", (5, 6)), ("dram", (8, 9))):
                self.drained[device] = self.drained.get(device, 0) + sum(row[place] for place in places)

    @invariant()
    def holds(self) -> None:
        self.bill.validate()

    def teardown(self) -> None:
        self.drain()
        assert self.bill.drain() == ([], [])
        assert {device: self.drained.get(device, 0) for device in self.counted} == self.counted


TestBills = Bills.TestCase
TestBills.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
