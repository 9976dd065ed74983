"""vLLM's sleep mode, simulated: `/sleep`, `/wake_up`, `/is_sleeping`. Served with --enable-sleep-mode only."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from backends.twin.server.errors import ApiError
from backends.twin.server.service import json_answer

if TYPE_CHECKING:
    from aiohttp import web

    from backends.twin.server.service import Service


async def sleep(service: Service, request: web.Request) -> web.Response:
    """POST /sleep?level=1&mode=wait. vLLM's other levels and its `abort`, which cuts calls off, are not simulated."""
    level, mode = request.query.get("level", "1"), request.query.get("mode", "abort")
    if level != "1":
        raise ApiError(f"level={level}: the twin simulates level 1 only", param="level")
    runtime = service.runtime
    runtime.look()
    if mode != "wait" and runtime.engine.requests:
        raise ApiError(f"mode={mode}: calls run, and the twin cuts none off; ask with mode=wait", param="mode")
    await runtime.sleep()
    return json_answer({"status": "sleeping", "level": 1})


async def wake_up(service: Service, request: web.Request) -> web.Response:
    """POST /wake_up."""
    del request
    if service.runtime.asleep:
        await asyncio.sleep(service.wake_seconds / service.runtime.speed)
    service.runtime.wake_up()
    return json_answer({"status": "awake", "tags": None})


async def is_sleeping(service: Service, request: web.Request) -> web.Response:
    """GET /is_sleeping."""
    del request
    return json_answer({"is_sleeping": service.runtime.asleep})
