"""Who pays for a shared prefix? All that used it, the same; later ones take over what the first paid."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from scheduler.energy.bill_prices import prefill_joules

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

    from scheduler.energy.bill_accounts import Account
    from scheduler.energy.bill_calls import CallBill
    from scheduler.energy.bill_prices import Tariff

    Move = Callable[[CallBill, Account, int], None]
    """Adds so many microjoules (also below 0) to a call's and its account's prefill."""

MEMBERS_MAX = 64
"""Calls that share one prefix at once. Then the oldest quarter leaves the circle with what they have paid."""
LEAVING = 16
OFTEN = 4
"""Up to so many members, newcomers are reckoned with at the next window; beyond, when there are half as many more."""
BLOCK_TOKENS = 16
"""The engine caches whole blocks of so many tokens: a prefix that was cached but for the last of them was cached."""


class Member:
    """A call that used the prefix, and what it has paid for it."""

    __slots__ = ("account", "call", "paid")

    def __init__(self, call: CallBill, account: Account, paid: int) -> None:
        self.call = call
        self.account = account
        self.paid = paid


class Prefix:
    """What was spent in computing it, and by whom it was used. Σ paid = what was spent, whenever one looks."""

    __slots__ = ("even_at", "members")

    def __init__(self) -> None:
        self.members: list[Member] = []
        self.even_at = 0
        """How many members there were when all had paid the same."""

    def even_out(self, move: Move) -> None:
        """All pay the same, to the microjoule: the remainder is the first ones'."""
        members = self.members
        share, rest = divmod(sum(member.paid for member in members), len(members))
        for place, member in enumerate(members):
            owed = share + (place < rest)
            if owed != member.paid:
                move(member.call, member.account, owed - member.paid)
                member.paid = owed
        self.even_at = len(members)


class SharedPrefixes:
    """At most `prefixes_max` prefixes; the one used longest ago is forgotten, and what was paid for it stays paid.

    The one-off cost of a prefix is a game whose value is the same whoever is in it: its Shapley value is equal shares.
    All that was spent on a prefix is shared by all who used it, also where it was computed more than once (at the same
    time, or after the engine had dropped it).
    """

    def __init__(self, prefixes_max: int) -> None:
        self.prefixes_max = prefixes_max
        self._prefixes: OrderedDict[Hashable, Prefix] = OrderedDict()
        self._fresh: dict[Prefix, None] = {}
        """Joined since the last window."""

    def __len__(self) -> int:
        return len(self._prefixes)

    def joined(self, call: CallBill, tariff: Tariff, *, across_keys: bool) -> None:
        """A call is settled, its own prefill billed in full: what of it others use too is theirs to share."""
        account = call.account
        engine, key, _, model = account.name
        for mark, paid in _spent(call, tariff):
            name = (engine, model, mark) if across_keys else (engine, model, mark, key)
            prefix = self._prefixes.get(name)
            if prefix is None:
                prefix = self._prefixes[name] = Prefix()
            else:
                self._prefixes.move_to_end(name)
                self._fresh[prefix] = None
            prefix.members.append(Member(call, account, paid))

    def even_out(self, move: Move) -> None:
        """A window has closed: who has joined in it pays its part."""
        for prefix in self._fresh:
            count = len(prefix.members)
            if count <= OFTEN or 2 * count >= 3 * prefix.even_at or count > MEMBERS_MAX:
                prefix.even_out(move)
            if count > MEMBERS_MAX:
                del prefix.members[: count - MEMBERS_MAX + LEAVING]
                prefix.even_at = len(prefix.members)
        self._fresh.clear()
        while len(self._prefixes) > self.prefixes_max:
            self._prefixes.popitem(last=False)[1].even_out(move)

    def validate(self) -> None:
        """Every invariant. AssertionError otherwise."""
        assert len(self._prefixes) <= self.prefixes_max
        assert all(0 < len(prefix.members) <= MEMBERS_MAX for prefix in self._prefixes.values())


def _spent(call: CallBill, tariff: Tariff) -> Iterator[tuple[Hashable, int]]:
    """Each stretch of the prompt that ends at a mark: (mark, what the call paid to compute it; 0: it was cached)."""
    prompt, cached = call.prompt_tokens or 0.0, call.cached_tokens
    own = prefill_joules(tariff, min(cached, prompt), prompt)
    billed = call.amounts[0]
    start = 0.0
    for mark, end in call.marks:
        end = min(end, prompt)
        if end <= start:
            continue
        computed_from = max(start, cached)
        paid = 0
        if end - computed_from > BLOCK_TOKENS and own > 0:
            paid = max(int(billed * (prefill_joules(tariff, computed_from, end) / own)), 0)
        yield mark, paid
        start = end
