"""From an HTTP request to a call: whose is it, what does it ask for, and what exactly will the engine be sent?"""

from __future__ import annotations

from hmac import compare_digest
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, unquote_to_bytes

import orjson
from pydantic import TypeAdapter, ValidationError

from proxy.errors import RequestFault
from proxy.http.relay import NOT_FORWARDED, request_fields
from proxy.identity import IdentityError, ResponseRoots, identify
from proxy.jsonedit import edit_members, set_nested
from proxy.jsonsize import over
from proxy.keys import KEY_HEADERS, Authorized, KeyRing
from proxy.own.router import KEYLESS
from proxy.routes import MODELS, OTHER, PREFLIGHT, ROUTES, Route, own_label, split_workflow

if TYPE_CHECKING:
    from proxy.call import Call
    from proxy.config import Config
    from proxy.http.peers import Client
    from proxy.http.request import Request

_REQUEST_ID_LENGTH_MAX = 256
_OUTPUT_LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
_COMPLEX_BYTES = 65_536
_INCLUDE_USAGE = b'{"include_usage":true}'
_BOOLEAN: TypeAdapter[bool] = TypeAdapter(bool)
_ONE_MODEL = b"/v1/models/"


def as_boolean(value: object) -> bool | None:
    """What vLLM takes a member for: its pydantic reads `"true"`, `1` and `"on"` as well. None: it will answer 400."""
    if value is None or isinstance(value, bool):
        return value is True
    try:
        return _BOOLEAN.validate_python(value)
    except ValidationError:
        return None


def _name(call: Call, fields: dict[bytes, bytes]) -> None:
    given = fields.get(b"x-request-id")
    if given and len(given) <= _REQUEST_ID_LENGTH_MAX:
        call.request_id = given.decode("latin-1")


class Admitted:
    """What will be sent to an engine, whichever it is."""

    __slots__ = ("body", "document", "fields", "models_asked", "take_out_usage", "takes_priority", "target")

    def __init__(self, target: bytes, fields: bytes, body: bytes) -> None:
        self.target = target
        self.fields = fields
        """Header lines, without Host and Content-Length."""
        self.body = body
        self.document: dict[str, Any] | None = None
        """The client's body, read."""
        self.take_out_usage = False
        """Usage was asked for by us and not by the client."""
        self.takes_priority = False
        """A `priority` member may be added to the body."""
        self.models_asked = False


