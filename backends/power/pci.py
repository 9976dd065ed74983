"""Where is a card plugged in? The driver, zeusd and people write that in different ways."""

from __future__ import annotations

import re

_BUS_ID = re.compile(r"(?:([0-9a-f]{4}|[0-9a-f]{8}):)?([0-9a-f]{2}):([0-9a-f]{2})(?:\.([0-7]))?", re.IGNORECASE)


def bus_id(text: str) -> tuple[int, int, int, int] | None:
    """Domain, bus, device and function of a PCI bus id however it is written, or None."""
    found = _BUS_ID.fullmatch(text)
    if found is None:
        return None
    domain, bus, device, function = (int(part, 16) if part else 0 for part in found.groups())
    return domain, bus, device, function
