"""Who pays for which joules? Windows and ends of calls in; accounts, bills of calls and conservation out."""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from scheduler.energy.bill_accounts import NAME_MAX, PREFILL, AccountTable, add, figure, sums_of, weakest
from scheduler.energy.bill_calls import PARTS_MAX, UNKNOWN, CallBill, Estimate, joules_of, shown
from scheduler.energy.bill_engine import EngineBook
from scheduler.energy.bill_prefix import SharedPrefixes
from scheduler.energy.bill_prices import MICRO

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scheduler.energy.batch import Prefixes
    from scheduler.energy.bill_accounts import Account, Change, Figure, Source
    from scheduler.energy.bill_calls import Call
    from scheduler.energy.bill_engine import EngineChange
    from scheduler.energy.bill_prices import Tariff
    from scheduler.energy.bill_split import WindowBill
    from scheduler.energy.window import Window

_new = tuple.__new__
"""Makes a named tuple in half the time."""
GIVEN_UP_SHARE = 64
"""One of so many calls that are not settled is given up at once where there are too many."""


class BillLimits(NamedTuple):
    """Every bound of the bill's tables. What is over goes into accounts of others: no joule is lost."""

    live_calls: int = 65_536
    """Not settled; the oldest is given up: its further windows are billed to others."""
    settled_calls: int = 16_384
    """Kept for reading."""
    accounts: int = 10_000
    prefixes: int = 4_096
    prefixes_across_keys: bool = True
    """The engine's cache is shared by all keys, and so is its cost; False: each key pays for what it computed."""


class Moved(NamedTuple):
    """What prefix sharing moved between calls that are settled; all of a window's are 0 together."""

    key: str
    workflow: str
    joules: float


class Closed(NamedTuple):
    """What became of a window."""

    bill: WindowBill
    settled: tuple[CallBill, ...]
    """Calls whose windows have all closed."""
    moved: tuple[Moved, ...]


