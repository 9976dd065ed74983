"""What does NVIDIA's driver say of a card, and how is its limit set?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import pynvml

from backends.power.device import Limits, PowerDevice, Reading, Source, Unavailable
from backends.power.nvml_session import Backoff, NvmlSession, session
from backends.power.pci import bus_id
from backends.power.sample import READINGS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

T = TypeVar("T")
_REASONS = {
    1 << 0: "gpu_idle", 1 << 1: "applications_clocks_setting", 1 << 2: "sw_power_cap", 1 << 3: "hw_slowdown",
    1 << 4: "sync_boost", 1 << 5: "sw_thermal_slowdown", 1 << 6: "hw_thermal_slowdown",
    1 << 7: "hw_power_brake_slowdown", 1 << 8: "display_clock_setting", 1 << 9: "board_limit", 1 << 10: "reliability",
}  # fmt: skip
GPUS_MAX = 256


class NvmlDevice(PowerDevice):
    """One card, named by its UUID, its index or its PCI bus id. No other card is touched.

    It is looked up again whenever the session was begun anew, then by its UUID: an index may be another card by then.
    """

    source: ClassVar[Source] = "measured"

    def __init__(self, gpu: str, library: NvmlSession = session) -> None:
        self.gpu = gpu
        self._library = library
        self._handle: Any = None
        self._handle_of = 0
        self._seen = False
        self._uuid = gpu if gpu.startswith("GPU-") else ""
        self._range: tuple[float | None, float, float] | None = None
        self._clock_reasons: Callable[[Any], int] = pynvml.nvmlDeviceGetCurrentClocksEventReasons
        self.name = "NVIDIA GPU"
        self.capabilities: frozenset[Reading] = frozenset(READINGS)
        self.can_set_limit = True
        self.can_lock_clocks = True
        self._probed = False
        self._lost: str | None = None
        self._lost_in = 0
        self._again = Backoff()

    @property
    def identity(self) -> str:
        """Its UUID, once it has been seen."""
        return self._uuid or self.gpu

    @property
    def spec(self) -> Mapping[str, Any]:
        """By its UUID."""
        return {"kind": "nvml", "gpu": self.identity}

    @property
    def generation(self) -> int:
        """The session's."""
        return self._handle_of

    def open(self) -> None:
        """Find the card, and what it can tell. Unavailable if it is not there; later calls try by themselves."""
        self._call("name", lambda handle: handle)

    def energy_joules(self) -> float:
        """Since the driver was loaded."""
        return float(self._call("energy_joules", pynvml.nvmlDeviceGetTotalEnergyConsumption)) / 1000

    def power_watts(self) -> float:
        """Mean of the last second on most cards."""
        return float(self._call("power_watts", pynvml.nvmlDeviceGetPowerUsage)) / 1000

    def instant_power_watts(self) -> float:
        """Field 186."""

        def read(handle: Any) -> float:
            value = pynvml.nvmlDeviceGetFieldValues(handle, [pynvml.NVML_FI_DEV_POWER_INSTANT])[0]
            if value.nvmlReturn:
                raise pynvml.NVMLError(value.nvmlReturn)
            return float(value.value.uiVal) / 1000

        return self._call("instant_power_watts", read)

    def limits(self) -> Limits:
        """Of the card. The range and the default are asked for once."""
        requested = self._call("limits", pynvml.nvmlDeviceGetPowerManagementLimit) / 1000
        enforced = self._call("limits", pynvml.nvmlDeviceGetEnforcedPowerLimit) / 1000
        default, lowest, highest = self._limit_range()
        return Limits(requested, enforced, default, lowest, highest)

    def set_limit_watts(self, watts: float) -> None:
        """Needs root or CAP_SYS_ADMIN."""
        _, lowest, highest = self._limit_range()
        if not lowest <= watts <= highest:
            raise ValueError(f"a limit of {watts:g} W: this card allows from {lowest:g} to {highest:g} W")
        self._call("set_limit", lambda handle: pynvml.nvmlDeviceSetPowerManagementLimit(handle, round(watts * 1000)))

    def sm_clock_mhz(self) -> float:
        """Now."""
        return float(
            self._call("sm_clock_mhz", lambda handle: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM))
        )

    def temperature_celsius(self) -> float:
        """Of the die."""
        sensor = pynvml.NVML_TEMPERATURE_GPU
        return float(self._call("temperature_celsius", lambda handle: pynvml.nvmlDeviceGetTemperature(handle, sensor)))

    def throttle_reasons(self) -> frozenset[str]:
        """Clock event reasons. A bit that has no name here is `bit_N`."""
        try:
            bits = self._call("throttle_reasons", self._clock_reasons)
        except Unavailable as old:
            if old.why != "not_supported" or self._clock_reasons is pynvml.nvmlDeviceGetCurrentClocksThrottleReasons:
                raise
            self._clock_reasons = pynvml.nvmlDeviceGetCurrentClocksThrottleReasons  # drivers before 535 know this name
            bits = self._call("throttle_reasons", self._clock_reasons)
        return frozenset(_REASONS.get(1 << bit, f"bit_{bit}") for bit in range(64) if bits >> bit & 1)

    def persistence_mode(self) -> bool:
        """Without it the driver forgets limits when the last program leaves the card."""
        return bool(self._call("persistence_mode", pynvml.nvmlDeviceGetPersistenceMode))

    def lock_sm_clock_mhz(self, lowest: float, highest: float) -> None:
        """Needs root or CAP_SYS_ADMIN."""
        if not 0 < lowest <= highest:
            raise ValueError(f"clocks from {lowest:g} to {highest:g} MHz are no range")
        bounds = round(lowest), round(highest)
        self._call("sm_clock_lock", lambda handle: pynvml.nvmlDeviceSetGpuLockedClocks(handle, *bounds))

    def unlock_sm_clock(self) -> None:
        """Needs root or CAP_SYS_ADMIN."""
        self._call("sm_clock_lock", pynvml.nvmlDeviceResetGpuLockedClocks)

    def bus_id(self) -> tuple[int, int, int, int]:
        """Its PCI address: domain, bus, device, function. Unavailable."""
        found = bus_id(str(self._call("bus_id", lambda handle: pynvml.nvmlDeviceGetPciInfo(handle).busId)))
        if found is None:
            raise Unavailable("bus_id", "no_data", "the driver's answer is no PCI address")
        return found

    # --- finding it ---

    def _call(self, reading: str, function: Callable[[Any], T]) -> T:
        if self._lost is not None:
            if self._again.waiting():
                raise Unavailable(reading, "lost", self._lost)
            self._library.restart(self._lost_in)
            self._lost = None
        try:
            if self._library.ensure(reading) != self._handle_of or self._handle is None:
                self._find(reading)
            handle = self._handle
            answer = self._library.call(reading, lambda: function(handle))
        except Unavailable as gone:
            if gone.why == "lost":
                # The session that saw it lost, which may be newer than the handle: there was none yet.
                self._lost, self._lost_in = gone.detail, self._library.generation
                self._again.failed()
            raise
        self._again.succeeded()
        return answer

    def _find(self, reading: str) -> None:
        self._handle = None
        name = self._uuid or self.gpu
        try:
            handle = self._library.call(reading, lambda: handle_of(name))
        except Unavailable as missing:
            if self._seen and missing.why == "absent":
                raise Unavailable(reading, "lost", f"{name} was there, and is no more") from None
            raise
        self._uuid = self._library.call(reading, lambda: str(pynvml.nvmlDeviceGetUUID(handle)))
        self.name = self._library.call(reading, lambda: str(pynvml.nvmlDeviceGetName(handle)))
        self._range = None
        self._handle, self._handle_of, self._seen = handle, self._library.generation, True
        if not self._probed:
            self._probe()

    def _probe(self) -> None:
        """Which readings this card has. Those that fail for another reason are kept: they may come back."""
        self._probed = True
        able: set[Reading] = set()
        for name in READINGS:
            try:
                getattr(self, name)()
            except Unavailable as unavailable:
                if unavailable.why == "not_supported":
                    continue
            able.add(name)
        self.capabilities = frozenset(able)
        self.can_set_limit = "limits" in able

    def _limit_range(self) -> tuple[float | None, float, float]:
        if self._range is None:
            lowest, highest = self._call("limits", pynvml.nvmlDeviceGetPowerManagementLimitConstraints)
            try:
                default = self._call("limits", pynvml.nvmlDeviceGetPowerManagementDefaultLimit) / 1000
            except Unavailable as unknown:
                if unknown.why != "not_supported":
                    raise
                default = None
            self._range = default, lowest / 1000, highest / 1000
        return self._range


