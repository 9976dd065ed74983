"""What can be asked of a card's power, whether a driver answers or the twin?"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal, NamedTuple

Source = Literal["measured", "simulated"]
Why = Literal["absent", "not_supported", "no_permission", "reset", "lost"]
Reading = Literal[
    "energy_joules", "power_watts", "instant_power_watts", "limits", "sm_clock_mhz", "temperature_celsius",
    "throttle_reasons",
]  # fmt: skip


class Unavailable(Exception):
    """A reading that is not there. Never a zero in its place."""

    def __init__(self, reading: str, why: Why, detail: str = "") -> None:
        super().__init__(f"{reading}: {why}" + (f" ({detail})" if detail else ""))
        self.reading = reading
        self.why: Why = why


class Limits(NamedTuple):
    """Power limits of one card. `requested` was asked for last; `enforced` is the strictest of all that bind."""

    requested_watts: float
    enforced_watts: float
    default_watts: float
    lowest_watts: float
    highest_watts: float


class PowerDevice(ABC):
    """One card. Every reading raises Unavailable where it cannot be had; `capabilities` says beforehand which can."""

    source: ClassVar[Source]
    name: str
    capabilities: frozenset[Reading]
    can_set_limit: bool

    @abstractmethod
    def energy_joules(self) -> float:
        """The total-energy counter. It moves every 100 ms: differences over less than 2 s mean little."""

    @abstractmethod
    def power_watts(self) -> float:
        """Mean over about the last second."""

    @abstractmethod
    def instant_power_watts(self) -> float:
        """Over the last tens of milliseconds."""

    @abstractmethod
    def limits(self) -> Limits:
        """All power limits."""

    @abstractmethod
    def set_limit_watts(self, watts: float) -> None:
        """Ask for a limit. ValueError outside lowest..highest; Unavailable where it may not be set."""

    @abstractmethod
    def sm_clock_mhz(self) -> float:
        """Clock of the multiprocessors."""

    @abstractmethod
    def temperature_celsius(self) -> float:
        """Of the die."""

    @abstractmethod
    def throttle_reasons(self) -> frozenset[str]:
        """Why the clock is lower than it could be, in NVML's words without their prefix, as `sw_power_cap`."""
