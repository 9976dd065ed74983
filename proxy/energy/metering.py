"""Whose joules does which meter count? The devices of each engine, opened, read, and told to the scheduler."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple, cast, get_args
from urllib.parse import urlsplit

import orjson

from backends.power.device import Unavailable
from backends.power.opening import UnknownGpu, open_device
from backends.power.rapl import zones
from backends.power.sampler import Sampler
from backends.vllm.fetch import FetchFailed, fetch
from proxy.config import is_loopback
from scheduler.energy.window import Energy, MeterSample, MeterState
from scheduler.events import MeterRead

if TYPE_CHECKING:
    from collections.abc import Callable

    from backends.power.device import PowerDevice
    from backends.power.opening import Where
    from backends.power.sample import Sample
    from proxy.config import Config
    from proxy.energy.capping import Capping
    from proxy.engines import Engine
    from proxy.gateway import Gateway

TOLD_SECONDS = 0.5
"""Devices are read more often, for the metrics; the scheduler is told so often."""
LOOK_SECONDS = 1.0
"""Between two looks for an engine that is not up so far."""
PROBE_SECONDS = 2.0


class Meter(NamedTuple):
    """An engine's devices by the names that the sampler knows them by, and what was found out about them."""

    engine: str
    gpus: tuple[str, ...]
    detail: str
    """How they were found, or why there are none."""
    cards: int = 1
    """That each of them speaks for: a twin's are all alike."""
    here: bool = False
    """They are of this host, so that its processors work for them."""


