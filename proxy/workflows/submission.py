"""What exactly does a client want run? The body of POST /v1/workflows, checked whole before anything is begun."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import orjson

from proxy.errors import RequestFault
from proxy.workflows.placeholders import NAME, Template, copied, in_json_string, template
from scheduler.workflow.spec import CLASSES, NodeSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

_NODE_NAME = re.compile(NAME)
_NODE_NAMES = re.compile(rf"{NAME}(?:\n{NAME})*+")
_WORKFLOW_ID = re.compile(r"[!-~]{1,256}")
_MEMBERS = frozenset(
    "id name class deadline_ms energy_budget_joules nodes outputs inputs mode stream background".split()  # noqa: SIM905
)
_NODE_MEMBERS = frozenset(
    (
        *("id", "request", "after", "expected_output_tokens", "tool", "retry"),
        *("endpoint", "expected_seconds", "placeholders"),
    )
)
_USUAL_MEMBERS = frozenset(("id", "request", "after", "expected_output_tokens"))
ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
_OUTPUT_LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
_SET_HERE = frozenset(("stream", "stream_options", "workflow"))
"""Members of a request that the gateway decides."""
BYTES_A_TOKEN = 4
RETRY_MAX = 10
_TEXT_MAX = 256
_NUMBER_MAX = 1e12


class NodePlan(NamedTuple):
    """What the gateway does for one node. `request` None: nothing, it is a tool."""

    spec: NodeSpec
    """As the scheduler is told of it: `data_from` are the nodes whose output stands in its request, each once."""
    endpoint: str
    request: Template | None
    retry: int
    """Further attempts after a failure that is not the request's own fault."""

    @property
    def id(self) -> str:
        """Its name in the workflow."""
        return self.spec.id

    @property
    def tool(self) -> bool:
        """The client's own work."""
        return self.spec.tool


class Submission(NamedTuple):
    """A workflow as submitted."""

    id: str | None
    name: str | None
    workflow_class: str | None
    deadline_ms: float | None
    energy_budget_joules: float | None
    specs: tuple[NodeSpec, ...]
    """All nodes, as the scheduler is told of them."""
    plans: tuple[NodePlan, ...]
    """The same, as they are run here; empty where the client makes the calls."""
    request_bytes: int
    """Of all requests together."""
    outputs: tuple[str, ...]
    """The nodes whose outputs the user waits for; empty: those that nobody waits for."""
    declared: bool
    """The client makes the calls itself."""
    stream: bool
    background: bool
    """Answer at once; the workflow goes on without its client."""


class Bounds(NamedTuple):
    """How much is taken."""

    nodes: int
    request_bytes: int
    """Of a node's request, with its inputs in it (`limits.body_bytes`)."""
    all_bytes: int
    """Of all requests of a workflow (`workflows.held_bytes`)."""


_Options = tuple[bool, str, int, float | None, bool]
"""Whether it is a tool, the endpoint, further attempts, a tool's seconds, and whether double braces are text. Plain: a
named tuple is taken apart three times as slowly."""
_USUAL: _Options = (False, ENDPOINTS[0], 0, None, False)


def parse(body: Mapping[str, Any], bounds: Bounds) -> Submission:
    """Check a submission. RequestFault 400 or 413 names the path of what is wrong."""
    _only(body, _MEMBERS, "")
    mode = body.get("mode", "run")
    if mode not in ("run", "declared"):
        _refuse("mode", 'must be "run" or "declared"')
    declared = mode == "declared"
    given = body.get("nodes")
    if not isinstance(given, list) or not given:
        _refuse("nodes", "must be a list of at least one node")
    if len(given) > bounds.nodes:
        message = f"nodes: {len(given)} are over the limit of {bounds.nodes} (workflows.nodes)"
        raise RequestFault(413, "workflow_too_large", message, param="nodes")
    known = _ids(given)
    specs, plans, size = _nodes(given, known, _inputs(body.get("inputs")), bounds, declared=declared)
    workflow_class = body.get("class")
    if workflow_class is not None and workflow_class not in CLASSES:
        _refuse("class", f"must be one of {', '.join(CLASSES)}")
    workflow_id = body.get("id")
    if workflow_id is not None and not (isinstance(workflow_id, str) and _WORKFLOW_ID.fullmatch(workflow_id)):
        _refuse("id", "must be 1 to 256 printable ASCII characters without blanks")
    return Submission(
        workflow_id,
        _text(body, "name"),
        workflow_class,
        _number(body, "deadline_ms"),
        _number(body, "energy_budget_joules"),
        tuple(specs),
        tuple(plans),
        size,
        _outputs(body.get("outputs"), known),
        declared,
        _switch(body, "stream", ""),
        _switch(body, "background", ""),
    )


