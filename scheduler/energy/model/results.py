"""What does the model answer? Figures with intervals, never bare ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from scheduler.energy.window import Why

CapState = Literal["none", "not_binding", "binding"]


class Interval(NamedTuple):
    """A figure and the bounds between which the truth should lie nine times out of ten."""

    value: float
    low: float
    high: float

    def times(self, factor: float) -> Interval:
        """In another unit, or a part of it; factor ≥ 0."""
        return Interval(self.value * factor, self.low * factor, self.high * factor)


class WindowCost(NamedTuple):
    """Of some work within some seconds. Joules include idle power for all of the time."""

    joules: Interval
    busy_seconds: Interval
    """Under the cap. More than the window's seconds: the work does not fit into it."""
    cap_state: CapState
    """Whether the cap is thought to bind in any part of it."""


class StepCost(NamedTuple):
    """Of one engine step. Joules and watts include idle power."""

    seconds: Interval
    joules: Interval
    watts: Interval


class TokenCost(NamedTuple):
    """Of one decoded token: `seconds` are a step's (ITL), `joules` one sequence's part, idle power included."""

    seconds: Interval
    joules: Interval


class CallCost(NamedTuple):
    """Of a call among `batch` sequences like it, itself included. `joules`: what it adds above idle power, and its
    part of the fixed cost of the steps. `seconds`: from prefill to its last token, without any wait."""

    seconds: Interval
    joules: Interval


class Learned(NamedTuple):
    """What the model said of a window before it saw the window's energy, and what it made of it then."""

    used: bool
    """It taught something. Otherwise `marked` says why not, or there was no energy in it."""
    marked: tuple[Why, ...]
    predicted: WindowCost
    """Knowing its work and busy time."""
    planned: WindowCost
    """Knowing its work alone."""
    measured_joules: float | None
    covered: bool | None
    """The interval held the measured joules."""
    drift: bool
    """This window raised the alarm."""
