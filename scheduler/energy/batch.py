"""Who shared the engine's steps with whom? Integrals over time that cost O(1) an event, however many calls decode."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Hashable


class Marks(NamedTuple):
    """The integrals as they stood at some moment: what a member has of them is the difference of two."""

    shared_seconds: float
    """∫ dt / members: a member's part of the time."""
    member_seconds: float
    """∫ dt while there are members."""
    repeated_tokens_seconds: float
    """∫ Σ tokens · (n − 1) / n dt over the member's groups of n each: read by each step, but from the L2 cache."""


Prefixes = tuple[tuple["Hashable", float], ...]
"""Growing beginnings of a prompt that other calls may have too: (what names it, its tokens) each."""
DEPTH_MAX = 8
"""Beginnings of one prompt that are told apart; of more, the first and the last."""


class Group:
    """Members whose prompts have the same stretch of `tokens` tokens behind the same beginning: the first reads it from
    memory, n − 1 again."""

    __slots__ = ("at", "integral", "key", "members", "tokens")

    def __init__(self, key: Hashable, tokens: float, at: float) -> None:
        self.key = key
        self.tokens = tokens
        self.members = 0
        self.integral = 0.0
        self.at = at

    def advance(self, member_seconds: float) -> None:
        """Up to this mark of the clock."""
        if self.members > 1:
            self.integral += (member_seconds - self.at) * self.tokens * (self.members - 1) / self.members
        self.at = member_seconds


class BatchClock:
    """Members are the sequences that decode, as the gateway knows them. Time never goes back: earlier is as now."""

    def __init__(self, now: float) -> None:
        self.now = now
        self.members = 0
        self.in_flight = 0
        self.busy_seconds = 0.0
        """∫ dt while a call is in flight, less `frontend_seconds` of each stretch."""
        self.shared_seconds = self.member_seconds = 0.0
        self._groups: dict[Hashable, Group] = {}

    def advance(self, now: float) -> None:
        """Up to this time."""
        passed = now - self.now
        if passed <= 0:
            return
        self.now = now
        if self.in_flight:
            self.busy_seconds += passed
        if self.members:
            self.member_seconds += passed
            self.shared_seconds += passed / self.members

    def sent(self, frontend_seconds: float) -> None:
        """One more in flight."""
        if not self.in_flight:
            self.busy_seconds -= frontend_seconds
        self.in_flight += 1

    def left(self) -> None:
        """One fewer."""
        self.in_flight -= 1

    def join(self, prefixes: Prefixes) -> list[Group] | None:
        """One more member, with its prompt's beginnings; returns its groups, which it gives back when it leaves."""
        self.members += 1
        if not prefixes:
            return None
        if len(prefixes) > DEPTH_MAX:
            prefixes = (*prefixes[: DEPTH_MAX // 2], *prefixes[-DEPTH_MAX // 2 :])
        groups, before = [], 0.0
        for key, tokens in prefixes:
            group = self._groups.get(key)
            if group is None:
                group = self._groups[key] = Group(key, tokens - before, self.member_seconds)
            group.advance(self.member_seconds)
            group.members += 1
            groups.append(group)
            before = tokens
        return groups

    def leave(self, groups: list[Group] | None) -> None:
        """One fewer."""
        self.members -= 1
        for group in groups or ():
            group.advance(self.member_seconds)
            group.members -= 1
            if not group.members:
                del self._groups[group.key]

    def marks(self, groups: list[Group] | None) -> Marks:
        """As they stand now for a member of these groups."""
        again = 0.0
        for group in groups or ():
            group.advance(self.member_seconds)
            again += group.integral
        return Marks(self.shared_seconds, self.member_seconds, again)
