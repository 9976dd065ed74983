"""Which block is it now, and whose? Blocks come in pairs whose order the seed decides, whatever happens meanwhile."""

from __future__ import annotations

from typing import NamedTuple

from scheduler.experiments.chance import share_of
from scheduler.experiments.definition import CONTROL, TREATMENT, Definition

LEAD_IN = -1
"""Number of the block of control before the first pair."""


class Block(NamedTuple):
    """A stretch of time. Times are in the experiment's seconds."""

    number: int
    pair: int
    """-1: the lead-in."""
    arm: int
    """Of the whole pool, or (`split_and_swap`) of the first half of the engines; the other half has the other arm."""
    start: float
    measured_from: float
    """What is before belongs to the wash-out."""
    end: float
    treated_share: float
    """Of the workflows of a treatment block that get the treatment: below 1 while ramping up."""

    @property
    def measured_seconds(self) -> float:
        """How long it counts."""
        return self.end - self.measured_from

    def arm_of_side(self, side: int) -> int:
        """The arm of one half of the engines (0 or 1)."""
        return self.arm if side == 0 else 1 - self.arm


def first_arm(seed: int, pair: int) -> int:
    """The arm of the first block of a pair: a coin that seed and number decide. The second block has the other."""
    return TREATMENT if share_of("order", seed, pair) < 0.5 else CONTROL


class Schedule:
    """A pure function of the definition and the start; it has no state."""

    def __init__(self, definition: Definition, started_at: float) -> None:
        self.definition = definition
        self.started_at = started_at
        self.first_block_at = started_at + definition.lead_in_seconds
        self.ends_at = started_at + definition.duration_seconds

    def number_at(self, now: float) -> int:
        """The block at this time; -1: the lead-in, also for times before the start; `blocks` and more: it is over."""
        if now < self.first_block_at:
            return LEAD_IN
        number = int((now - self.first_block_at) // self.definition.block_seconds)
        # An edge belongs to the block that begins there, whatever the division made of it.
        if now >= self._start(number + 1):
            return number + 1
        return number - 1 if now < self._start(number) else number

    def _start(self, number: int) -> float:
        return self.first_block_at + number * self.definition.block_seconds

    def block(self, number: int) -> Block:
        """The block of that number, -1 to `blocks` - 1."""
        definition = self.definition
        washout = 0.0 if definition.design in ("interleaved", "shadow") else definition.washout_seconds
        if number == LEAD_IN:
            start = self.started_at
            return Block(LEAD_IN, -1, CONTROL, start, start + min(washout, definition.lead_in_seconds / 2),
                         self.first_block_at, 1.0)  # fmt: skip
        pair, place = divmod(number, 2)
        first = first_arm(definition.seed, pair)
        arm = first if place == 0 else 1 - first
        if definition.design == "shadow":
            arm = CONTROL
        ramp = definition.ramp_up
        start = self._start(number)
        share = ramp[pair] if pair < len(ramp) else 1.0
        return Block(number, pair, arm, start, start + washout, self._start(number + 1), share)

    def block_at(self, now: float) -> Block | None:
        """None: it is over."""
        number = self.number_at(now)
        return None if number >= self.definition.blocks else self.block(number)

    def is_ramp_up(self, block: Block) -> bool:
        """Its pair is guarded and not analysed."""
        return 0 <= block.pair < len(self.definition.ramp_up)
