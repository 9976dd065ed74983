"""Where do billed joules stand? Accounts of whole microjoules by source, in a table that never loses any."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Literal, NamedTuple

from scheduler.energy.bill_prices import MICRO

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy as np
    import numpy.typing as npt

    Microjoules = npt.NDArray[np.int64]

Source = Literal["measured", "modelled", "simulated", "unavailable"]
"""`measured`: parts of what a counter said, split by the model. `modelled`: there was no counter. `simulated`: counter
or engine are the twin's. `unavailable`: nobody knows, which is not 0."""
SOURCES: tuple[Source, ...] = ("measured", "modelled", "simulated")
"""Those that have figures."""

COMPONENTS = ("prefill", "decode", "context", "step", "idle", "cpu", "cpu_idle", "dram", "dram_idle", "uncertainty")
"""Of an account, see docs/energy-bill.md. `uncertainty` is no energy: it is half the width of the interval."""
PREFILL, DECODE, CONTEXT, STEP, IDLE, CPU, CPU_IDLE, DRAM, DRAM_IDLE, UNCERTAINTY = range(10)
MARGINAL = (PREFILL, DECODE, CONTEXT, STEP)
"""GPU energy that would not have been used without the call. The other components stand beside it."""
ENGINE_COMPONENTS = (
    "counter", "unused", "residual", "bypass", "cpu_counter", "cpu_unused", "cpu_residual",
    "dram_counter", "dram_unused", "dram_residual",
)  # fmt: skip
"""Of an engine beside its calls: see docs/energy-bill.md."""
NAME_MAX = 256
"""Characters of a model's or workflow's name that tell accounts apart."""
OTHERS = "*"
"""Key, workflow or model of what is not kept apart any more. Keys and ids of clients may be called so too: then both
are one account."""

Amounts = list[int]
"""Microjoules, in the order of COMPONENTS (or ENGINE_COMPONENTS)."""
ZERO: Amounts = [0] * len(COMPONENTS)


class Name(NamedTuple):
    """Whose joules: the finest account there is. Every other account is a sum of these."""

    engine: str
    key: str
    workflow: str
    """"" = a call that belongs to none."""
    model: str


class Account:
    """One name's joules. Corrections and shared prefixes may take some back, so amounts can fall."""

    __slots__ = (
        "by_source", "calls", "drained", "drained_calls", "drained_seconds", "into", "name",
        "unknown_seconds",
    )  # fmt: skip

    def __init__(self, name: Name) -> None:
        self.name = name
        self.by_source: dict[Source, Amounts] = {}
        self.calls = 0
        """That were given to the engine, each attempt counted."""
        self.unknown_seconds = 0.0
        """Time of its calls at the engine whose energy nobody knows."""
        self.drained: dict[Source, Amounts] = {}
        self.drained_calls = 0
        self.drained_seconds = 0.0
        self.into: Account | None = None
        """Where it went when the table was full."""

    def amounts(self, source: Source) -> Amounts:
        """To add to."""
        amounts = self.by_source.get(source)
        if amounts is None:
            amounts = self.by_source[source] = [0] * len(COMPONENTS)
        return amounts

    def merge(self, other: Account) -> None:
        """Take over all of another's, which points here from now on."""
        for source, amounts in other.by_source.items():
            add(self.amounts(source), amounts)
        for source, amounts in other.drained.items():
            drained = self.drained.setdefault(source, [0] * len(COMPONENTS))
            add(drained, amounts)
        self.calls += other.calls
        self.drained_calls += other.drained_calls
        self.drained_seconds += other.drained_seconds
        self.unknown_seconds += other.unknown_seconds
        other.into = self


class Change(NamedTuple):
    """What an account gained since it was asked for the last time."""

    name: Name
    microjoules: dict[Source, tuple[int, ...]]
    """In the order of COMPONENTS."""
    calls: int
    unknown_seconds: float


class Figure(NamedTuple):
    """Joules for somebody to read, never bare: with an interval and a source. None: unavailable."""

    marginal_joules: float | None
    """GPU energy that its calls caused, with their parts of fixed step costs: without idle power."""
    low_joules: float | None
    high_joules: float | None
    """Of the marginal joules: the truth lies between nine times out of ten."""
    full_joules: float | None
    """With the parts of idle power, CPU and memory that fall on its calls."""
    source: Source
    """The weakest of those that are in it: simulated before modelled before measured."""
    components: dict[str, float]
    """Joules of each."""
    by_source: dict[str, float]
    """Marginal joules."""
    pending_joules: float
    """Thought to have been used in windows that have not closed; not in the figures above."""
    calls: int
    complete: bool
    """False: for some of the time nobody knows."""


def add(amounts: Amounts, more: Iterable[int]) -> None:
    """Add in place."""
    amounts[:] = map(int.__add__, amounts, more)


def sums_of(rows: Microjoules, places: list[int]) -> list[Amounts]:
    """Sums of the rows that have the same place, which are 0, 1, 2 …: exact, since they are whole numbers."""
    import numpy as np  # there are windows, so it is loaded already

    of = np.array(places)
    order = np.argsort(of, kind="stable")
    starts = np.flatnonzero(np.diff(of[order], prepend=-1))
    return np.add.reduceat(rows[order], starts, axis=0).tolist()  # type: ignore[no-any-return]


def weakest(sources: Iterable[Source]) -> Source:
    """What a sum of figures with these sources is."""
    found = set(sources)
    return next((source for source in reversed(SOURCES) if source in found), "unavailable")


