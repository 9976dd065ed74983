"""`joulegate power status` and `joulegate power restore`: they need no gateway, and work beside one."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from backends.power.device import ENFORCED_UNTOLD, Unavailable
from backends.power.lease import Lease, LeaseFault, default_folder, leases
from backends.power.opening import UnknownGpu, Where, open_device
from backends.power.rapl import ROOT, zones
from backends.power.restore import restore_orphans
from backends.power.sample import Sample, failed, take, to_json
from backends.power.threads import DeviceThread

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from backends.power.device import PowerDevice

READ_SECONDS = 3.0
FIRST_READ_SECONDS = 15.0
"""A driver that nobody uses is loaded by the first call, and then also finds all cards."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line and the configuration say."""

    gpus: Sequence[str] = ()
    """empty: every card of this host"""
    where: Where = field(default_factory=Where)
    rapl_root: Path = ROOT
    lease_folder: Path | None = None
    as_json: bool = False


def status(options: Options) -> int:
    """Print what every device says, and which limits are whose. 0, or 2 for a name that means nothing."""
    try:
        devices, notes = _devices(options)
    except UnknownGpu as unknown:
        print(f"joulegate: {unknown}", file=sys.stderr)
        return 2
    samples = asyncio.run(_read(devices))
    for device in devices.values():
        device.close()
    held = _leases(options)
    if options.as_json:
        now = time.monotonic()
        listed = [
            {"name": devices[sample.device].name, "identity": devices[sample.device].identity, **to_json(sample, now)}
            for sample in samples
        ]
        print(json.dumps({"devices": listed, "leases": held, "notes": notes}, indent=2))
        return 0
    for sample in samples:
        print(_line(sample, devices[sample.device]))
    for lease in held:
        print(_lease_line(lease))
    for note in notes:
        print(note)
    return 0


def restore(options: Options) -> int:
    """Put back what ended processes left. 0, or 1 if something could not be, or is held by a process that runs."""
    try:
        folder = options.lease_folder or default_folder()
    except LeaseFault as fault:
        print(f"joulegate: {fault}", file=sys.stderr)
        return 1
    found = restore_orphans(folder) if folder.is_dir() else []
    if options.as_json:
        print(json.dumps([done._asdict() for done in found], indent=2))
    elif not found:
        print(f"nothing to restore: {folder} has no leases")
    else:
        for done in found:
            watts = "" if done.watts is None else f" {done.watts:g} W"
            print(f"{done.device}: {done.state.replace('_', ' ')}{watts}: {done.detail}")
    return 1 if any(done.state in ("failed", "held") for done in found) else 0


def _devices(options: Options) -> tuple[dict[str, PowerDevice], list[str]]:
    notes: list[str] = []
    names = list(options.gpus)
    if not names:
        from backends.power.nvml import uuids

        try:
            names = uuids()
        except Unavailable as none:
            notes.append(f"GPUs: {none.why}: {none.detail}")
    devices = {name: open_device(name, options.where) for name in names}
    try:
        devices.update({f"rapl:{zone.name}": zone for zone in zones(options.rapl_root)})
    except Unavailable as none:
        notes.append(f"processors: {none.why}: {none.detail}")
    return devices, notes


async def _read(devices: dict[str, PowerDevice]) -> list[Sample]:
    async def one(label: str, device: PowerDevice) -> Sample:
        thread = DeviceThread(label)  # a card that hangs must not keep the others from being shown
        try:
            return await thread.call("sample", lambda: take(label, device), FIRST_READ_SECONDS)
        except Unavailable as hanging:
            return failed(label, device.source, hanging.why, hanging.detail)

    return list(await asyncio.gather(*(one(label, device) for label, device in devices.items())))


def _leases(options: Options) -> list[dict[str, Any]]:
    try:
        folder = options.lease_folder or default_folder()
    except LeaseFault:
        return []
    return [_lease(lease) for lease in leases(folder)]


def _lease(lease: Lease) -> dict[str, Any]:
    try:
        record = lease.read()
        fields: dict[str, Any] = {} if record is None else record._asdict()
    except LeaseFault as fault:
        fields = {"fault": str(fault)}
    fields.pop("spec", None)
    return {**fields, "file": str(lease.file), "held": _is_held(lease)}


def _is_held(lease: Lease) -> bool | None:
    """Whether a process that runs holds it; None = not to be known."""
    try:
        return lease.is_locked()
    except LeaseFault:
        return None


def _line(sample: Sample, device: PowerDevice) -> str:
    head = f"{sample.device}  {device.name}  ({sample.source})"
    if sample.energy_joules is None and sample.power_watts is None and sample.state != "ok":
        return f"{head}\n    {sample.state.replace('_', ' ')}: {sample.detail}"
    rows = [
        ("energy", _value(sample, "energy_joules", "J", ".1f")),
        ("power", _value(sample, "power_watts", "W", ".1f")),
        ("instant power", _value(sample, "instant_power_watts", "W", ".1f")),
        ("SM clock", _value(sample, "sm_clock_mhz", "MHz", ".0f")),
        ("temperature", _value(sample, "temperature_celsius", "°C", ".0f")),
        ("limit", _limits(sample)),
        ("throttled by", _reasons(sample)),
        ("persistence mode", _persistence(sample)),
    ]
    if sample.limits is not None and sample.limits.enforced_watts is None:
        rows.append(("caps", ENFORCED_UNTOLD))
    if device.capabilities == {"energy_joules"}:
        rows = rows[:1]
    return "\n".join([head, *(f"    {name:17} {value}" for name, value in rows)])


def _value(sample: Sample, name: Any, unit: str, form: str) -> str:
    value = getattr(sample, name)
    return f"{value:{form}} {unit}" if value is not None else _missing(sample, name)


def _missing(sample: Sample, name: Any) -> str:
    return sample.missing.get(name, "no_data").replace("_", " ")


def _limits(sample: Sample) -> str:
    limits = sample.limits
    if limits is None:
        return _missing(sample, "limits")
    enforced = "not told" if limits.enforced_watts is None else f"{limits.enforced_watts:g} W"
    default = "not told" if limits.default_watts is None else f"{limits.default_watts:g} W"
    binds = {True: ", binding", False: ", not binding", None: ""}[sample.binding]
    return (
        f"{limits.requested_watts:g} W requested, {enforced} enforced{binds}"
        f" (default {default}, {limits.lowest_watts:g} to {limits.highest_watts:g} W)"
    )


def _reasons(sample: Sample) -> str:
    if sample.throttle_reasons is None:
        return _missing(sample, "throttle_reasons")
    return ", ".join(sorted(sample.throttle_reasons)) or "nothing"


def _persistence(sample: Sample) -> str:
    if sample.persistence_mode is None:
        return _missing(sample, "persistence_mode")
    return "on" if sample.persistence_mode else "off: a limit is forgotten when the last program leaves the card"


def _lease_line(lease: dict[str, Any]) -> str:
    who = f"process {lease.get('pid')} on {lease.get('host')}"
    state = {
        True: f"held by {who}",
        False: f"left by {who}: `joulegate power restore` puts it back",
        None: "of an account that we may not look at",
    }[lease["held"]]
    found = lease.get("snapshot_watts")
    was = "unchanged" if found is None else f"found at {found:g} W"
    return f"lease of {lease.get('device', lease['file'])}: {was}, {lease.get('fault') or state}"
