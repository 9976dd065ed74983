"""What are an engine's sums, and what has it been like lately?"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from scheduler.energy.bill_accounts import COMPONENTS, ENGINE_COMPONENTS, ZERO, add
from scheduler.energy.bill_calls import Company, quote
from scheduler.energy.bill_limit import SteadyLimit, limited_share
from scheduler.energy.bill_prices import MICRO
from scheduler.energy.bill_scale import IdleWatch, Scale

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scheduler.energy.bill_accounts import Account, Amounts, Source
    from scheduler.energy.bill_calls import CallBill, Quote
    from scheduler.energy.bill_prices import Tariff
    from scheduler.energy.bill_split import Side, WindowBill
    from scheduler.energy.stays import Pace
    from scheduler.energy.window import Window

RECENT = 0.3
"""Weight of the last window, or call, in what an engine has been like lately."""
GROWS, FALLS = 1.0 + 0.05 * 0.9, 1.0 - 0.05 * 0.1
ERROR_LOWEST, ERROR_HIGHEST = 0.02, 2.0


class EngineChange(NamedTuple):
    """What an engine gained since it was asked for the last time, beside its calls."""

    engine: str
    source: Source
    microjoules: tuple[int, ...]
    """In the order of ENGINE_COMPONENTS."""


class EngineBook:
    """One engine's."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.alone = (name,)
        self.by_source: dict[Source, Amounts] = {}
        """Microjoules in the order of ENGINE_COMPONENTS."""
        self.billed: dict[Source, Amounts] = {}
        """To all its accounts together, in the order of COMPONENTS."""
        self._idle = IdleWatch()

        self.company = Company()
        self.quote: Quote | None = None
        """Prices for estimates; None: nothing is believed of it."""
        self.calls = 0
        self.at = self.shared_seconds = 0.0
        """Calls at it, and ∫ dt / calls up to a time: for estimates, where O(1) an event is all that may be spent."""
        self.tariff: Tariff | None = None
        self.source: Source = "modelled"
        """Of the last window that has figures."""
        self.over: list[CallBill] = []
        """Calls that have ended and whose last window has perhaps not closed, in the order of their ends."""
        self.windows = 0
        self.windows_marked = 0
        self.booked_until: float | None = None
        """End of the last window, in the core's seconds."""
        self._scale = Scale()
        self._limit = SteadyLimit()
        self._drained: dict[Source, Amounts] = {}

    def shared_until(self, now: float) -> float:
        """∫ dt / calls up to now. Times never go back: earlier is as now."""
        if now > self.at:
            if self.calls:
                self.shared_seconds += (now - self.at) / self.calls
            self.at = now
        return self.shared_seconds

    def priced(self, tariff: Tariff | None, source: Source) -> None:
        """What is believed before any window has closed."""
        self.tariff, self.company.source = tariff, source
        self.quote = None if tariff is None else quote(tariff, self.company)

    def split(self, window: Window, tariff: Tariff | None) -> WindowBill:
        """A window has closed: who pays what of it."""
        from scheduler.energy.bill_split import split  # with numpy, which only those need who have windows

        if tariff is not None:
            tariff = self._limit.of(tariff, window)
        self.tariff = tariff
        idle = self._idle.saw(window, tariff)
        scale = 1.0
        if tariff is not None:
            self._scale.saw(window, tariff, float(window.calls.more_steps.sum()))
            scale = self._scale.at(tariff, idle.gpu_watts or 0.0)
        bill = split(window, tariff, scale, idle)
        self._scale.booked(window, bill.gpu.residual / MICRO)
        return bill

    def book(self, bill: WindowBill) -> None:
        """A window's sums."""
        window = bill.window
        self.windows += 1
        self.windows_marked += bool(window.why)
        self.booked_until = window.end
        self._lately(bill)
        source = bill.source
        if source == "unavailable":
            if all(joules is None for joules in window.energy):
                return
            source = window.source
        else:
            self.source = source
            self._to_calls(bill)
        gpu = bill.gpu
        sums = self.by_source.setdefault(source, [0] * len(ENGINE_COMPONENTS))
        add(sums, (gpu.counter, gpu.unused, gpu.residual, gpu.bypass, *_host(bill.cpu), *_host(bill.dram)))

    def _to_calls(self, bill: WindowBill) -> None:
        """Its shares go to accounts, one by one."""
        if len(bill.rows):
            add(self.billed.setdefault(bill.source, [0] * len(COMPONENTS)), bill.sums())

    def _lately(self, bill: WindowBill) -> None:
        window, company = bill.window, self.company
        work = window.work
        if (read := work.context_tokens + work.repeated_tokens) > 0:
            again = min(max(work.repeated_tokens / read, 0.0), 1.0)
            company.repeated_share += RECENT * (again - company.repeated_share)
        company.scale = bill.scale
        if self.tariff is not None and (share := limited_share(self.tariff, window)) is not None:
            company.limited += RECENT * (share - company.limited)
        company.source = "simulated" if window.source == "simulated" else "modelled"
        self.quote = None if self.tariff is None else quote(self.tariff, company)

    def pace(self, window: Window) -> Pace:
        """How long steps take lately, by what the model says of the last window."""
        from scheduler.energy.stays import pace_of

        return pace_of(None if self.tariff is None else self.tariff.believed, window)

    def judge(self, calls: Iterable[CallBill]) -> None:
        """Some are settled: how good were their estimates, and how much of their prompts was computed?"""
        company = self.company
        computed_share, error = company.computed_share, company.error
        for call in calls:
            if prompt := call.prompt_tokens:
                computed, weight = call.computed_tokens / prompt, RECENT if prompt >= 1000 else RECENT * prompt / 1000.0
                computed_share += weight * (
                    (0.0 if computed < 0 else computed if computed < 1 else 1.0) - computed_share
                )
            joules = call.estimate[0]
            if joules is not None and not call.unknown:
                joules *= MICRO
                missed, most = call.marginal - joules, error * joules
                # Grows nine times as fast as it falls: it stands still where one of ten is outside.
                error *= GROWS if missed > most or -missed > most else FALLS
                if error < ERROR_LOWEST:
                    error = ERROR_LOWEST
                elif error > ERROR_HIGHEST:
                    error = ERROR_HIGHEST
        company.computed_share, company.error = computed_share, error

    def drain(self) -> list[EngineChange]:
        """What has been booked since the last time: each microjoule once."""
        changes = []
        for source, amounts in self.by_source.items():
            before = self._drained.get(source, [0] * len(ENGINE_COMPONENTS))
            if amounts != before:
                changes.append(EngineChange(self.name, source, tuple(map(int.__sub__, amounts, before))))
                self._drained[source] = amounts.copy()
        return changes

    def validate(self, accounts: Iterable[Account]) -> None:
        """counter = its accounts' + unused + residual + bypass for each device, over all sources. AssertionError
        otherwise. `accounts`: all of this engine."""
        to_accounts = ZERO.copy()
        for account in accounts:
            for amounts in account.by_source.values():
                add(to_accounts, amounts)
        billed = [sum(column) for column in zip(*self.billed.values(), strict=True)] or ZERO
        assert to_accounts == billed, (
            self.name,
            dict(zip(COMPONENTS, zip(to_accounts, billed, strict=True), strict=True)),
        )
        sums = [sum(column) for column in zip(*self.by_source.values(), strict=True)] or [0] * len(ENGINE_COMPONENTS)
        assert sums[0] == sum(billed[place] for place in (0, 1, 2, 3, 4)) + sums[1] + sums[2] + sums[3], self.name
        for first, (own, idle) in ((4, (5, 6)), (7, (7, 8))):
            assert sums[first] == billed[own] + billed[idle] + sums[first + 1] + sums[first + 2], self.name


def _host(side: Side | None) -> tuple[int, int, int]:
    return (0, 0, 0) if side is None else (side.counter, side.unused, side.residual)
