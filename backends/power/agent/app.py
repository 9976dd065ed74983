"""How does the agent speak HTTP: who may ask, and how much?"""

from __future__ import annotations

import asyncio
import json
import logging
import math
from typing import TYPE_CHECKING, Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from backends.power.agent.desk import Refused
from backends.power.tokens import same

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiohttp.typedefs import Handler, Middleware

    from backends.power.agent.desk import Desk

BODY_BYTES_MAX = 4096
BODY_SECONDS = 5.0
IN_FLIGHT_MAX = 64
CONNECTIONS_MAX = 128
KEEP_ALIVE_SECONDS = 30.0
"""Also how long a request's head may take to arrive."""
HOLDER_CHARS_MAX = 128

_log = logging.getLogger("joulegate.agent")


class _OneLine(logging.Filter):
    """aiohttp logs a traceback for each request that is not HTTP: the first line says all there is to say."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(error := record.exc_info[1], HttpProcessingError):
            record.msg, record.args = "%s: %r", (record.getMessage(), error.message[:256])
            record.exc_info = None
        return True


http_log = logging.getLogger("joulegate.agent.http")
http_log.addFilter(_OneLine())


class TooMany(asyncio.Protocol):
    """A connection over the limit."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Close it unread."""
        transport.close()


def application(desk: Desk, token: str) -> web.Application:
    """All of the agent's routes; none answers without the token."""

    async def devices(request: web.Request) -> web.Response:
        return web.json_response({"devices": desk.devices()})

    async def sample(request: web.Request) -> web.Response:
        return web.json_response(await desk.sample(request.match_info["id"]))

    async def lease(request: web.Request) -> web.Response:
        fields = await _fields(request, "holder")
        return web.json_response(await desk.hold(request.match_info["id"], _holder(fields)))

    async def let_go(request: web.Request) -> web.Response:
        fields = await _fields(request, "holder")
        return web.json_response(await desk.let_go(request.match_info["id"], _holder(fields)))

    async def limit(request: web.Request) -> web.Response:
        fields = await _fields(request, "holder", "watts")
        label, watts = request.match_info["id"], _positive(fields, "watts")
        return web.json_response(await desk.limit(label, _holder(fields), watts))

    async def clock(request: web.Request) -> web.Response:
        fields = await _fields(request, "holder", "lowest_mhz", "highest_mhz")
        bounds = None
        if fields["lowest_mhz"] is not None or fields["highest_mhz"] is not None:
            bounds = _positive(fields, "lowest_mhz"), _positive(fields, "highest_mhz")
        return web.json_response(await desk.clock(request.match_info["id"], _holder(fields), bounds))

    app = web.Application(middlewares=[_guard(token)], client_max_size=BODY_BYTES_MAX)
    app.router.add_get("/v1/devices", devices)
    app.router.add_get("/v1/devices/{id}", sample)
    app.router.add_post("/v1/devices/{id}/lease", lease)
    app.router.add_delete("/v1/devices/{id}/lease", let_go)
    app.router.add_post("/v1/devices/{id}/limit", limit)
    app.router.add_post("/v1/devices/{id}/clock", clock)
    return app


def _guard(token: str) -> Middleware:
    in_flight = 0

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        nonlocal in_flight
        if not same(request.headers.get("authorization", ""), token):
            answer = _error(401, "no_permission", "send the agent's token: Authorization: Bearer …")
            answer.headers["www-authenticate"] = "Bearer"
            answer.force_close()  # whatever body comes is not read
            return answer
        if in_flight >= IN_FLIGHT_MAX:
            return _error(503, "too_many", f"{IN_FLIGHT_MAX} requests are under way")
        in_flight += 1
        try:
            return await _answered(lambda: handler(request))
        finally:
            in_flight -= 1

    return guard


async def _answered(answer: Callable[[], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
    try:
        return await answer()
    except Refused as refused:
        return _error(refused.status, refused.code, str(refused))
    except web.HTTPException as error:
        return _error(error.status, "http", error.reason)
    except Exception:  # noqa: BLE001  (whatever it is, the agent goes on)
        _log.exception("a request failed")
        return _error(500, "internal_error", "the agent's log says more")


async def _fields(request: web.Request, *names: str) -> dict[str, Any]:
    try:
        async with asyncio.timeout(BODY_SECONDS):
            data = await request.read()
    except TimeoutError:
        raise Refused(408, "timeout", f"the body has not arrived within {BODY_SECONDS:g} s") from None
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        raise Refused(400, "invalid", "the body is not JSON") from None
    if not isinstance(fields, dict) or set(fields) != set(names):
        raise Refused(400, "invalid", f"the body must be an object of {', '.join(names)}")
    return fields


def _holder(fields: dict[str, Any]) -> str:
    holder = fields["holder"]
    if not isinstance(holder, str) or not 1 <= len(holder) <= HOLDER_CHARS_MAX or not holder.isprintable():
        raise Refused(400, "invalid", f"holder must be 1 to {HOLDER_CHARS_MAX} printable characters")
    return holder


def _positive(fields: dict[str, Any], name: str) -> float:
    value = fields[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise Refused(400, "invalid", f"{name} must be a number above 0")
    return float(value)


def _error(status: int, code: str, message: str) -> web.Response:
    return web.json_response({"error": {"code": code, "message": message}}, status=status)
