"""Thousands of experiments out of a library of played blocks: traffic of changing load, the design's own coins, and for
each block the library's row of the arm that it had and of the arm that was there before."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from scheduler.experiments.definition import CONTROL, TREATMENT
from scheduler.experiments.schedule import first_arm

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bench.experiments.library import Library
    from scheduler.experiments.rows import BlockRow

Traffic = Literal["stationary", "diurnal"]
DAY_SECONDS = 86_400.0
KEPT = 0.8
"""Of how far the load is from its mean, from one block to the next."""
WANDER = 0.9
"""Spread of that, in steps of the library's loads; each is about 1.4 times the one before."""
SWING = 2.2
"""Of a day, in the same steps, up and down."""


class Sums(NamedTuple):
    """What a ratio needs, by load, item, arm before and arm: joules, workflows that ended, arrivals, their tokens."""

    joules: NDArray[np.float64]
    ended: NDArray[np.float64]
    began: NDArray[np.float64]
    offered: NDArray[np.float64]


class Composed(NamedTuple):
    """One experiment: what was played in each block."""

    loads: NDArray[np.int64]
    """By pair and place in it, as all of these."""
    items: NDArray[np.int64]
    arms: NDArray[np.int64]
    before: NDArray[np.int64]


class Composer:
    """Experiments from one library."""

    def __init__(self, library: Library) -> None:
        self.library = library
        self.by_load = [library.of_load(load) for load in range(len(library.rates))]
        count = min(map(len, self.by_load))
        self.items = count

        def collected(name: str) -> NDArray[np.float64]:
            return np.array([
                [[[_of(row, name) for row in after] for after in each.rows] for each in load[:count]]
                for load in self.by_load
            ])  # fmt: skip

        self.sums = Sums(*map(collected, ("gpu_joules", "ended", "began", "offered_tokens")))

    def weakened(self, share: float) -> Composer:
        """The same with a treatment of which a block has this share, and for the rest is as it was under the control:
        its effect is smaller, and changes with the load as it did."""
        other = copy(self)
        other.sums = Sums(*((1 - share) * part[:, :, :1, :1] + share * part for part in self.sums))
        return other

    def compose(self, pairs: int, seed: int, traffic: Traffic, *, aa: bool = False) -> Composed:
        """An experiment of so many pairs; the seed decides everything. `aa`: the treatment is the control again."""
        rng = np.random.default_rng([seed, 7])
        loads = self.loads(2 * pairs, rng, traffic).reshape(pairs, 2)
        items = rng.integers(self.items, size=(pairs, 2))
        first = np.array([first_arm(seed, pair) for pair in range(pairs)])
        arms = np.stack([first, 1 - first], axis=1)
        before = np.concatenate([[CONTROL], arms.ravel()[:-1]]).reshape(pairs, 2)
        return Composed(loads, items, arms, before * (not aa))

    def loads(self, blocks: int, rng: np.random.Generator, traffic: Traffic) -> NDArray[np.int64]:
        """The load of each block: a mean that stands or swings over the day, and a wander around it."""
        steps = rng.normal(scale=WANDER * np.sqrt(1 - KEPT**2), size=blocks)
        steps[0] = rng.normal(scale=WANDER)
        level = np.empty(blocks)
        at = 0.0
        for number in range(blocks):
            at = KEPT * at + steps[number] if number else steps[0]
            level[number] = at
        middle = (len(self.by_load) - 1) / 2
        if traffic == "diurnal":
            turn = np.arange(blocks) * self.library.shape.block_seconds / DAY_SECONDS + rng.random()
            level = level + SWING * np.sin(2 * np.pi * turn)
        found: NDArray[np.int64] = np.clip(np.rint(middle + level), 0, len(self.by_load) - 1).astype(np.int64)
        return found

    def seen(self, made: Composed, *, aa: bool = False) -> Sums:
        """What the experiment sees: by pair, control then treatment."""
        played = made.arms * (not aa)
        order = np.argsort(made.arms, axis=1)
        return Sums(*(
            np.take_along_axis(part[made.loads, made.items, made.before, played], order, axis=1) for part in self.sums
        ))  # fmt: skip

    def true_differences(self, made: Composed) -> NDArray[np.float64]:
        """Of each pair: the log of its ratio with every block under the treatment over that with every block under the
        control, on the same arrivals."""
        return np.diff(np.log(self._both(made, "joules") / self._both(made, "ended")), axis=1)[:, 0]

    def true_effect(self, made: Composed) -> float:
        """Of the whole experiment: log of the ratio of the ratios of sums, both arms on the same arrivals."""
        joules, ended = (self._both(made, name).sum(axis=0) for name in ("joules", "ended"))
        return float(np.diff(np.log(joules / ended))[0])

    def _both(self, made: Composed, name: str) -> NDArray[np.float64]:
        part = getattr(self.sums, name)
        return np.stack([part[made.loads, made.items, arm, arm].sum(axis=1) for arm in (CONTROL, TREATMENT)], axis=1)

    def rows(self, made: Composed, *, aa: bool = False) -> list[BlockRow]:
        """As the gateway would have kept them."""
        shape = self.library.shape
        found = []
        for number in range(made.loads.size):
            pair, place = divmod(number, 2)
            arm, before = int(made.arms[pair, place]), int(made.before[pair, place])
            each = self.by_load[made.loads[pair, place]][made.items[pair, place]]
            start = number * shape.block_seconds
            found.append(each.rows[before][arm * (not aa)]._replace(
                number=number, pair=pair, arm=arm, start=start, measured_from=start + shape.washout_seconds,
                end=start + shape.block_seconds,
            ))  # fmt: skip
        return found


