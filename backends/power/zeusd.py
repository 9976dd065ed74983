"""What does zeusd say of a GPU, and how is a limit set through it?

zeusd is a daemon that runs as root on the GPU's host and sets limits for programs that may not. Its API, from release
0.4 on: `GET /discover`; `GET /gpu/get_cumulative_energy`, `get_power`, `get_power_limit`,
`get_power_limit_constraints`, `get_persistence_mode` with `gpu_ids`; `POST /gpu/set_power_limit`,
`set_gpu_locked_clocks`, `reset_gpu_locked_clocks` with `gpu_ids`, `block` and the value. Where the driver can be read
here, a card is read through it (`reader`): zeusd does not tell enforced limits, clocks or throttle reasons.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlencode

from backends.power.device import Limits, PowerDevice, Reading, Source, Unavailable, Why
from backends.power.jsonhttp import JsonHttp, Reply
from backends.power.pci import bus_id
from backends.power.tokens import bearer

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_ABLE: frozenset[Reading] = frozenset(("energy_joules", "instant_power_watts", "limits", "persistence_mode"))
_WHY: dict[int, Why] = {401: "no_permission", 403: "no_permission", 404: "not_supported", 400: "absent"}


class ZeusdDevice(PowerDevice):
    """One GPU by zeusd's index."""

    source: ClassVar[Source] = "measured"
    over_network: ClassVar[bool] = True
    can_set_limit = True
    can_lock_clocks = True

    def __init__(
        self, address: str, index: int, reader: PowerDevice | None = None, token_file: Path | None = None
    ) -> None:
        self._http = JsonHttp(address, bearer(token_file))
        self._token_file = token_file
        self._index = index
        self._reader = reader
        self.name = f"GPU {index} of zeusd" if reader is None else reader.name
        self.capabilities: frozenset[Reading] = _ABLE if reader is None else reader.capabilities

    @property
    def identity(self) -> str:
        """The card's own where the driver can be asked."""
        return self._reader.identity if self._reader is not None else f"zeusd-{self._http.address}-{self._index}"

    @property
    def spec(self) -> Mapping[str, Any]:
        """Address and index, and where the token is: never the token itself."""
        return {
            "kind": "zeusd",
            "address": self._http.address,
            "index": self._index,
            "reader": None if self._reader is None else dict(self._reader.spec),
            "token_file": None if self._token_file is None else str(self._token_file),
        }

    @property
    def generation(self) -> int:
        """The driver's, where it is read."""
        return 0 if self._reader is None else self._reader.generation

    def energy_joules(self) -> float:
        """The total-energy counter."""
        if self._reader is not None:
            return self._reader.energy_joules()
        return float(self._get("get_cumulative_energy", "energy_joules", "energy_mj")) / 1000

    def power_watts(self) -> float:
        """Only where the driver is read: zeusd tells instant power."""
        if self._reader is not None:
            return self._reader.power_watts()
        raise Unavailable("power_watts", "not_supported", "zeusd tells instant power only")

    def instant_power_watts(self) -> float:
        """Now."""
        if self._reader is not None:
            return self._reader.instant_power_watts()
        body = self._body(self._ask("get_power", "instant_power_watts"), "instant_power_watts")
        return self._number(body.get("power_mw"), str(self._index), "instant_power_watts") / 1000

    def limits(self) -> Limits:
        """What zeusd tells of them."""
        if self._reader is not None:
            return self._reader.limits()
        requested = float(self._get("get_power_limit", "limits", "power_limit_mw")) / 1000
        lowest = float(self._get("get_power_limit_constraints", "limits", "min_power_limit_mw")) / 1000
        highest = float(self._get("get_power_limit_constraints", "limits", "max_power_limit_mw")) / 1000
        return Limits(requested, None, None, lowest, highest)

    def set_limit_watts(self, watts: float) -> None:
        """Through zeusd, and waits until it is done."""
        self._set("set_power_limit", "set_limit", power_limit_mw=round(watts * 1000))

    def sm_clock_mhz(self) -> float:
        """Only where the driver is read."""
        if self._reader is not None:
            return self._reader.sm_clock_mhz()
        raise Unavailable("sm_clock_mhz", "not_supported")

    def temperature_celsius(self) -> float:
        """Only where the driver is read."""
        if self._reader is not None:
            return self._reader.temperature_celsius()
        raise Unavailable("temperature_celsius", "not_supported")

    def throttle_reasons(self) -> frozenset[str]:
        """Only where the driver is read."""
        if self._reader is not None:
            return self._reader.throttle_reasons()
        raise Unavailable("throttle_reasons", "not_supported")

    def persistence_mode(self) -> bool:
        """Whether the driver stays loaded."""
        if self._reader is not None:
            return self._reader.persistence_mode()
        return bool(self._get("get_persistence_mode", "persistence_mode", "enabled"))

    def lock_sm_clock_mhz(self, lowest: float, highest: float) -> None:
        """Through zeusd."""
        self._set("set_gpu_locked_clocks", "sm_clock_lock", min_clock_mhz=round(lowest), max_clock_mhz=round(highest))

    def unlock_sm_clock(self) -> None:
        """Through zeusd."""
        self._set("reset_gpu_locked_clocks", "sm_clock_lock")

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def bus_id(self) -> str:
        """The card's PCI address, by which the driver knows it too. Unavailable."""
        return str(self._discovered().get("pci_address", ""))

    def _discovered(self) -> dict[str, Any]:
        body = self._body(self._http.get("/discover", "discover"), "discover")
        for gpu in body.get("gpus", ()):
            if isinstance(gpu, dict) and gpu.get("id") == self._index:
                with contextlib.suppress(KeyError):
                    self.name = str(gpu["name"])[:80]
                return gpu
        raise Unavailable("discover", "absent", f"zeusd at {self._http.address} has no GPU {self._index}")

    def _ask(self, call: str, reading: str) -> Reply:
        return self._http.get(f"/gpu/{call}?gpu_ids={self._index}", reading)

    def _get(self, call: str, reading: str, field: str) -> float:
        body = self._body(self._ask(call, reading), reading)
        return self._number(body.get(str(self._index)), field, reading)

    def _set(self, call: str, reading: str, **values: int) -> None:
        query = urlencode({"gpu_ids": self._index, "block": "true", **values})
        reply = self._http.post(f"/gpu/{call}?{query}", None, reading)
        if reply.status == 400:
            raise ValueError(f"zeusd: {reply.message()}")
        self._body(reply, reading, empty=True)

    def _body(self, reply: Reply, reading: str, *, empty: bool = False) -> dict[str, Any]:
        if reply.status != 200:
            why = _WHY.get(reply.status, "no_data")
            raise Unavailable(reading, why, f"zeusd: HTTP {reply.status}: {reply.message()}")
        if isinstance(reply.body, dict):
            return reply.body
        if empty:
            return {}
        raise Unavailable(reading, "no_data", "zeusd's answer is not what its API says")

    def _number(self, fields: Any, key: str, reading: str) -> float:
        value = fields.get(key) if isinstance(fields, dict) else None
        if not isinstance(value, bool | int | float):
            raise Unavailable(reading, "no_data", "zeusd's answer is not what its API says")
        return float(value)


def index_at(address: str, bus: tuple[int, int, int, int], token_file: Path | None = None) -> int:
    """zeusd's index of the card at a PCI address. Unavailable."""
    http = JsonHttp(address, bearer(token_file))
    try:
        body = http.get("/discover", "discover").body
    finally:
        http.close()
    for gpu in body.get("gpus", ()) if isinstance(body, dict) else ():
        if isinstance(gpu, dict) and bus_id(str(gpu.get("pci_address"))) == bus:
            return int(gpu["id"])
    raise Unavailable("discover", "absent", f"zeusd at {address} has no GPU at {bus[0]:04x}:{bus[1]:02x}:{bus[2]:02x}")
