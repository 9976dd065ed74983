"""What does a simulated card say, over the twin's HTTP?"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, ClassVar

from backends.power.device import Limits, PowerDevice, Reading, Source, Unavailable
from backends.power.jsonhttp import JsonHttp
from backends.power.sample import READINGS, Sample, failed

if TYPE_CHECKING:
    from collections.abc import Mapping

_ABSENT: tuple[Reading, ...] = ("temperature_celsius", "persistence_mode")
_MEANS: tuple[Reading, ...] = ("power_watts", "instant_power_watts")


class TwinHttpDevice(PowerDevice):
    """One card of a twin. Its cards are alike and a limit holds for all, so one device speaks for each of them.

    A twin that runs faster than real time draws its joules as fast: they are of its own seconds.
    """

    source: ClassVar[Source] = "simulated"
    over_network: ClassVar[bool] = True
    can_set_limit = True

    def __init__(self, url: str, card: int = 0) -> None:
        self._http = JsonHttp(url)
        self._card = card
        self.name = "simulated card"
        self.capabilities: frozenset[Reading] = frozenset(READINGS) - set(_ABSENT)

    @property
    def identity(self) -> str:
        """Where it is."""
        return f"twin-{self._http.address}-{self._card}"

    @property
    def spec(self) -> Mapping[str, Any]:
        """Its address."""
        return {"kind": "twin", "url": self._http.address, "card": self._card}

    def sample(self, label: str) -> Sample:
        """Everything, in one request."""
        started = time.monotonic()
        try:
            fields = self._fields("sample")
            limits = self._limits(fields)
            means = {name: None if fields.get(name) is None else self._number(fields, name) for name in _MEANS}
            energy, clock = self._number(fields, "energy_joules"), self._number(fields, "sm_clock_mhz")
        except Unavailable as gone:
            return failed(label, self.source, gone.why, gone.detail)
        return Sample(
            label,
            (started + time.monotonic()) / 2,
            self.source,
            "ok",
            energy_joules=energy,
            power_watts=means["power_watts"],
            instant_power_watts=means["instant_power_watts"],
            limits=limits,
            sm_clock_mhz=clock,
            throttle_reasons=frozenset(map(str, fields.get("throttle_reasons", ()))),
            missing={
                **dict.fromkeys(_ABSENT, "not_supported"),
                **{name: "no_data" for name in _MEANS if means[name] is None},
            },
        )

    def energy_joules(self) -> float:
        """The counter."""
        return self._number(self._fields("energy_joules"), "energy_joules")

    def power_watts(self) -> float:
        """Mean of the last second."""
        return self._number(self._fields("power_watts"), "power_watts")

    def instant_power_watts(self) -> float:
        """Of the last tens of milliseconds."""
        return self._number(self._fields("instant_power_watts"), "instant_power_watts")

    def limits(self) -> Limits:
        """Of each card."""
        return self._limits(self._fields("limits"))

    def set_limit_watts(self, watts: float) -> None:
        """On each card."""
        reply = self._http.post("/power/limit", {"limit_watts": watts}, "set_limit")
        if reply.status == 400:
            raise ValueError(reply.message())
        if reply.status != 200:
            raise Unavailable("set_limit", "unreachable", f"{self._http.address}: HTTP {reply.status}")

    def sm_clock_mhz(self) -> float:
        """An indication."""
        return self._number(self._fields("sm_clock_mhz"), "sm_clock_mhz")

    def temperature_celsius(self) -> float:
        """Never there."""
        raise Unavailable("temperature_celsius", "not_supported", "the twin does not model heat")

    def throttle_reasons(self) -> frozenset[str]:
        """`sw_power_cap` while a limit binds."""
        return frozenset(map(str, self._fields("throttle_reasons").get("throttle_reasons", ())))

    def close(self) -> None:
        """Close its connection."""
        self._http.close()

    def _fields(self, reading: str) -> dict[str, Any]:
        reply = self._http.get("/power", reading)
        if reply.status != 200 or not isinstance(reply.body, dict) or reply.body.get("source") != "simulated":
            raise Unavailable(reading, "absent", f"{self._http.address}/power is no twin's (HTTP {reply.status})")
        self.name = str(reply.body.get("card", self.name))[:80]
        return reply.body

    def _number(self, fields: Mapping[str, Any], name: Reading) -> float:
        value = fields.get(name)
        if not isinstance(value, int | float):
            raise Unavailable(name, "no_data", "nothing has been measured yet")
        return float(value)

    def _limits(self, fields: Mapping[str, Any]) -> Limits:
        try:
            found = fields["limit_watts"]
            keys = ("requested", "enforced", "default", "min", "max")
            return Limits(*(float(found[key]) for key in keys))
        except (KeyError, TypeError, ValueError):
            raise Unavailable("limits", "no_data", "the twin's answer has no limits") from None
