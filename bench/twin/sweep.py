"""The arrivals of a measured sweep, drawn again: its generator was seeded, and each row says how much it used of it."""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

OPEN_SECONDS = 12.0
COALESCE_SECONDS = 16.0
COALESCE_SEED = 11
SEED = 7
PROMPT_TOKENS = 512
OUTPUT_TOKENS = 128
"""Of the open and coalesce rows."""
_WARM_TOKENS = 64 * 64
_TOKEN_IDS = (10, 120_000)
_SHAPE = re.compile(r"(?:shared(\d+)\+|unique)?(\d+)in/(\d+)out")


class Shape(NamedTuple):
    """Of a closed row: `shared6000+200in/128out`."""

    prompt_tokens: int
    output_tokens: int
    shared_tokens: int


def shape_of(name: str) -> Shape:
    """What the name of a closed row says. ValueError for a name of another form."""
    match = _SHAPE.fullmatch(name)
    if match is None:
        raise ValueError(f"name: {name!r} is not like 256in/128out or shared6000+200in/128out")
    shared = int(match[1] or 0)
    return Shape(shared + int(match[2]), int(match[3]), shared)


def poisson(rate: float, seconds: float, rng: random.Random) -> list[float]:
    """Arrival times; the last is the first behind `seconds`."""
    times = [rng.expovariate(rate)]
    while times[-1] < seconds:
        times.append(times[-1] + rng.expovariate(rate))
    return times


def open_arrivals(rows: Sequence[dict[str, Any]]) -> dict[int, list[float]]:
    """Place of each open row in the file → its arrival times.

    The sweep drew its prompts and arrivals from one generator, so the rows before an open row say where that stood. A
    file of another origin is noticed, because the count of arrivals differs from its `n`: then arrivals are drawn anew
    until the count is right.
    """
    found: dict[int, list[float]] = {}
    if not any(row["kind"] == "open" for row in rows):
        return found
    rng = random.Random(SEED)
    tokens_drawn = _WARM_TOKENS
    shared_drawn = False
    for place, row in enumerate(rows):
        kind = row["kind"]
        if kind == "coalesce":
            tokens_drawn += row["n"] * PROMPT_TOKENS
        elif kind == "decode":
            tokens_drawn += row["batch"] * row["context"]
        elif kind == "prefill":
            tokens_drawn += (row["n"] + 2) * row["tokens"]
        elif kind == "closed":
            shape = shape_of(row["name"])
            if shape.shared_tokens and not shared_drawn:
                tokens_drawn += shape.shared_tokens
                shared_drawn = True
            tokens_drawn += row["n"] * (shape.prompt_tokens - shape.shared_tokens)
        elif kind == "open":
            _skip(rng, tokens_drawn)
            tokens_drawn = 0
            times = _open(row["rate"], rng)
            if len(times) != row["n"]:
                times = _with_count(row["rate"], row["n"])
            found[place] = times
    return found


def _skip(rng: random.Random, tokens: int) -> None:
    for _ in range(tokens):
        rng.randrange(*_TOKEN_IDS)


def _open(rate: float, rng: random.Random) -> list[float]:
    """As `poisson`, with a prompt drawn behind each arrival."""
    times: list[float] = []
    at = 0.0
    while at < OPEN_SECONDS:
        at += rng.expovariate(rate)
        times.append(at)
        _skip(rng, PROMPT_TOKENS)
    return times


def _with_count(rate: float, count: int) -> list[float]:
    rng = random.Random(SEED)
    for _ in range(10_000):
        times = poisson(rate, OPEN_SECONDS, rng)
        if len(times) == count:
            return times
    raise ValueError(f"n: {count} arrivals in {OPEN_SECONDS:g} s are out of the question at rate {rate:g}")


def coalesce_arrivals(rate: float, hold_seconds: float) -> tuple[list[float], list[float]]:
    """Arrival times, and when each is sent: held requests go together each `hold_seconds`, the rest at the end."""
    arrivals = poisson(rate, COALESCE_SECONDS, random.Random(COALESCE_SEED))
    if not hold_seconds:
        return arrivals, arrivals
    sent: list[float] = []
    waiting, release_at = 0, hold_seconds
    for at in arrivals:
        while release_at < at:
            sent += [release_at] * waiting
            waiting, release_at = 0, release_at + hold_seconds
        waiting += 1
    return arrivals, sent + [arrivals[-1]] * waiting
