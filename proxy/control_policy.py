"""The control plane's pages about the policy and its decisions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
from aiohttp import web

from proxy.policies import PolicyFault

if TYPE_CHECKING:
    from proxy.policies import PolicyDesk

SHOWN, SHOWN_MAX = 100, 4096


def add_pages(app: web.Application, desk: PolicyDesk) -> None:
    """`/admin/policy` and `/admin/decisions`."""

    async def get_policy(request: web.Request) -> web.Response:
        return _json(desk.describe())

    async def set_policy(request: web.Request) -> web.Response:
        # A page of somebody else's can send text to this port without asking, but not JSON.
        if request.content_type != "application/json":
            return _fault(415, "content_type", None, "send JSON, with content-type: application/json")
        try:
            wanted = orjson.loads(await request.read())
        except orjson.JSONDecodeError as error:
            return _fault(400, "json", None, f"the body is not JSON: {error}")
        try:
            return _json(desk.change(wanted))
        except PolicyFault as fault:
            return _fault(400, "policy", fault.param, str(fault))

    async def get_decisions(request: web.Request) -> web.Response:
        text = request.query.get("limit", str(SHOWN))
        if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= SHOWN_MAX):
            return _fault(400, "limit", "limit", f"must be a whole number from 1 up to {SHOWN_MAX}")
        return _json({"decisions": desk.decisions(int(text[:9]), request.query.get("workflow"))})

    async def get_decision(request: web.Request) -> web.Response:
        call_id = request.match_info["call_id"]
        told = desk.decision(call_id)
        if told is None:
            message = f"no call {call_id[:128]!r} is known; limits.decisions says how many are remembered"
            return _fault(404, "unknown_call", "call_id", message)
        return _json(told)

    app.router.add_get("/admin/policy", get_policy)
    app.router.add_post("/admin/policy", set_policy)
    app.router.add_get("/admin/decisions", get_decisions)
    app.router.add_get("/admin/decisions/{call_id}", get_decision)


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(value), status=status, content_type="application/json")


def _fault(status: int, code: str, param: str | None, message: str) -> web.Response:
    return _json({"error": {"message": message, "type": "control_error", "param": param, "code": code}}, status)
