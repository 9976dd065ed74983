"""Parrot's API over HTTP: which request does what, whose session is it, and how are errors told?"""

from __future__ import annotations

import asyncio
import base64
import binascii
from time import monotonic
from typing import TYPE_CHECKING, Any

from proxy.errors import RequestFault
from proxy.identity import Identity
from proxy.parrot.faults import unknown_session
from proxy.parrot.forms import NAME_LENGTH_MAX, Output, objective_of, semantic_call, text_of
from proxy.parrot.models import Models
from proxy.parrot.sessions import NO_KEY, Session, Sessions, session_id_of
from proxy.parrot.work import SOURCE, Work

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from proxy.gateway import Gateway
    from proxy.keys import KeyRing
    from proxy.own.request import OwnRequest
    from proxy.own.router import Router
    from proxy.parrot.config import ParrotConfig
    from proxy.parrot.graph import Variable

    Answerer = Callable[[OwnRequest], Awaitable[dict[str, Any]]]

BASES = ("", "/parrot")
"""What may stand before `/v1/…`: the front end is given `http://host:8080` or `http://host:8080/parrot`."""
_NATIVE_REFUSED = (
    "py_native_call is refused: it carries Python byte code, and running a client's code in the server would be remote "
    "code execution; compute in the client, and write the result with POST /v1/semantic_var/{var_id}"
)


class _Client:
    """What a session needs beside the session itself."""

    def __init__(self, ring: KeyRing, credential: bytes, work: Work) -> None:
        self.ring = ring
        self.credential = credential
        """Looked at again after a reload: a key that was taken away ends the use of its sessions."""
        self.work = work


class ParrotDoor:
    """The sessions behind the routes. `tick` now and then; `close` at the end."""

    def __init__(self, gateway: Gateway, config: ParrotConfig) -> None:
        self._gateway = gateway
        self._sessions = Sessions(config, self._busy, self._ended)
        self._models = Models(gateway, config)
        self._clients: dict[Session, _Client] = {}

    # --- for whoever runs the gateway ---

    @property
    def sessions_open(self) -> int:
        """Sessions that can be used."""
        return len(self._sessions.open)

    @property
    def variables(self) -> int:
        """Semantic variables of all sessions."""
        return self._sessions.variables

    @property
    def held_bytes(self) -> int:
        """Bytes of templates, names and contents of all sessions."""
        return self._sessions.held_bytes

    def configure(self, config: ParrotConfig) -> None:
        """Other limits after a reload; sessions that hold more keep it."""
        self._sessions.config = self._models.config = config
        for client in self._clients.values():
            client.work.configure(config)

    def tick(self, now: float) -> None:
        """End the sessions that nobody has used for too long."""
        self._sessions.tick(now)

    def close(self) -> None:
        """End all sessions."""
        fault = RequestFault(503, "draining", "the gateway is shutting down")
        for session in list(self._sessions.open.values()):
            self._sessions.end(session, fault)

    def routes(self, router: Router) -> None:
        """Add the API's paths."""
        for base in BASES:
            for method, path, answerer in (
                ("POST", "/v1/session", self._begin),
                ("DELETE", "/v1/session/{id}", self._end),
                ("GET", "/v1/session/{id}", self._show),
                ("POST", "/v1/semantic_call", self._call),
                ("POST", "/v1/semantic_var", self._new),
                ("POST", "/v1/semantic_var/{id}", self._set),
                ("GET", "/v1/semantic_var/{id}", self._get),
                ("POST", "/v1/py_native_call", self._native),
                ("POST", "/v1/submit_py_native_call", self._native),  # as the asynchronous client has it
            ):
                router.add(method, base + path, _handler(answerer))

    # --- the requests ---

    async def _begin(self, request: OwnRequest) -> dict[str, Any]:
        body = _loose(request)
        ring = self._gateway.admission.keys
        key_name, credential = NO_KEY, b""
        if ring.configured:
            key_name, credential = _authenticated(ring, [*_credentials(request), _api_key(body)])
        session = self._sessions.begin(key_name, monotonic())
        work = Work(self._gateway, self._sessions.config, self._models, session)
        self._clients[session] = _Client(ring, credential, work)
        self._sign(request, session)
        return {"session_id": session.id, "session_auth": session.auth}

    async def _show(self, request: OwnRequest) -> dict[str, Any]:
        _unlogged(request)
        raise RequestFault(405, "method", "GET is not possible here; DELETE is")

    async def _end(self, request: OwnRequest) -> dict[str, Any]:
        _unlogged(request)
        body, given = _loose(request), request.params["id"]
        if not given.isascii() or not given.isdigit() or len(given) > 20:
            raise unknown_session()
        session = self._session(request, {**body, "session_id": int(given)})
        self._sessions.end(session, RequestFault(410, "session_deleted", "session_id: the session has been deleted"))
        return {}

    async def _call(self, request: OwnRequest) -> dict[str, Any]:
        body = request.json()
        session = self._session(request, body)
        form = semantic_call(body)
        self._models.check(form.models)
        number, variables, generations = session.submit(form)
        if form.objective is not None:
            for generation in generations:
                self._clients[session].work.ask(generation.output, form.objective)
        info = [
            {
                "parameter_name": name,
                "is_output": isinstance(form.parameters[name], Output),
                "var_name": variable.name,
                "var_id": variable.id,
            }
            for name, variable in variables.items()
        ]
        return {"request_id": number, "param_info": info}

    async def _new(self, request: OwnRequest) -> dict[str, Any]:
        body = request.json()
        session = self._session(request, body)
        return {"var_id": session.new_variable(text_of(body, "var_name", length_max=NAME_LENGTH_MAX)).id}

    async def _set(self, request: OwnRequest) -> dict[str, Any]:
        body = request.json()
        session = self._session(request, body)
        variable = session.variable(request.params["id"], "var_id")
        self._clients[session].work.run(session.write(variable, text_of(body, "content")))
        return {}

    async def _get(self, request: OwnRequest) -> dict[str, Any]:
        body = request.json()
        session = self._session(request, body)
        variable = session.variable(request.params["id"], "var_id")
        criterion = body.get("criteria")
        objective = "latency" if criterion is None else objective_of(criterion, "criteria")
        if not variable.settled:
            if variable.producer is None:
                message = f"var_id: the variable {variable.name!r} is not written, and no call will write it"
                raise RequestFault(409, "no_producer", message, param="var_id")
            self._clients[session].work.ask(variable, objective)
            await _settled(variable)
            self._sessions.use(session, monotonic())
        if variable.fault is not None:
            raise variable.fault
        return {"content": variable.content}

    async def _native(self, request: OwnRequest) -> dict[str, Any]:
        raise RequestFault(403, "native_call", _NATIVE_REFUSED)

    # --- whose session ---

    def _session(self, request: OwnRequest, body: dict[str, Any]) -> Session:
        """The session that a body names, if whoever asks may use it."""
        ring = self._gateway.admission.keys
        key_name = None
        if ring.configured and (credentials := _credentials(request)):
            key_name, _ = _authenticated(ring, credentials)
        session = self._sessions.find(session_id_of(body), key_name, monotonic())
        if body.get("session_auth", session.auth) != session.auth:
            raise unknown_session()
        client = self._clients[session]
        if client.ring is not ring:
            if ring.configured and _authenticated(ring, [client.credential])[0] != session.key_name:
                raise unknown_session()
            client.ring = ring
        self._sign(request, session)
        return session

    def _sign(self, request: OwnRequest, session: Session) -> None:
        """The call log and the metrics say whose it was."""
        request.key_name = request.call.key_name = session.key_name
        request.call.identity = Identity(session.workflow_id, SOURCE)

    def _busy(self, session: Session) -> bool:
        return self._clients[session].work.busy()

    def _ended(self, session: Session) -> None:
        self._clients.pop(session).work.close()