class Metering:
    """One gateway's meters. `on_meter(engine, meter, card)` hears once of each engine what counts its joules."""

    def __init__(
        self,
        gateway: Gateway,
        config: Config,
        on_meter: Callable[[Engine, Meter, str | None], None],
        capping: Capping,
    ) -> None:
        self._gateway = gateway
        self._config = config
        self._on_meter = on_meter
        self._capping = capping
        self._where: Where = config.power.where()
        self._devices: dict[str, PowerDevice] = {}
        self._host: dict[str, str] = {}
        """RAPL's zones of this host, and the component that each is."""
        self.host_detail: str | None = None
        """What can be read of this host's processors; None: not looked for so far."""
        self._sampler: Sampler | None = None
        self._told_at = 0.0
        self._looking: dict[str, asyncio.Task[None]] = {}
        self.meters: dict[str, Meter] = {}
        self.latest: dict[str, Sample] = {}
        """By device."""

    def watch(self, engine: Engine) -> None:
        """Find out what counts an engine's joules."""
        if (before := self._looking.pop(engine.name, None)) is not None:
            before.cancel()
        self._looking[engine.name] = asyncio.get_running_loop().create_task(self._look(engine))

    async def close(self) -> None:
        """Stop reading."""
        for task in self._looking.values():
            task.cancel()
        if self._sampler is not None:
            await self._sampler.close()

    def kind(self, device: str) -> str:
        """What a device is, in OpenTelemetry's words."""
        return {"cpu": "cpu", "dram": "memory"}.get(self._host.get(device, ""), "gpu")

    def card(self, device: str) -> str:
        """What it calls itself."""
        known = self._devices.get(device)
        return device if known is None else known.name

    # --- finding devices ---

    async def _look(self, engine: Engine) -> None:
        try:
            while engine.healthy is not True:  # noqa: ASYNC110  (probes set it; an engine may take minutes to load)
                await asyncio.sleep(LOOK_SECONDS)
            cards, card = (None, None) if engine.config.gpus else await self._simulated(engine)
            names, detail = await self._names(engine, cards)
            devices = {}
            for name in names:
                try:
                    devices[name] = await asyncio.to_thread(open_device, name, self._where)
                except UnknownGpu as error:
                    detail = str(error)
            here = not any(name.startswith(("twin:", "agent:")) for name in devices)
            meter = Meter(engine.name, tuple(devices), detail, cards or 1, here)
            self._devices |= devices
            self.meters[engine.name] = meter
            self._gateway.log.event("meter", engine=engine.name, gpus=list(devices), detail=detail)
            await self._capping.meter_found(meter)
            await self._restart()
            self._on_meter(engine, meter, card or next((device.name for device in devices.values()), None))
        except Exception as error:  # noqa: BLE001  (reported; the engine's energy stays unavailable)
            self._gateway.faults.report("looking for meters", error, engine=engine.name)

    async def _names(self, engine: Engine, cards: int | None) -> tuple[tuple[str, ...], str]:
        """GPUs as configured; else a twin's own card; else this host's, where there can be no doubt whose they are."""
        if engine.config.gpus:
            return engine.config.gpus, "as configured (engines.gpus)"
        if cards is not None:
            return (f"twin:{engine.config.url}",), "the engine is simulated"
        host = urlsplit(engine.config.url).hostname or ""
        local = [one for one in self._gateway.engines.values() if is_loopback(urlsplit(one.config.url).hostname or "")]
        if not is_loopback(host):
            return (), "the engine is on another host: name its GPUs in engines.gpus (agent:NAME/CARD)"
        found = await asyncio.to_thread(_local_gpus)
        if not found:
            return (), "this host has no NVIDIA GPU that can be read"
        if len(local) == 1:
            return found, "this host's GPUs, since there is one engine here"
        return (), f"several engines are on this host with {len(found)} GPUs: name each one's in engines.gpus"

    async def _simulated(self, engine: Engine) -> tuple[int | None, str | None]:
        """How many cards a twin has, and of which kind; None: it is none. (vLLM has no /power.)"""
        path = engine.path_prefix.decode("ascii") + "/power"
        try:
            status, body = await fetch(engine.pool, path, engine.own_fields, PROBE_SECONDS)
            told: Any = orjson.loads(body) if status == 200 else None
        except (FetchFailed, orjson.JSONDecodeError):
            return None, None
        if not isinstance(told, dict) or told.get("source") != "simulated":
            return None, None
        return int(told.get("gpus") or 1), str(told.get("card"))

    async def _restart(self) -> None:
        """Read all devices that are known now."""
        if self._sampler is not None:
            await self._sampler.close()
        if self._config.power.rapl and self.host_detail is None:
            self.host_detail = await asyncio.to_thread(self._find_zones)
        if self._devices:
            self._sampler = Sampler(self._devices, self._config.power.sample_seconds, self._read)
            self._sampler.start()

    def _find_zones(self) -> str:
        """RAPL's zones of this host; in words what came of it."""
        try:
            found = zones(self._config.power.rapl_root)
        except Unavailable as unavailable:
            return str(unavailable)
        for zone in found:
            self._devices[zone.name] = zone
            self._host[zone.name] = "dram" if zone.is_dram else "cpu"
        return f"RAPL: {', '.join(self._host)}"

    # --- reading ---

    def _read(self, samples: list[Sample]) -> None:
        for sample in samples:
            self.latest[sample.device] = sample
            self._capping.seen(sample)
        now = monotonic()
        if now - self._told_at < TOLD_SECONDS:
            return
        self._told_at = now
        for meter in self.meters.values():
            if (told := self._together(meter)) is not None:
                devices = [self._devices[name] for name in meter.gpus]
                self._capping.read(meter, devices, [self.latest[name] for name in meter.gpus])
                self._gateway.tell(MeterRead(meter.engine, told))

    def _together(self, meter: Meter) -> MeterSample | None:
        """The devices of an engine as one meter. None: nothing was read so far."""
        gpus = [self.latest[name] for name in meter.gpus if name in self.latest]
        if not gpus or len(gpus) < len(meter.gpus):
            return None
        bad = next((sample.state for sample in gpus if sample.state != "ok"), "ok")
        binding = [sample.binding for sample in gpus]
        host = (self._host_joules("cpu"), self._host_joules("dram")) if meter.here else (None, None)
        return MeterSample(
            max(sample.at_seconds for sample in gpus),
            Energy(_sum([sample.energy_joules for sample in gpus], meter.cards), *host),
            _sum([sample.power_watts for sample in gpus], meter.cards),
            _sum([None if one.limits is None else one.limits.enforced_watts for one in gpus], meter.cards),
            None if all(one is None for one in binding) else any(binding),
            "simulated" if any(sample.source == "simulated" for sample in gpus) else "measured",
            cast("MeterState", bad if bad in METER_STATES else "lost"),
        )

    def _host_joules(self, component: str) -> float | None:
        """An equal part of this host's processors or memory for each engine that has GPUs here."""
        zones = [self.latest.get(name) for name, kind in self._host.items() if kind == component]
        here = sum(meter.here and bool(meter.gpus) for meter in self.meters.values())
        joules = _sum([None if sample is None else sample.energy_joules for sample in zones])
        return None if joules is None or not here else joules / here


METER_STATES = frozenset(get_args(MeterState))


def _sum(values: list[float | None], times: int = 1) -> float | None:
    """None as soon as one is not known, or there is none."""
    known = [value for value in values if value is not None]
    return times * sum(known) if known and len(known) == len(values) else None


def _local_gpus() -> tuple[str, ...]:
    from backends.power.nvml import uuids

    try:
        return tuple(uuids())
    except Unavailable:
        return ()
