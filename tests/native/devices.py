"""A power device in this process, directed by a test."""

from __future__ import annotations

import threading
from typing import Any, ClassVar

from backends.power.device import Limits, PowerDevice, Reading, Source, Unavailable, Why
from backends.power.sample import READINGS


class FakeDevice(PowerDevice):
    """Says what its fields say; a reading in `faults` is unavailable."""

    source: ClassVar[Source] = "measured"
    can_set_limit = True
    can_lock_clocks = True

    def __init__(self, name: str = "fake", **fields: Any) -> None:
        self.name = name
        self.capabilities: frozenset[Reading] = frozenset(READINGS)
        self.joules = 100.0
        self.limit_watts = 700.0
        self.now_generation = 0
        self.step_watts = 0.0
        self.faults: dict[str, Why] = {}
        self.clock: tuple[float, float] | None = None
        self.sets: list[float] = []
        self.reads = 0
        self.let_go_count = 0
        self.go_on = threading.Event()
        """while it is not set, reading the counter hangs"""
        self.go_on.set()
        for field, value in fields.items():
            setattr(self, field, value)

    @property
    def generation(self) -> int:
        return self.now_generation

    def _check(self, what: str) -> None:
        if what in self.faults:
            raise Unavailable(what, self.faults[what], "as the test wants")

    def energy_joules(self) -> float:
        self.reads += 1
        self.go_on.wait()
        self._check("energy_joules")
        return self.joules

    def power_watts(self) -> float:
        self._check("power_watts")
        return 300.0

    def instant_power_watts(self) -> float:
        self._check("instant_power_watts")
        return 310.0

    def limits(self) -> Limits:
        self._check("limits")
        return Limits(self.limit_watts, self.limit_watts, 700.0, 200.0, 700.0)

    def set_limit_watts(self, watts: float) -> None:
        self._check("set_limit")
        if not 200 <= watts <= 700:
            raise ValueError(f"{watts:g} W: from 200 to 700 W")
        self.sets.append(watts)
        self.limit_watts = watts // self.step_watts * self.step_watts if self.step_watts else watts

    def sm_clock_mhz(self) -> float:
        self._check("sm_clock_mhz")
        return 1980.0

    def temperature_celsius(self) -> float:
        self._check("temperature_celsius")
        return 47.0

    def throttle_reasons(self) -> frozenset[str]:
        self._check("throttle_reasons")
        return frozenset({"sw_power_cap"})

    def persistence_mode(self) -> bool:
        self._check("persistence_mode")
        return True

    def lock_sm_clock_mhz(self, lowest: float, highest: float) -> None:
        self._check("sm_clock_lock")
        self.clock = lowest, highest

    def unlock_sm_clock(self) -> None:
        self._check("sm_clock_lock")
        self.clock = None

    def let_go(self) -> None:
        self.let_go_count += 1
