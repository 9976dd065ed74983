"""What can be asked of a card's power, whether a driver answers or the twin?"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

Source = Literal["measured", "simulated"]
Why = Literal["absent", "not_supported", "no_permission", "reset", "lost", "unreachable", "hanging", "no_data"]
"""absent: no driver, no such card · not_supported: this card cannot · no_permission: it could, for somebody else ·
reset: the driver or the counter has started again · lost: the card has fallen off the bus, or needs a reset ·
unreachable: nobody answers at the address · hanging: a call has not come back ·
no_data: not just now; the detail has the driver's words"""
Reading = Literal[
    "energy_joules", "power_watts", "instant_power_watts", "limits", "sm_clock_mhz", "temperature_celsius",
    "throttle_reasons", "persistence_mode",
]  # fmt: skip


ENFORCED_UNTOLD = (
    "never capped: nobody tells which limit is in force, so none of ours could be seen to hold (zeusd alone does not"
    " tell it); make the driver's libnvidia-ml.so.1 readable for the gateway, or run `joulegate agent` beside the GPU"
)
"""Of a card of which only the limit that was asked for is known."""


class Unavailable(Exception):
    """A reading that is not there. Never a zero in its place."""

    def __init__(self, reading: str, why: Why, detail: str = "") -> None:
        super().__init__(f"{reading}: {why}" + (f" ({detail})" if detail else ""))
        self.reading = reading
        self.why: Why = why
        self.detail = detail


class HeldElsewhere(Unavailable):
    """Another writer has the card, on a host of its own: what stands there is theirs."""

    def __init__(self, reading: str, detail: str) -> None:
        super().__init__(reading, "no_permission", detail)


class Limits(NamedTuple):
    """Power limits of one card. `requested` was asked for last; `enforced` is the strictest of all that bind.

    None where a source does not tell: zeusd knows neither what is enforced nor the default.
    """

    requested_watts: float
    enforced_watts: float | None
    default_watts: float | None
    lowest_watts: float
    highest_watts: float

    def clamp(self, watts: float) -> float:
        """The nearest limit that may be asked for."""
        return min(max(watts, self.lowest_watts), self.highest_watts)


class PowerDevice(ABC):
    """One card, or one zone of a processor. Its calls block: they are made from a thread, never on an event loop.

    Every reading raises Unavailable where it cannot be had; `capabilities` says beforehand which can.
    """

    source: ClassVar[Source]
    over_network: ClassVar[bool] = False
    """Whether a reading waits for another process; such a device is read by a thread of its own."""
    name: str
    """its model, for people"""
    capabilities: frozenset[Reading]
    can_set_limit: bool
    can_lock_clocks: bool = False

    @property
    def identity(self) -> str:
        """What it is called for ever, on this host: by it leases are kept."""
        return self.name

    @property
    def spec(self) -> Mapping[str, Any]:
        """How another process opens it (`backends.power.opening.reopen`), in JSON. Empty where none can."""
        return {}

    @property
    def generation(self) -> int:
        """Grows when the driver or the agent behind it was started again: limits may have been dropped by that."""
        return 0

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

    def persistence_mode(self) -> bool:
        """Whether the driver stays loaded, and with it the limits, while nobody uses the card."""
        raise Unavailable("persistence_mode", "not_supported")

    def lock_sm_clock_mhz(self, lowest: float, highest: float) -> None:
        """Hold the clock within these bounds: the second actuator. Unavailable where it may not be."""
        raise Unavailable("sm_clock_lock", "not_supported")

    def unlock_sm_clock(self) -> None:
        """Take the bounds away. No driver tells which bounds were found, so there is nothing else to restore."""
        raise Unavailable("sm_clock_lock", "not_supported")

    def renew(self) -> None:  # noqa: B027  (most have nothing to do)
        """Say that we go on setting it, where somebody must be told. Unavailable if that was refused."""

    def let_go(self) -> None:  # noqa: B027  (most have nothing to do)
        """Say that we shall set it no more, where somebody must be told."""

    def close(self) -> None:  # noqa: B027  (most have nothing to do)
        """Let go of sockets and handles. It may be used again after that."""
