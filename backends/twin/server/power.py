"""The simulated cards' power over HTTP: what a driver would say of them, and a power limit to be set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from backends.power.device import Unavailable
from backends.twin.device import TwinDevice
from backends.twin.server.errors import ApiError
from backends.twin.server.fields import Fields
from backends.twin.server.service import json_answer

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp import web

    from backends.twin.server.service import Service


class LimitFields(Fields):
    """POST /power/limit."""

    limit_watts: float = Field(allow_inf_nan=False)


def reading(service: Service) -> dict[str, Any]:
    """One of the engine's cards, now; null for what cannot be read yet."""
    now = service.runtime.look()
    engine = service.runtime.engine
    device = TwinDevice(engine, lambda: now)
    limits = device.limits()
    return {
        "source": device.source,
        "card": device.name,
        "gpus": engine.calibration.card.gpus,
        "time_seconds": now,
        "energy_joules": device.energy_joules(),
        "power_watts": _or_none(device.power_watts),
        "instant_power_watts": _or_none(device.instant_power_watts),
        "sm_clock_mhz": device.sm_clock_mhz(),
        "throttle_reasons": sorted(device.throttle_reasons()),
        "limit_watts": {
            "requested": limits.requested_watts,
            "enforced": limits.enforced_watts,
            "default": limits.default_watts,
            "min": limits.lowest_watts,
            "max": limits.highest_watts,
        },
    }


def _or_none(read: Callable[[], float]) -> float | None:
    try:
        return read()
    except Unavailable:
        return None


async def power(service: Service, request: web.Request) -> web.Response:
    """GET /power."""
    del request
    return json_answer(reading(service))


async def set_limit(service: Service, request: web.Request) -> web.Response:
    """POST /power/limit: on each card, in force within its settling time."""
    fields = await service.fields(request, LimitFields)
    cards = service.runtime.engine.calibration.card.gpus
    try:
        service.runtime.set_limit_watts(fields.limit_watts * cards)
    except ValueError as error:
        raise ApiError(str(error), param="limit_watts") from None
    return json_answer(reading(service))
