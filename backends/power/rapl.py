"""What do a host's processors and their memory use, by RAPL's counters?

The zones are folders under a root that can be configured: `intel-rapl:0` for a package, `intel-rapl:0:1` for a zone of
it as its DRAM; AMD's driver serves the same folders. The counter is in microjoules and wraps at `max_energy_range_uj`.
Only root may read it. In most virtual machines there is none at all: that is `absent`, and not zero.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from backends.power.device import Limits, PowerDevice, Reading, Source, Unavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path("/sys/class/powercap")
ZONES_MAX = 64
_ZONE = re.compile(r"intel-rapl:\d+(:\d+)?")
_KIND = re.compile(r"package-\d+(-die-\d+)?|dram|psys")
HOW_TO_BE_ALLOWED = "the kernel lets only root read it: run as root, or give the group read access to energy_uj"


class RaplZone(PowerDevice):
    """One counter: a package, or the DRAM of one. It adds up across wraps, so it must be read more often than it wraps.

    That is at least every quarter of an hour for the largest processors; a second wrap unseen would be missing.
    """

    source: ClassVar[Source] = "measured"
    can_set_limit = False
    capabilities: frozenset[Reading] = frozenset(("energy_joules",))

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self.name = name
        """`package-0`, or `package-0/dram`"""
        self._wrapped_uj = 0
        self._last_uj: int | None = None

    @property
    def is_dram(self) -> bool:
        """Else it is a package, whose counter does not have its DRAM in it."""
        return self.name.endswith("dram")

    def energy_joules(self) -> float:
        """Since it was first read at the latest; only differences mean something."""
        value = self._read("energy_uj")
        if self._last_uj is not None and value < self._last_uj:
            self._wrapped_uj += self._read("max_energy_range_uj")
        self._last_uj = value
        return (self._wrapped_uj + value) / 1e6

    def power_watts(self) -> float:
        """Never there."""
        raise Unavailable("power_watts", "not_supported", "RAPL counts joules")

    def instant_power_watts(self) -> float:
        """Never there."""
        raise Unavailable("instant_power_watts", "not_supported", "RAPL counts joules")

    def limits(self) -> Limits:
        """Never there: processors are not capped."""
        raise Unavailable("limits", "not_supported", "processors are only read")

    def set_limit_watts(self, watts: float) -> None:
        """Never."""
        raise Unavailable("set_limit", "not_supported", "processors are only read")

    def sm_clock_mhz(self) -> float:
        """Never there."""
        raise Unavailable("sm_clock_mhz", "not_supported")

    def temperature_celsius(self) -> float:
        """Never there."""
        raise Unavailable("temperature_celsius", "not_supported")

    def throttle_reasons(self) -> frozenset[str]:
        """Never there."""
        raise Unavailable("throttle_reasons", "not_supported")

    @property
    def spec(self) -> Mapping[str, Any]:
        """Nobody needs to open it elsewhere."""
        return {}

    def _read(self, file: str) -> int:
        try:
            return int((self._folder / file).read_text())
        except PermissionError:
            raise Unavailable("energy_joules", "no_permission", f"{self._folder}: {HOW_TO_BE_ALLOWED}") from None
        except FileNotFoundError:
            raise Unavailable("energy_joules", "absent", f"{self._folder / file} is missing") from None
        except (OSError, ValueError) as error:
            raise Unavailable("energy_joules", "no_data", f"{self._folder / file}: {error}") from None


def zones(root: Path = ROOT) -> list[RaplZone]:
    """Packages and their DRAM, in order. Unavailable where there are none."""
    try:
        folders = sorted(path for path in root.iterdir() if _ZONE.fullmatch(path.name))[:ZONES_MAX]
    except PermissionError:
        raise Unavailable("energy_joules", "no_permission", f"{root}: {HOW_TO_BE_ALLOWED}") from None
    except OSError:
        folders = []
    # A kernel shows zones side by side, a test's folder or an older kernel may have them one in another.
    nested = [inner for outer in folders for inner in sorted(outer.glob("intel-rapl:*")) if _ZONE.fullmatch(inner.name)]
    found: dict[str, RaplZone] = {}
    for folder in [*folders, *nested]:
        kind = _kind(folder)
        if kind is None or not _KIND.fullmatch(kind) or folder.name in found:
            continue
        owner = folder.name.rpartition(":")[0]
        name = f"{found[owner].name}/{kind}" if owner in found else kind
        found[folder.name] = RaplZone(folder, name)
    if not found:
        raise Unavailable("energy_joules", "absent", f"{root} has no RAPL zones, as in most virtual machines")
    return list(found.values())


def _kind(folder: Path) -> str | None:
    try:
        return (folder / "name").read_text().strip()
    except OSError:
        return None