def _ids(given: list[Any]) -> frozenset[str]:
    """The ids of all nodes; checked in one go, since nearly always all are good."""
    with suppress(TypeError, KeyError):
        names = [item["id"] for item in given]
        if _NODE_NAMES.fullmatch("\n".join(names)) and len(known := frozenset(names)) == len(names):
            return known
    ids: dict[str, int] = {}
    for at, item in enumerate(given):
        if not isinstance(item, dict):
            _refuse(f"nodes[{at}]", "must be an object")
        node_id = item.get("id")
        if not isinstance(node_id, str) or not _NODE_NAME.fullmatch(node_id):
            _refuse(f"nodes[{at}].id", "must be 1 to 128 letters, digits and _ . : -, a letter, digit or _ first")
        if (before := ids.setdefault(node_id, at)) != at:
            _refuse(f"nodes[{at}].id", f"{node_id!r} is the id of nodes[{before}] already", "duplicate_node")
    return frozenset(ids)


def _inputs(given: Any) -> dict[str, bytes]:
    """By name, as they stand in JSON's strings."""
    if given is None:
        return {}
    if not isinstance(given, dict):
        _refuse("inputs", "must be an object of values")
    inputs = {}
    for name, value in given.items():
        try:
            text = value if isinstance(value, str) else orjson.dumps(value).decode()
        except orjson.JSONEncodeError:  # reading takes deeper ones than writing
            _refuse(f"inputs.{name[:64]}", "is nested too deeply")
        inputs[name] = in_json_string(text)
    return inputs


def _nodes(
    given: list[dict[str, Any]], known: frozenset[str], inputs: dict[str, bytes], bounds: Bounds, *, declared: bool
) -> tuple[list[NodeSpec], list[NodePlan], int]:
    """What the scheduler is told, what is run here, and how many bytes the requests have. Ten thousand nodes shall take
    little: what nearly all have is read here, the rest beside it."""
    specs: list[NodeSpec] = []
    plans: list[NodePlan] = []
    size = 0
    usual, set_here, dumps, new = _USUAL_MEMBERS.issuperset, _SET_HERE.isdisjoint, orjson.dumps, tuple.__new__
    for at, item in enumerate(given):
        get, node_id = item.get, item["id"]
        tool, endpoint, retry, seconds, literal = _USUAL if usual(item) else _options(item, at)
        after = () if (after := get("after")) is None else _after(after, at, node_id, known)
        tokens = get("expected_output_tokens")
        if tokens is not None and (type(tokens) is not int or not 0 <= tokens < 2**31):
            _refuse(f"nodes[{at}].expected_output_tokens", "must be a whole number of tokens")
        cut, estimate, model, limit = None, None, None, None
        data_from: tuple[str, ...] = ()
        if (request := get("request")) is not None:
            if type(request) is not dict or tool:
                _refuse_request(at, tool=tool)
            if not set_here(request):
                request = {name: value for name, value in request.items() if name not in _SET_HERE}
            try:
                data = dumps(request)
            except orjson.JSONEncodeError:  # reading takes deeper ones than writing
                _refuse(f"nodes[{at}].request", "is nested too deeply")
            count = len(data)
            if b"{{" in data and not literal:
                cut = template(request, data, inputs, known, f"nodes[{at}].request", bounds.request_bytes)
                count, data_from = cut.size_bytes, tuple(dict.fromkeys(cut.references))
                if node_id in data_from:
                    _refuse(f"nodes[{at}].request", f"needs the output of the node itself, {node_id!r}", "cycle")
            elif not declared:
                cut = new(Template, ((copied(data),), (), count))
            size += count
            if size > bounds.all_bytes:
                what = f"over {bounds.all_bytes} bytes (workflows.held_bytes), inputs included"
                raise RequestFault(413, "workflow_too_large", f"nodes: their requests have {what}", param="nodes")
            estimate, model, limit = count // BYTES_A_TOKEN, request.get("model"), _limit(request)
            if model is not None and type(model) is not str:
                _refuse(f"nodes[{at}].request.model", "must be a string")
        elif not tool and not declared:
            what = 'is missing: the body of a call (or "tool": true, or mode "declared")'
            _refuse(f"nodes[{at}].request", what)
        # `new` is what `NodeSpec(…)` comes to, by way of a function in Python that takes twice as long.
        spec = new(NodeSpec, (node_id, after, data_from, tokens, limit, estimate, model, tool, seconds, (), None))
        specs.append(spec)
        if not declared:
            plans.append(new(NodePlan, (spec, endpoint, cut, retry)))
    return specs, plans, size