def register(router: Router, gateway: Gateway, config: ParrotConfig) -> ParrotDoor:
    """Open Parrot's API on a gateway."""
    door = ParrotDoor(gateway, config)
    door.routes(router)
    return door


def _handler(answerer: Answerer) -> Callable[[OwnRequest], Awaitable[None]]:
    async def handle(request: OwnRequest) -> None:
        try:
            answer = await answerer(request)
        except RequestFault as fault:
            _refuse(request, fault)
        except asyncio.CancelledError:
            _refuse(request, RequestFault(503, "draining", "the gateway is shutting down; try another instance"))
            raise
        else:
            request.answer_json(answer, headers=_workflow(request))

    return handle


def _refuse(request: OwnRequest, fault: RequestFault) -> None:
    """Errors in Parrot's shape: a text, not an object."""
    headers = [(b"x-joulegate-reason", fault.reason.encode("ascii")), *_workflow(request)]
    if fault.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if fault.status in (429, 503):
        headers.append((b"retry-after", b"%d" % max(1, round(fault.retry_after_seconds or 1))))
    request.answer_json({"error": fault.message}, fault.status, headers, fault.reason)


def _unlogged(request: OwnRequest) -> None:
    """Whoever reads the call log must not be able to use a session: its id stands in the path of these requests."""
    request.call.path = request.call.path.rpartition("/session/")[0] + "/session/-"


def _workflow(request: OwnRequest) -> list[tuple[bytes, bytes]]:
    workflow_id = request.call.identity.workflow_id
    return [(b"x-workflow-id", workflow_id.encode("ascii"))] if workflow_id else []


async def _settled(variable: Variable) -> None:
    """Wait for a variable. Who stops waiting ends nothing but the wait."""
    future = asyncio.get_running_loop().create_future()

    def tell() -> None:
        if not future.done():
            future.set_result(None)

    variable.watchers.append(tell)
    try:
        await future
    finally:
        if tell in variable.watchers:
            variable.watchers.remove(tell)


def _loose(request: OwnRequest) -> dict[str, Any]:
    """A body of which nothing is needed: empty, or any JSON."""
    if not request.body.strip():
        return {}
    try:
        return request.json()
    except RequestFault as fault:
        if fault.reason != "invalid_body":
            raise
        return {}


def _api_key(body: dict[str, Any]) -> bytes:
    key = body.get("api_key")
    return key.encode() if isinstance(key, str) else b""


def _credentials(request: OwnRequest) -> list[bytes]:
    """The keys in a request's headers. Clients that are given `http://any:KEY@host` send it as Basic does."""
    found = []
    scheme, _, rest = (request.header(b"authorization") or "").strip().partition(" ")
    if scheme.lower() == "bearer":
        found.append(rest.strip().encode("latin-1"))
    elif scheme.lower() == "basic":
        try:
            found.append(base64.b64decode(rest.strip(), validate=True).partition(b":")[2])
        except (binascii.Error, ValueError):
            found.append(b"")
    elif scheme:
        found.append(b"")
    found += [value.encode("latin-1") for name in (b"x-api-key", b"api-key") if (value := request.header(name))]
    return found


def _authenticated(ring: KeyRing, credentials: list[bytes]) -> tuple[str, bytes]:
    """Whose key one of them is, and which. RequestFault 401 if none is anybody's."""
    for credential in credentials:
        if credential and (name := ring.authenticate({b"x-api-key": credential})) is not None:
            return name, credential
    message = "no valid API key in the session's api_key or in Authorization (Bearer, or Basic's password)"
    raise RequestFault(401, "invalid_api_key", message)
