"""Which device does a name mean, and how does another process open the same one?

GPU-… · 0 · 0000:3b:00.0    a card of this host, by NVML; its limit is set through zeusd where that is configured
zeusd/0                     a card by zeusd's index
agent:NAME/CARD             a card of the agent of that name
twin:http://HOST:PORT       a simulated card
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from backends.power.device import PowerDevice, Unavailable
from backends.power.pci import bus_id

if TYPE_CHECKING:
    from collections.abc import Mapping


class AgentAt(NamedTuple):
    """Where an agent is."""

    url: str
    token_file: Path


class Where(NamedTuple):
    """What names need to be understood."""

    agents: Mapping[str, AgentAt] = {}
    zeusd: str = ""
    """its Unix socket or URL; empty = none"""
    zeusd_token_file: Path | None = None
    holder: str = ""
    """by which an agent knows this process"""


class UnknownGpu(ValueError):
    """A name that means no device, or one that cannot be spoken to. The message says what would."""


def check_name(name: str, where: Where) -> None:
    """Whether a name means a device, offline. UnknownGpu."""
    kind, _, rest = name.partition(":")
    if kind == "twin":
        if not rest.startswith(("http://", "https://")):
            raise UnknownGpu(f"{name!r}: must be twin:http://HOST:PORT")
    elif kind == "agent":
        agent, _, card = rest.partition("/")
        if agent not in where.agents or not card:
            known = ", ".join(f"agent:{known}/…" for known in where.agents) or "none is configured"
            raise UnknownGpu(f"{name!r}: must be agent:NAME/CARD with an agent of [[power.agents]] ({known})")
    elif name.startswith("zeusd/"):
        if not where.zeusd or not _is_index(name.removeprefix("zeusd/")):
            raise UnknownGpu(f"{name!r}: must be zeusd/INDEX, with power.zeusd set to its socket or URL")
    elif not (name.startswith("GPU-") or bus_id(name) or _is_index(name)):
        ways = "a UUID (GPU-…), an index, a PCI bus id, agent:NAME/CARD or zeusd/0"
        raise UnknownGpu(f"{name!r} names no GPU: give {ways}")


def open_device(name: str, where: Where) -> PowerDevice:
    """The device of that name, whether or not it can be reached now. UnknownGpu, also for a token or address."""
    check_name(name, where)
    try:
        return _open(name, where)
    except ValueError as wrong:
        raise UnknownGpu(f"{name!r}: {wrong}") from None


def _open(name: str, where: Where) -> PowerDevice:
    if name.startswith("twin:"):
        from backends.power.twin_http import TwinHttpDevice

        return TwinHttpDevice(name.removeprefix("twin:"))
    if name.startswith("agent:"):
        from backends.power.agent_client import AgentDevice

        agent, _, card = name.removeprefix("agent:").partition("/")
        return AgentDevice(where.agents[agent].url, card, where.agents[agent].token_file, where.holder)
    if name.startswith("zeusd/"):
        from backends.power.zeusd import ZeusdDevice

        return ZeusdDevice(where.zeusd, int(name.removeprefix("zeusd/")), token_file=where.zeusd_token_file)
    return _local(name, where)


def _local(name: str, where: Where) -> PowerDevice:
    from backends.power.nvml import NvmlDevice

    card = NvmlDevice(name)
    if not where.zeusd:
        return card
    from backends.power.zeusd import ZeusdDevice, index_at

    try:
        index = index_at(where.zeusd, card.bus_id(), where.zeusd_token_file)
    except Unavailable:  # it is only read until the next start; what is wrong shows in its samples
        return card
    return ZeusdDevice(where.zeusd, index, card, where.zeusd_token_file)


def reopen(spec: Mapping[str, Any]) -> PowerDevice:
    """The device that another process held, from what it left in its lease. ValueError."""
    try:
        return _reopen(spec)
    except (KeyError, TypeError) as error:
        raise ValueError(f"a lease names no device that could be opened: {error!r}") from None


def _reopen(spec: Mapping[str, Any]) -> PowerDevice:
    kind = spec["kind"]
    token_file = Path(spec["token_file"]) if spec.get("token_file") else None
    if kind == "nvml":
        from backends.power.nvml import NvmlDevice

        return NvmlDevice(str(spec["gpu"]))
    if kind == "twin":
        from backends.power.twin_http import TwinHttpDevice

        return TwinHttpDevice(str(spec["url"]), int(spec["card"]))
    if kind == "zeusd":
        from backends.power.zeusd import ZeusdDevice

        reader = None if spec["reader"] is None else reopen(spec["reader"])
        return ZeusdDevice(str(spec["address"]), int(spec["index"]), reader, token_file)
    if kind == "agent" and token_file is not None:
        from backends.power.agent_client import AgentDevice

        return AgentDevice(str(spec["url"]), str(spec["card"]), token_file, str(spec["holder"]))
    raise KeyError(kind)


def _is_index(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 5