class Admission:
    """Keys, routes, identity and the rewriting of bodies. Raises RequestFault for what is refused."""

    def __init__(self, config: Config) -> None:
        self.roots = ResponseRoots(config.limits.response_roots)
        self.configure(config)

    def configure(self, config: Config) -> None:
        """Take over a new configuration; its [log] and [tracing] are those in force."""
        self.keys = KeyRing(config.keys)
        self.roots.resize(config.limits.response_roots)
        self._keep_prompts = config.log.prompts
        self._json_values = config.limits.json_values
        replaced = any(engine.key() for engine in config.engines)
        # The client's key is ours when keys are configured, and useless to an engine that has one of its own.
        self._dropped = NOT_FORWARDED | KEY_HEADERS if config.keys or replaced else NOT_FORWARDED
        if config.tracing.otlp_endpoint:
            self._dropped |= {b"traceparent"}  # the engine's parent is our span

    def authenticate(self, request: Request, connection: Client) -> str:
        """The name of the request's key; "-" where no keys are configured. RequestFault 401 for any other.

        A client sends the same key with every request of a connection: it is hashed once.
        """
        if not self.keys.configured:
            return "-"
        presented, known = request.fields.get(b"authorization"), connection.authorized
        if presented and known is not None and known.keys is self.keys and compare_digest(presented, known.presented):
            return known.name
        name = self.keys.authenticate(request.fields)
        if name is None:
            message = "no valid API key in Authorization: Bearer, x-api-key or api-key"
            raise RequestFault(401, "invalid_api_key", message, close=b"content-length" in request.fields)
        if presented:
            connection.authorized = Authorized(self.keys, presented, name)
        return name

    def check_before_body(self, request: Request, connection: Client, *, keyless: bool = False) -> None:
        """RequestFault 401 before a body is read (or asked for with 100-continue). `keyless`: a key may stand in it."""
        if request.method == b"OPTIONS" and request.fields.get(b"content-length") == b"0":
            return
        try:
            request.key_name = self.authenticate(request, connection)
        except RequestFault:
            if not keyless:
                raise
            request.strangers = True

    def admit(self, request: Request, connection: Client, call: Call) -> Admitted:
        """Fill in the call; returns what the engine will be sent."""
        target = path = request.target
        path_workflow = None
        if target[:3] == b"/w/":
            path_workflow, target = split_workflow(target)
            path = target
        if b"?" in path:
            path = path[: path.index(b"?")]
        fields = request.fields
        call.path = path.decode("latin-1")
        _name(call, fields)
        if request.method == b"OPTIONS":
            return self._preflight(request, target, call)
        call.key_name = request.key_name or self.authenticate(request, connection)
        route = ROUTES.get(path)
        if route is None:
            # Engines decode the path before they look: so it is done here, or a call could be had without its rules.
            route = ROUTES.get(unquote_to_bytes(path), OTHER) if b"%" in path else OTHER
            if path[: len(_ONE_MODEL)] == _ONE_MODEL and request.method in (b"GET", b"HEAD"):
                route = MODELS
                call.model = unquote(path[len(_ONE_MODEL) :].decode("latin-1")) or None
        call.route = route.label
        body = self._json_object(request, route)
        try:
            ours = request.identity
            call.identity = ours or identify(fields, body, path_workflow, self.roots, call.key_name)
        except IdentityError as error:
            raise RequestFault(400, "invalid_workflow", str(error), param=error.field) from None
        lines = request_fields(request, self._dropped) + b"x-request-id: %b\r\n" % call.request_id.encode("latin-1")
        admitted = Admitted(target, lines, request.body)
        admitted.models_asked = path == b"/v1/models" and request.method in (b"GET", b"HEAD")
        if body is not None:
            admitted.document = body
            self._read_body(body, call)
            self._rewrite(admitted, route, body, call.stream)
            if self._keep_prompts:
                call.prompt_text = request.body
        return admitted

    def admit_own(self, request: Request, connection: Client, call: Call) -> str:
        """A request that is answered here (`proxy.own`): fill in the call; returns its key's name, "" where its handler
        looks for the key itself."""
        path = request.target.partition(b"?")[0]
        call.path, call.route = path.decode("latin-1"), own_label(path)
        _name(call, request.fields)
        if path.startswith(KEYLESS):
            return ""
        call.key_name = request.key_name or self.authenticate(request, connection)
        return call.key_name

    def _preflight(self, request: Request, target: bytes, call: Call) -> Admitted:
        """A browser asks whether it may ask: it sends no key, and vLLM's own check of keys lets OPTIONS pass too.

        Counted as a route and a key (none) of its own; what body there is stays here, and so does a key.
        """
        call.route = PREFLIGHT.label
        dropped = self._dropped | KEY_HEADERS if self.keys.configured else self._dropped
        lines = request_fields(request, dropped) + b"x-request-id: %b\r\n" % call.request_id.encode("latin-1")
        return Admitted(target, lines, b"")

    def _json_object(self, request: Request, route: Route) -> dict[str, Any] | None:
        """The body as a JSON object; None where there is none to look into."""
        data = request.body
        if request.method != b"POST":
            return None
        fields = request.fields
        if not route.json_body and (not data or b"json" not in fields.get(b"content-type", b"").lower()):
            return None
        if b"content-encoding" in fields and fields[b"content-encoding"].lower() != b"identity":
            if not route.json_body:
                return None
            raise RequestFault(415, "content_encoding", "a compressed body cannot be read here; send it uncompressed")
        if not data:
            raise RequestFault(400, "empty_body", "the body is empty; it must be a JSON object")
        if len(data) > _COMPLEX_BYTES and over(data, self._json_values):
            message = f"the body has over {self._json_values} values (limits.json_values)"
            raise RequestFault(413, "body_too_complex", message)
        try:
            body = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            if not route.json_body:
                return None
            raise RequestFault(400, "invalid_json", f"the body is not valid JSON: {error}") from None
        if not isinstance(body, dict):
            if not route.json_body:
                return None
            message = f"the body must be a JSON object, not {type(body).__name__}"
            raise RequestFault(400, "invalid_body", message)
        return body

    def _read_body(self, body: dict[str, Any], call: Call) -> None:
        model = body.get("model")
        if model is not None:
            if not isinstance(model, str):
                message = f"model must be a string, not {type(model).__name__}"
                raise RequestFault(400, "invalid_model", message, param="model")
            call.model = model
        stream = body.get("stream")
        call.stream = stream is True or (stream is not None and as_boolean(stream) is True)
        for name in _OUTPUT_LIMITS:
            limit = body.get(name)
            if type(limit) is int and limit > 0:
                n = body.get("n")
                call.max_output_tokens = limit * n if type(n) is int and n > 1 else limit
                break

    def _rewrite(self, admitted: Admitted, route: Route, body: dict[str, Any], stream: bool) -> None:
        """Take our own member out; ask for the usage of streams that would not report it."""
        add: dict[str, bytes] = {}
        remove: tuple[str, ...] = ("workflow",) if "workflow" in body else ()
        if route.usage_option:
            admitted.takes_priority = "priority" not in body
            if stream:
                options = body.get("stream_options")
                if options is None:
                    admitted.take_out_usage = True
                    add["stream_options"] = _INCLUDE_USAGE
                    remove = (*remove, "stream_options") if "stream_options" in body else remove
                elif isinstance(options, dict) and as_boolean(options.get("include_usage")) is False:
                    admitted.take_out_usage = True
                    admitted.body = set_nested(admitted.body, "stream_options", "include_usage", b"true")
                    if options.get("continuous_usage_stats"):  # counts only beside include_usage: it did nothing
                        body_now = admitted.body
                        admitted.body = set_nested(body_now, "stream_options", "continuous_usage_stats", b"false")
        if add or remove:
            admitted.body = edit_members(admitted.body, remove, add)
