"""Which requests of the data plane are the gateway's own, and which handler answers each?

Handlers are coroutines, one task a request: these are few beside the model calls, which never come here.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote

from proxy.errors import RequestFault

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from proxy.faults import Faults
    from proxy.own.request import OwnRequest

    Handler = Callable[[OwnRequest], Awaitable[None]]

PREFIXES = (
    b"/v1/workflows",
    b"/v1/files",
    b"/v1/batches",
    b"/v1/energy",
    b"/v1/session",
    b"/v1/semantic_",
    b"/v1/py_native_call",
    b"/v1/submit_py_native_call",
    b"/parrot/",
)
"""No engine has paths that begin so."""
KEYLESS = (b"/v1/session", b"/v1/semantic_", b"/v1/py_native_call", b"/v1/submit_py_native_call", b"/parrot/")
"""Parrot's front end names its key once, in the body that opens a session: its handlers look for themselves."""


class _Route(NamedTuple):
    method: str
    pattern: re.Pattern[str]
    handler: Handler


class Router:
    """Paths → handlers. A pattern is like `/v1/workflows/{id}`; `{…}` takes what is between two slashes."""

    def __init__(self, faults: Faults) -> None:
        self._routes: list[_Route] = []
        self._faults = faults
        self.tasks: set[asyncio.Task[None]] = set()

    def add(self, method: str, pattern: str, handler: Handler) -> None:
        """Answer this method and path with this handler."""
        regex = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", pattern)
        self._routes.append(_Route(method, re.compile(regex), handler))

    def start(self, request: OwnRequest) -> None:
        """Find the handler and run it. The answer may come at once or much later."""
        try:
            handler = self._find(request)
        except RequestFault as fault:
            request.fail(fault)
            return
        request.task = asyncio.get_running_loop().create_task(self._run(handler, request))
        self.tasks.add(request.task)
        request.task.add_done_callback(self.tasks.discard)

    async def close(self) -> None:
        """Cancel what still runs."""
        for task in list(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    def _find(self, request: OwnRequest) -> Handler:
        path = request.call.path.rstrip("/")
        allowed = set()
        for route in self._routes:
            if (match := route.pattern.fullmatch(path)) is not None:
                if route.method == request.method:
                    request.params = {name: unquote(value) for name, value in match.groupdict().items()}
                    return route.handler
                allowed.add(route.method)
        if allowed:
            message = f"{request.method} is not possible here; {', '.join(sorted(allowed))} is"
            raise RequestFault(405, "method", message)
        raise RequestFault(404, "not_found", f"there is no {path[:256]}")

    async def _run(self, handler: Handler, request: OwnRequest) -> None:
        try:
            await handler(request)
        except RequestFault as fault:
            request.fail(fault)
        except asyncio.CancelledError:
            if not request.over:
                request.fail(RequestFault(503, "draining", "the gateway is shutting down; try another instance"))
        except Exception as error:  # noqa: BLE001  (reported; the client gets no traceback)
            self._faults.report(f"{request.method} {request.call.path[:256]}", error)
            request.fail(RequestFault(500, "internal", "a fault of the gateway's; its log says more"))
