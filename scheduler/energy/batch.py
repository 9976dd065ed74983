"""Who shared the engine's steps with whom? Integrals over the calls' stays, for all of a window at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable

    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

Prefixes = tuple[tuple["Hashable", float], ...]
"""Growing beginnings of a prompt that other calls may have too: (what names it, its tokens) each."""
DEPTH_MAX = 8
"""Beginnings of one prompt that are told apart; of more, the first and the last."""


class Shared(NamedTuple):
    """Of members that decode from `start` to `end`, shape (members,) each."""

    seconds: Floats
    """∫ dt / members: a member's part of the time."""
    at_joining: Floats
    """How many there were when it had joined, itself among them."""
    occupied_seconds: float
    """∫ dt while there was one at all."""


def shared(start: Floats, end: Floats) -> Shared:
    """Each member's part of the time."""
    count = len(start)
    if not count:
        return Shared(start, start, 0.0)
    times = np.concatenate([start, end])
    order = np.argsort(times, kind="stable")  # who joins at the same time as another leaves meets it
    signs = np.ones(2 * count)
    signs[count:] = -1.0
    members = np.cumsum(signs[order])
    passed = np.diff(times[order], append=times[order[-1]])
    integral = np.zeros(2 * count)
    np.cumsum(passed[:-1] / np.maximum(members[:-1], 1.0), out=integral[1:])
    # Where nobody is there nothing is shared: no stay reaches over such a time.
    at = np.empty(2 * count, dtype=np.intp)
    at[order] = np.arange(2 * count)
    seconds = integral[at[count:]] - integral[at[:count]]
    return Shared(seconds, members[at[:count]], float(passed[members > 0].sum()))


def read_again(prefixes: Iterable[tuple[int, Prefixes]], start: Floats, end: Floats) -> Floats:
    """∫ Σ tokens · (n − 1) / n dt over each member's groups of n each: read by each step, but from the L2 cache.

    `prefixes`: of some of the members, by their place. Members whose prompts have the same stretch of tokens behind the
    same beginning are a group: the first reads it from memory, n − 1 again.
    """
    groups: dict[Hashable, tuple[int, float]] = {}
    who, which, tokens = [], [], []
    for place, marks in prefixes:
        if len(marks) > DEPTH_MAX:
            marks = (*marks[: DEPTH_MAX // 2], *marks[-DEPTH_MAX // 2 :])
        before = 0.0
        for key, length in marks:
            group = groups.get(key)
            if group is None:
                group = groups[key] = (len(groups), length - before)
            who.append(place)
            which.append(group[0])
            tokens.append(group[1])
            before = length
    found = np.zeros(len(start))
    if not who:
        return found
    count, places = len(who), np.array(who)
    times = np.concatenate([start[places], end[places]])
    group_of = np.tile(np.array(which), 2)
    order = np.lexsort((times, group_of))  # within a group by time, joining before leaving
    signs = np.ones(2 * count)
    signs[count:] = -1.0
    members = np.cumsum(signs[order])  # each group ends at 0, so that one sum does for all
    passed = np.diff(times[order], append=0.0)
    again = np.where(members > 1, (members - 1) / np.maximum(members, 1.0) * passed, 0.0)
    integral = np.zeros(2 * count)
    np.cumsum(again[:-1], out=integral[1:])
    at = np.empty(2 * count, dtype=np.intp)
    at[order] = np.arange(2 * count)
    of_each = np.array(tokens) * (integral[at[count:]] - integral[at[:count]])
    return found + np.bincount(places, of_each, len(start))
