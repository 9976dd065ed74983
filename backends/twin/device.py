"""The simulated engine's cards as power devices: what a driver would say of each."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from backends.power.device import Limits, PowerDevice, Reading, Source, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from backends.twin.engine import TwinEngine


class TwinDevice(PowerDevice):
    """One of the engine's cards. They share its work evenly, and a limit set on one holds for all.

    `now` brings the engine up to the time of the reading and returns it, in the engine's seconds.
    """

    source: ClassVar[Source] = "simulated"
    capabilities: frozenset[Reading] = frozenset(
        ("energy_joules", "power_watts", "instant_power_watts", "limits", "sm_clock_mhz", "throttle_reasons")
    )
    can_set_limit = True

    def __init__(self, engine: TwinEngine, now: Callable[[], float]) -> None:
        self._engine = engine
        self._now = now
        self._cards = engine.calibration.card.gpus
        self.name = engine.calibration.card.name

    def energy_joules(self) -> float:
        """The counter at its last tick."""
        self._now()
        return self._engine.meter.counter_joules() / self._cards

    def power_watts(self) -> float:
        """Mean of the last second."""
        self._now()
        return self._watts("power_watts", self._engine.meter.average_watts())

    def instant_power_watts(self) -> float:
        """Mean of the last 25 ms."""
        self._now()
        return self._watts("instant_power_watts", self._engine.meter.instant_watts())

    def limits(self) -> Limits:
        """Of this card. `enforced` moves to `requested` within the card's settling time."""
        now, limit, card = self._now(), self._engine.limit, self._engine.calibration.card
        return Limits(
            limit.requested_watts / self._cards,
            limit.in_force_watts(now) / self._cards,
            card.limit_watts_default,
            card.limit_watts_min,
            card.limit_watts_max,
        )

    def set_limit_watts(self, watts: float) -> None:
        """Ask for a limit on each card. ValueError outside the card's range."""
        self._engine.set_limit_watts(watts * self._cards, self._now())

    def sm_clock_mhz(self) -> float:
        """An indication: the maximum, less as much as a binding limit takes."""
        self._now()
        return self._engine.sm_clock_mhz

    def temperature_celsius(self) -> float:
        """Never there."""
        raise Unavailable("temperature_celsius", "not_supported", "the twin does not model heat")

    def throttle_reasons(self) -> frozenset[str]:
        """`sw_power_cap` while a limit binds."""
        clock = self.sm_clock_mhz()
        return frozenset({"sw_power_cap"} if clock < self._engine.calibration.card.sm_clock_max_mhz else ())

    def _watts(self, reading: Reading, watts: float | None) -> float:
        if watts is None:
            raise Unavailable(reading, "not_supported", "nothing has been measured yet")
        return watts / self._cards