def named(amounts: Amounts) -> dict[str, float]:
    """Joules by component. Processors and memory stand there only where something counts them: unknown is not 0."""
    parts = zip(COMPONENTS[:UNCERTAINTY], amounts, strict=False)
    return {name: value / MICRO for place, (name, value) in enumerate(parts) if place < CPU or value}


def figure(accounts: Iterable[Account], pending: int = 0) -> Figure:
    """Some accounts' sum. `pending`: see Figure, in microjoules."""
    sums: dict[Source, Amounts] = {}
    calls = 0
    unknown = 0.0
    for account in accounts:
        for source, amounts in account.by_source.items():
            add(sums.setdefault(source, [0] * len(COMPONENTS)), amounts)
        calls += account.calls
        unknown += account.unknown_seconds
    return figure_of(sums, calls, pending, complete=unknown == 0)


def figure_of(sums: dict[Source, Amounts], calls: int, pending: int = 0, *, complete: bool = True) -> Figure:
    """Of amounts by source."""
    if not sums:
        return Figure(None, None, None, None, "unavailable", {}, {}, pending / MICRO, calls, complete=False)
    total = [sum(column) for column in zip(*sums.values(), strict=True)]
    marginal = sum(total[place] for place in MARGINAL)
    half = total[UNCERTAINTY]
    return Figure(
        marginal / MICRO,
        max(marginal - half, 0) / MICRO,
        (marginal + half) / MICRO,
        sum(total[:UNCERTAINTY]) / MICRO,
        weakest(sums),
        named(total),
        {source: sum(amounts[place] for place in MARGINAL) / MICRO for source, amounts in sums.items()},
        pending / MICRO,
        calls,
        complete,
    )


class AccountTable:
    """At most `accounts_max` accounts; what is over goes into one of the key's, the least recently used first, and
    if there are too many of those, into one of the engine's."""

    def __init__(self, accounts_max: int) -> None:
        self.accounts_max = accounts_max
        self._accounts: OrderedDict[Name, Account] = OrderedDict()
        self._rest: dict[Name, Account] = {}
        """Of what was merged: grows with keys, models and engines, and no further than `accounts_max`."""
        self._workflows: dict[tuple[str, str], list[Account]] = {}
        self.touched: dict[Account, None] = {}
        """Added to since the last `drain`."""

    def __len__(self) -> int:
        return len(self._accounts) + len(self._rest)

    def __iter__(self) -> Iterator[Account]:
        yield from self._accounts.values()
        yield from self._rest.values()

    def open(self, of: tuple[str, str, str, str]) -> Account:
        """The account of this name: as a `Name` or not."""
        account = self._accounts.get(of)  # type: ignore[call-overload]  # equal, and of the same hash
        if account is not None:
            if account not in self.touched:  # else it is among the last ones already
                self._accounts.move_to_end(of)  # type: ignore[arg-type]
            return account  # type: ignore[no-any-return]
        name = Name(of[0], of[1], of[2][:NAME_MAX], of[3][:NAME_MAX])
        if name != of:
            return self.open(name)
        account = self._accounts[name] = Account(name)
        if name.workflow:
            self._workflows.setdefault((name.key, name.workflow), []).append(account)
        while len(self._accounts) > self.accounts_max:
            self._merge(self._accounts.popitem(last=False)[1])
        return account

    def others(self, engine: str) -> Account:
        """The account of what nobody can be named for."""
        return self._rest_of(Name(engine, OTHERS, OTHERS, OTHERS))

    def touch(self, account: Account) -> Account:
        """Before it is added to: where it is now. It will be among the changes."""
        while account.into is not None:
            account = account.into
        self.touched[account] = None
        return account

    def workflow(self, key: str, workflow_id: str) -> list[Account]:
        """A workflow's accounts; none if it is not kept apart (any more)."""
        return self._workflows.get((key, workflow_id), [])

    def drain(self) -> list[Change]:
        """What has been added since the last time, for whoever keeps it: each microjoule once."""
        changes = []
        for account in self.touched:
            moved: dict[Source, tuple[int, ...]] = {}
            for source, amounts in account.by_source.items():
                before = account.drained.get(source, ZERO)
                if amounts != before:
                    moved[source] = tuple(map(int.__sub__, amounts, before))
                    account.drained[source] = amounts.copy()
            calls = account.calls - account.drained_calls
            seconds = account.unknown_seconds - account.drained_seconds
            account.drained_calls, account.drained_seconds = account.calls, account.unknown_seconds
            if moved or calls or seconds:
                changes.append(Change(account.name, moved, calls, seconds))
        self.touched.clear()
        return changes

    def _rest_of(self, name: Name) -> Account:
        account = self._rest.get(name)
        if account is None:
            account = self._rest[name] = Account(name)
        return account

    def _merge(self, account: Account) -> None:
        name = account.name
        rest = Name(name.engine, name.key, OTHERS if name.workflow else "", name.model)
        if rest not in self._rest and len(self._rest) >= self.accounts_max:
            rest = Name(name.engine, OTHERS, OTHERS, OTHERS)
        into = self._rest_of(rest)
        into.merge(account)
        if account in self.touched:
            del self.touched[account]
            self.touched[into] = None
        if name.workflow:
            left = self._workflows[name.key, name.workflow]
            left.remove(account)
            if not left:
                del self._workflows[name.key, name.workflow]

    def validate(self) -> None:
        """Every invariant. AssertionError otherwise."""
        assert len(self._accounts) <= self.accounts_max
        kept = sum(len(accounts) for accounts in self._workflows.values())
        assert kept == sum(bool(name.workflow) for name in self._accounts)
        assert all(account.into is None for account in self)