def _options(item: dict[str, Any], at: int) -> _Options:
    """What few nodes say."""
    place = f"nodes[{at}]."
    _only(item, _NODE_MEMBERS, place)
    endpoint, retry = item.get("endpoint", ENDPOINTS[0]), item.get("retry", 0)
    if endpoint not in ENDPOINTS:
        _refuse(f"{place}endpoint", f"must be one of {', '.join(ENDPOINTS)}")
    if type(retry) is not int or not 0 <= retry <= RETRY_MAX:
        _refuse(f"{place}retry", f"must be a whole number of further attempts, 0 to {RETRY_MAX}")
    return (
        _switch(item, "tool", place),
        endpoint,
        retry,
        _number(item, "expected_seconds", place),
        not _switch(item, "placeholders", place, default=True),
    )


def _refuse_request(at: int, *, tool: bool) -> NoReturn:
    if tool:
        what = "cannot be beside tool: a tool is the client's own work, and it posts the result"
        _refuse(f"nodes[{at}].request", what)
    _refuse(f"nodes[{at}].request", "must be an object: the body of a call")


def _after(given: Any, at: int, node_id: str, known: frozenset[str]) -> tuple[str, ...]:
    """All names at once, since nearly always all are good."""
    if not isinstance(given, list):
        _refuse(f"nodes[{at}].after", "must be a list of node ids")
    try:
        good = known.issuperset(given) and node_id not in given
    except TypeError:  # a list or an object among them
        good = False
    if not good:
        _refuse_after(given, at, node_id, known)
    return tuple(given)


def _refuse_after(given: list[Any], at: int, node_id: str, known: frozenset[str]) -> NoReturn:
    """Say which name it is."""
    for number, name in enumerate(given):
        if not isinstance(name, str) or name not in known:
            _refuse(f"nodes[{at}].after[{number}]", f"there is no node {str(name)[:128]!r}", "unknown_node")
        if name == node_id:
            _refuse(f"nodes[{at}].after[{number}]", f"{node_id!r} cannot wait for itself", "cycle")
    raise AssertionError(given)


def _outputs(given: Any, known: frozenset[str]) -> tuple[str, ...]:
    if given is None:
        return ()
    if not isinstance(given, list):
        _refuse("outputs", "must be a list of node ids")
    for at, name in enumerate(given):
        if not isinstance(name, str) or name not in known:
            _refuse(f"outputs[{at}]", f"there is no node {str(name)[:128]!r}", "unknown_node")
    return tuple(dict.fromkeys(given))


def _limit(request: dict[str, Any]) -> int | None:
    for name in _OUTPUT_LIMITS:
        if name in request and type(limit := request[name]) is int and limit > 0:
            n = request.get("n")
            return limit * n if type(n) is int and n > 1 else limit
    return None


def _only(given: Mapping[str, Any], members: frozenset[str], place: str) -> None:
    if not members.issuperset(given):
        name = next(name for name in given if name not in members)
        _refuse(f"{place}{name[:64]}", f"is not known here; known are {', '.join(sorted(members))}", "unknown_member")


def _switch(given: Mapping[str, Any], name: str, place: str, *, default: bool = False) -> bool:
    value = given.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        _refuse(f"{place}{name}", "must be true or false")
    return value


def _text(given: Mapping[str, Any], name: str) -> str | None:
    value = given.get(name)
    if value is not None and not (isinstance(value, str) and 0 < len(value) <= _TEXT_MAX and value.isprintable()):
        _refuse(name, f"must be 1 to {_TEXT_MAX} printable characters")
    return value


def _number(given: Mapping[str, Any], name: str, place: str = "") -> float | None:
    value = given.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _NUMBER_MAX:
        _refuse(f"{place}{name}", f"must be a number from 0 to {_NUMBER_MAX:.0f}")
    return value


def _refuse(param: str, what: str, reason: str = "invalid_workflow") -> NoReturn:
    raise RequestFault(400, reason, f"{param} {what}", param=param)