class SplitComposer(Composer):
    """The same with two engines: one arm on each, swapped in the second block of a pair (`split_and_swap`). Arrays of
    a `Composed` have a last axis more, the engine. Both have the same load and arrivals of their own."""

    def __init__(self, library: Library, joules_share: float = 0.06) -> None:
        super().__init__(library)
        self.factors = np.array([1.0, 1.0 + joules_share])
        """Cards differ: the second one takes so many joules more for the same."""

    def compose(self, pairs: int, seed: int, traffic: Traffic, *, aa: bool = False) -> Composed:
        """As a switchback's, for both engines."""
        made = super().compose(pairs, seed, traffic, aa=aa)
        items = np.random.default_rng([seed, 11]).integers(self.items, size=(pairs, 2, 2))
        arms = np.stack([made.arms, 1 - made.arms], axis=-1)
        before = np.concatenate([np.full((1, 2), CONTROL), arms.reshape(-1, 2)[:-1]]).reshape(arms.shape)
        return Composed(np.repeat(made.loads[..., None], 2, axis=-1), items, arms, before * (not aa))

    def seen(self, made: Composed, *, aa: bool = False) -> Sums:
        """By pair and arm: its block on the one engine and its block on the other."""
        played = made.arms * (not aa)

        def by_arm(part: NDArray[np.float64], factors: NDArray[np.float64]) -> NDArray[np.float64]:
            values = part[made.loads, made.items, made.before, played] * factors
            return np.stack([np.where(made.arms == arm, values, 0.0).sum(axis=(1, 2)) for arm in (0, 1)], axis=1)

        alike = np.ones(2)
        return Sums(by_arm(self.sums.joules, self.factors), *(by_arm(part, alike) for part in self.sums[1:]))

    def _both(self, made: Composed, name: str) -> NDArray[np.float64]:
        part, factors = getattr(self.sums, name), self.factors if name == "joules" else np.ones(2)
        each = [(part[made.loads, made.items, arm, arm] * factors).sum(axis=(1, 2)) for arm in (CONTROL, TREATMENT)]
        return np.stack(each, axis=1)


def _of(row: BlockRow, name: str) -> float:
    value = getattr(row, name)
    assert value is not None, "the twin's energy is always known"
    return float(value)