class Bill:
    """One gateway's. Pure: time is what it is told. `joulegate-bench energy-cost` says what a call costs."""

    def __init__(self, limits: BillLimits | None = None) -> None:
        self.limits = limits or BillLimits()
        self.accounts = AccountTable(self.limits.accounts)
        self.engines: dict[str, EngineBook] = {}
        self.prefixes = SharedPrefixes(self.limits.prefixes)
        self.given_up = 0
        """Calls that were dropped because there were too many."""
        self._live: dict[str, CallBill] = {}
        self._settled: dict[str, CallBill] = {}
        self._in_order: deque[str] = deque()
        """Settled calls, the first ones first."""
        self._news: list[CallBill] = []
        self._moved: dict[tuple[str, str], int] = {}

    # --- a call's life ---

    def dispatched(
        self, call_id: str, key: str, workflow_id: str, model: str | None, engine: str,
        now: float | None = None, marks: Prefixes = (),
    ) -> None:  # fmt: skip
        """A call is given to an engine, for its first time or again. Named as in CallArrived and Dispatch.

        `marks`: beginnings of its prompt, growing, that other calls may share; none: its prefill is its own.
        """
        book = self.engines.get(engine) or self._engine(engine)
        account = self.accounts.open((engine, key, workflow_id, model or ""))
        account.calls += 1
        self.accounts.touched[account] = None
        since = book.at if now is None else now
        if since > book.at:
            if calls := book.calls:
                book.shared_seconds += (since - book.at) / calls
            book.at = since
        shared = book.shared_seconds
        book.calls += 1
        live = self._live
        call = live.get(call_id)
        if call is None:
            live[call_id] = CallBill(call_id, marks, account, book, since, shared)
            if len(live) > self.limits.live_calls:
                self._give_up()
            return
        if call.over_at is None:
            call.book.calls -= 1
        call.book = book
        call.account, call.guess, call.open_at = account, None, (*call.open_at, engine)
        call.since, call.shared = since, shared

    def placed(self, call_id: str, marks: Prefixes) -> None:
        """A call's prompt was looked at since it was dispatched. `marks`: as in `dispatched`."""
        call = self._live.get(call_id)
        if call is not None and not call.marks:
            call.marks = marks

    def guess(
        self, call_id: str, prompt_tokens: float | None, cached_tokens: float | None, output_tokens: float | None,
        now: float | None = None,
    ) -> Estimate | None:  # fmt: skip
        """What a call is thought to have used if it ends now; for its answer's headers. `ended` will say the same.

        Tokens as the engine counted them, or as far as they were seen; None = not known. None is returned for a call
        that no engine was given: it has no bill.
        """
        call = self._live.get(call_id)
        if call is None:
            return None
        if call.over_at is not None:
            return call.estimate
        tokens = prompt_tokens, cached_tokens, output_tokens
        guess = call.guess
        if guess is not None and guess[0] == tokens:
            return guess[1]
        book = call.book
        quoted = book.quote
        if quoted is None or prompt_tokens is None or output_tokens is None or call.unknown:
            made = UNKNOWN
        else:
            if cached_tokens is None:
                cached_tokens = prompt_tokens * (1.0 - book.company.computed_share)
            elif cached_tokens > prompt_tokens:
                cached_tokens = prompt_tokens
            at = book.at if now is None else now
            if at > book.at:
                book.shared_until(at)
            stay = at - call.since
            part = (book.shared_seconds - call.shared) / stay if stay > 0 else 1.0 / book.calls
            joules = joules_of(quoted, prompt_tokens, cached_tokens, output_tokens, part)
            half = (quoted[5] + book.company.error) * joules
            made = _new(Estimate, (joules, joules - half if half < joules else 0.0, joules + half, quoted[6]))
        call.guess = tokens, made
        return made

    def ended(
        self, call_id: str, prompt_tokens: float | None, cached_tokens: float | None, output_tokens: float | None,
        now: float,
    ) -> Estimate | None:  # fmt: skip
        """A call is over, whatever became of it: answered, failed for good, cancelled, its client gone. As `guess`."""
        call = self._live.get(call_id)
        if call is None:
            return None
        if call.over_at is not None:
            return call.estimate
        book, made = call.book, call.guess
        if made is not None and made[0] == (prompt_tokens, cached_tokens, output_tokens):
            guess = made[1]
        else:
            guess = self.guess(call_id, prompt_tokens, cached_tokens, output_tokens, now) or UNKNOWN
        if now > book.at:
            book.shared_until(now)
        book.calls -= 1
        call.over_at, call.estimate = now, guess
        if prompt_tokens is not None:
            call.prompt_tokens = prompt_tokens
            if cached_tokens is None:
                cached_tokens = prompt_tokens * (1.0 - book.company.computed_share)
            call.cached_tokens = min(prompt_tokens, cached_tokens)
        open_at = call.open_at
        if open_at is book.alone:
            book.over.append(call)
        elif open_at:
            for name in open_at:
                self.engines[name].over.append(call)
        else:
            self._settle([call], book)
        return guess

    def preliminary(self, call_id: str) -> Estimate | None:
        """What `ended` said, as long as the call is remembered."""
        call = self._live.get(call_id) or self._settled.get(call_id)
        return None if call is None else call.estimate

    # --- windows ---

    def close(self, window: Window, tariff: Tariff | None) -> Closed:
        """Bill a window; `tariff`: what the engine's model believes now, None where there is no model.

        Each engine's windows in their order. What is returned is of interest to budgets.
        """
        book = self._engine(window.engine)
        bill = book.split(window, tariff)
        book.book(bill)
        over: list[CallBill] = []
        if bill.source == "unavailable":
            self._book_unknown(window, book, over)
        elif len(window.calls):
            self._book(bill, bill.source, book, over)
        over += self._overdue(book, window)
        self._settle(over, book)
        self.prefixes.even_out(self._move)
        settled, self._news = tuple(self._news), []
        moved = tuple(Moved(*whose, value / MICRO) for whose, value in self._moved.items() if value)
        self._moved.clear()
        return Closed(bill, settled, moved)

    def priced(self, engine: str, tariff: Tariff | None, *, simulated: bool = False) -> None:
        """What the engine's model believes before any window has closed: for estimates."""
        self._engine(engine).priced(tariff, "simulated" if simulated else "modelled")

    def _book(self, bill: WindowBill, source: Source, book: EngineBook, over: list[CallBill]) -> None:
        """Shares to calls one by one, and to accounts in sums."""
        shares, engine, alone = bill.window.calls, book.name, book.alone
        rows = bill.rows
        places: dict[Account, int] = {}
        place_of = []
        marginals = rows[:, :4].sum(axis=1).tolist()
        account: Account | None = None
        place = -1
        for number, (call, marginal, ended, computed) in enumerate(
            zip(
                map(self._live.get, shares.ids), marginals, shares.ended.tolist(), shares.prompt_tokens.tolist(),
                strict=True,
            )
        ):  # fmt: skip
            if call is None:
                account = self.accounts.others(engine)
                place_of.append(places.setdefault(account, len(places)))
                continue
            if call.account is not account:  # calls of a workflow come one after the other
                account = call.account
                if account.into is not None or account.name[0] != engine:
                    account = self._account(call, engine)
                place = places.setdefault(account, len(places))
            place_of.append(place)
            call.marginal += marginal
            if parts := call.parts:
                call.parts = (*parts, rows, number)
                if len(parts) >= PARTS_MAX:
                    _ = call.amounts
            else:
                call.parts = (rows, number)
            if (before := call.source) != source:
                call.source = source if before == "unavailable" else weakest((before, source))
            if ended:
                call.computed_tokens += computed
                if call.open_at is alone:
                    call.open_at = ()
                    if call.over_at is not None:
                        over.append(call)
                else:
                    self._window_ended(call, engine, over)
        for account, sums in zip(places, sums_of(rows, place_of), strict=True):
            add(self.accounts.touch(account).amounts(source), sums)

    def _book_unknown(self, window: Window, book: EngineBook, over: list[CallBill]) -> None:
        """Nobody can tell whose joules these are; but whose time it was."""
        for share in window.calls:
            call = self._live.get(share.call_id)
            account = self.accounts.others(book.name) if call is None else self._account(call, book.name)
            self.accounts.touch(account).unknown_seconds += share.engine_seconds
            if call is not None:
                call.unknown = call.unknown or share.engine_seconds > 0
                if share.ended:
                    self._window_ended(call, book.name, over)

    @staticmethod
    def _window_ended(call: CallBill, engine: str, over: list[CallBill]) -> None:
        """This engine's windows name it no more."""
        open_at = call.open_at
        if engine in open_at:
            place = open_at.index(engine)
            call.open_at = (*open_at[:place], *open_at[place + 1 :])
            if not call.open_at and call.over_at is not None:
                over.append(call)

    def _overdue(self, book: EngineBook, window: Window) -> list[CallBill]:
        """Calls that were over before this window began, and whose end no window has named: none will."""
        name, start = book.name, window.start
        waiting = [call for call in book.over if call.open_at]
        late = [call for call in waiting if (call.over_at or 0.0) < start]
        book.over = [call for call in waiting if (call.over_at or 0.0) >= start] if late else waiting
        for call in late:
            if name in call.open_at:
                call.open_at = tuple([engine for engine in call.open_at if engine != name])
        return [call for call in late if not call.open_at and call.id in self._live]

    def _settle(self, calls: Iterable[CallBill], book: EngineBook) -> None:
        """All their windows have closed: what they come to is known, and of their prefill what others use is shared."""
        live, settled, order = self._live, self._settled, self._in_order
        some = [call for call in calls if live.pop(call.id, None) is not None]
        book.judge(some)
        self._news += some
        across, tariff = self.limits.prefixes_across_keys, book.tariff
        for call in some:
            call.settled = True
            name = call.id
            settled[name] = call
            order.append(name)
            if call.marks and tariff is not None and call.source != "unavailable":
                self.prefixes.joined(call, tariff, across_keys=across)
        while len(order) > self.limits.settled_calls:
            settled.pop(order.popleft(), None)

    def _move(self, call: CallBill, account: Account, microjoules: int) -> None:
        """Of a shared prefix, from one that paid more to one that paid less. Of no effect on any engine's sums."""
        account = self.accounts.touch(account)
        account.amounts(self._engine(account.name.engine).source)[PREFILL] += microjoules
        call.moved(microjoules)
        whose = call.account.name[1:3]
        self._moved[whose] = self._moved.get(whose, 0) + microjoules

    def _account(self, call: CallBill, engine: str) -> Account:
        account = call.account
        if account.name.engine != engine:  # it was given to another engine since
            account = self.accounts.open((engine, *account.name[1:]))
        return self.accounts.touch(account)

    def _engine(self, name: str) -> EngineBook:
        book = self.engines.get(name)
        if book is None:
            book = self.engines[name] = EngineBook(name)
        return book

    def _give_up(self) -> None:
        """The oldest calls are not followed any more: what they have used so far is their bill."""
        for call_id in [*islice(self._live, 1 + self.limits.live_calls // GIVEN_UP_SHARE)]:
            call = self._live.pop(call_id)
            if call.over_at is None:
                call.book.calls -= 1
            self.given_up += 1
            self._news.append(call)

    # --- reading ---

    def call(self, call_id: str) -> Call | None:
        """A call's bill; None if it is not remembered (any more), or no engine was given it."""
        call = self._live.get(call_id) or self._settled.get(call_id)
        return None if call is None else shown(call)

    def workflow(self, key: str, workflow_id: str) -> Figure:
        """A workflow's; `unavailable` if it is not kept apart (any more)."""
        name = workflow_id[:NAME_MAX]
        calls = {call for book in self.engines.values() for call in book.over if not call.settled}
        pending = sum(_pending(call) for call in calls if call.account.name[1:3] == (key, name))
        return figure(self.accounts.workflow(key, name), pending)

    def drain(self) -> tuple[list[Change], list[EngineChange]]:
        """What has been booked since the last time, for whoever keeps it: each microjoule once."""
        return self.accounts.drain(), [change for book in self.engines.values() for change in book.drain()]

    def validate(self) -> None:
        """Conservation, to the microjoule, and every bound. AssertionError otherwise."""
        for book in self.engines.values():
            own = [account for account in self.accounts if account.name.engine == book.name]
            book.validate(own)
        self.accounts.validate()
        self.prefixes.validate()
        assert len(self._live) <= self.limits.live_calls
        assert len(self._settled) <= self.limits.settled_calls
        assert not any(call.settled for call in self._live.values())


def _pending(call: CallBill) -> int:
    """Microjoules of the estimate that no window has billed so far."""
    if call.over_at is None or call.estimate.joules is None:
        return 0
    return max(round(call.estimate.joules * MICRO) - call.marginal, 0)