def handle_of(gpu: str) -> Any:
    """NVML's handle of a card by UUID, PCI bus id or index. NVMLError, or Unavailable if it is no name of a card."""
    if gpu.startswith("GPU-"):
        return pynvml.nvmlDeviceGetHandleByUUID(gpu)
    if gpu.startswith("MIG-"):
        raise Unavailable(gpu, "not_supported", "a slice of a card has no power meter of its own; name the card")
    if bus_id(gpu):
        return pynvml.nvmlDeviceGetHandleByPciBusId(gpu)
    if gpu.isascii() and gpu.isdecimal() and len(gpu) < 5:
        try:
            return pynvml.nvmlDeviceGetHandleByIndex(int(gpu))
        except pynvml.NVMLError_InvalidArgument:
            raise Unavailable(gpu, "absent", f"this host has no GPU {gpu}") from None
    raise Unavailable(gpu[:80], "absent", "not a GPU's name: give a UUID (GPU-…), an index or a PCI bus id")


def uuids(library: NvmlSession = session) -> list[str]:
    """Every card of this host, in NVML's order. Only looks. Unavailable without a driver."""
    count = min(library.call("gpus", pynvml.nvmlDeviceGetCount), GPUS_MAX)
    found = []
    for index in range(count):
        try:
            found.append(library.call("gpus", lambda index=index: str(_uuid_at(index))))  # type: ignore[misc]
        except Unavailable:  # a lost one; its index names it still
            found.append(str(index))
    return found


def _uuid_at(index: int) -> Any:
    return pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(index))
