"""What does each node of a submission say? Read, and checked, so that ten thousand take little."""

from __future__ import annotations

from itertools import chain
from types import NoneType
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import orjson

from proxy.errors import RequestFault
from proxy.workflows.checks import number, only, refuse, switch
from proxy.workflows.placeholders import Request, copied, size_of, template
from scheduler.workflow.spec import NodeSpec

if TYPE_CHECKING:
    Item = dict[str, Any]

MEMBERS = frozenset(
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
_WRITTEN_AT_ONCE = 128
"""Requests that are written as JSON in one go."""
_CUT = orjson.Fragment(b"\n")
"""Stands between them: JSON escapes it within strings and orjson writes none elsewhere."""
_PLAIN = frozenset((dict, NoneType))
_LISTS = frozenset((list, NoneType))
_NAME_TYPES = frozenset((str, NoneType))


class Manner(NamedTuple):
    """How a node's call is made."""

    endpoint: str = ENDPOINTS[0]
    retry: int = 0
    """Further attempts after a failure that is not the request's own fault."""


class Bounds(NamedTuple):
    """How much is taken."""

    nodes: int
    request_bytes: int
    """Of a node's request, with its inputs in it (`limits.body_bytes`)."""
    all_bytes: int
    """Of all requests of a workflow (`workflows.held_bytes`)."""


class Nodes(NamedTuple):
    """All nodes of a submission."""

    specs: list[NodeSpec]
    """As the scheduler is told of them: `data_from` are the nodes whose output stands in the request, each once."""
    requests: list[Request | None]
    """Of each node what is sent for it; None: it is a tool. Empty where the client makes the calls."""
    manners: dict[str, Manner]
    """Of those nodes, by name, whose call is made in a manner of their own."""
    request_bytes: int


_Options = tuple[bool, Manner | None, float | None, bool]
"""Whether it is a tool, how it is called, a tool's seconds, and whether double braces are text. Plain: a named tuple is
taken apart three times as slowly."""
_USUAL: _Options = (False, None, None, False)
_Shape = tuple[bool, str | None]
"""What the members of a request alone say: whether it must be looked at closely, else which of them limits the
output."""


def read_nodes(
    given: list[Item], known: frozenset[str], inputs: dict[str, bytes], bounds: Bounds, *, declared: bool
) -> Nodes:
    """`given`: objects whose ids are `known`. RequestFault 400 or 413 names the path of what is wrong. What nearly all
    nodes have is read here, some at a time; the rest beside it."""
    specs: list[NodeSpec] = []
    sent: list[Request | None] = []
    manners: dict[str, Manner] = {}
    size, shapes = 0, dict[tuple[str, ...], _Shape]()
    usual, new = _USUAL_MEMBERS.issuperset, tuple.__new__
    for start in range(0, len(given), _WRITTEN_AT_ONCE):
        items = given[start : start + _WRITTEN_AT_ONCE]
        requests = [item.get("request") for item in items]
        texts, braces = _written(requests, start)
        listed = [item.get("after") for item in items]
        good = _all_known(listed, known)
        for at, (item, request, after, data) in enumerate(zip(items, requests, listed, texts, strict=True), start):
            node_id, tokens = item["id"], item.get("expected_output_tokens")
            tool, manner, seconds, literal = _USUAL if usual(item) else _options(item, at)
            if manner is not None:
                manners[node_id] = manner
            if after is not None and (after or not good):
                after = tuple(after) if good and node_id not in after else _after(after, at, node_id, known)
            if tokens is not None and (type(tokens) is not int or not 0 <= tokens < 2**31):
                refuse(f"nodes[{at}].expected_output_tokens", "must be a whole number of tokens")
            text: Request | None = None
            estimate, model, limit = None, None, None
            data_from: tuple[str, ...] = ()
            if request is not None:
                members = tuple(request)
                if (shape := shapes.get(members)) is None:
                    shape = shapes[members] = _shape(request)
                if shape[0]:
                    request, data, limit = _closely(request, data)
                elif type(limit := request.get(shape[1])) is not int or limit <= 0:
                    limit = None
                count = len(data)
                text = data
                if braces and b"{{" in data and not literal:
                    text = template(request, data, inputs, known, f"nodes[{at}].request", bounds.request_bytes)
                    count, data_from = size_of(text), _sources(text, node_id, at)
                size += count
                estimate, model = count // BYTES_A_TOKEN, request.get("model")
                if size > bounds.all_bytes or type(model) not in _NAME_TYPES:
                    _refuse_size_or_model(size, bounds, at)
            elif not tool and not declared:
                _refuse_request(at, missing=True)
            # `new` is what `NodeSpec(…)` comes to, by way of a function in Python that takes twice as long.
            spec = new(
                NodeSpec, (node_id, after or (), data_from, tokens, limit, estimate, model, tool, seconds, (), None)
            )
            specs.append(spec)
            if not declared:
                sent.append(text)
    return Nodes(specs, sent, manners, size)


def _written(requests: list[Any], start: int) -> tuple[list[bytes], bool]:
    """The JSON text of each request (of no matter where there is none), and whether there are double braces in any."""
    if not _PLAIN.issuperset(map(type, requests)):
        at = next(at for at, request in enumerate(requests, start) if type(request) not in _PLAIN)
        _refuse_request(at)
    if all(request is None for request in requests):
        return [b""] * len(requests), False
    parts: list[Any] = [_CUT] * (2 * len(requests) - 1)
    parts[::2] = requests
    try:
        text = orjson.dumps(parts)
    except orjson.JSONEncodeError:  # reading takes deeper ones than writing
        for at, request in enumerate(requests, start):
            try:
                orjson.dumps([request])
            except orjson.JSONEncodeError:
                refuse(f"nodes[{at}].request", "is nested too deeply")
        raise
    texts = text.split(b",\n,")
    texts[0] = texts[0][1:]
    texts[-1] = texts[-1][:-1]
    return texts, b"{{" in text


def _all_known(listed: list[Any], known: frozenset[str]) -> bool:
    """Whether these are lists of known names, or None: nearly always they are, and so all are looked at at once."""
    try:
        return _LISTS.issuperset(map(type, listed)) and known.issuperset(chain.from_iterable(filter(None, listed)))
    except TypeError:  # a list or an object among the names
        return False


def _shape(request: Item) -> _Shape:
    limits = [name for name in _OUTPUT_LIMITS if name in request]
    closely = len(limits) > 1 or "n" in request or not _SET_HERE.isdisjoint(request)
    return closely, limits[0] if limits else None


def _closely(request: Item, data: bytes) -> tuple[Item, bytes, int | None]:
    """A request without what the gateway decides, its text, and the most tokens that it may give."""
    if not _SET_HERE.isdisjoint(request):
        request = {name: value for name, value in request.items() if name not in _SET_HERE}
        data = copied(orjson.dumps(request))
    for name in _OUTPUT_LIMITS:
        if name in request and type(limit := request[name]) is int and limit > 0:
            n = request.get("n")
            return request, data, limit * n if type(n) is int and n > 1 else limit
    return request, data, None


def _options(item: Item, at: int) -> _Options:
    """What few nodes say."""
    place = f"nodes[{at}]."
    only(item, MEMBERS, place)
    endpoint, retry = item.get("endpoint", ENDPOINTS[0]), item.get("retry", 0)
    if endpoint not in ENDPOINTS:
        refuse(f"{place}endpoint", f"must be one of {', '.join(ENDPOINTS)}")
    if type(retry) is not int or not 0 <= retry <= RETRY_MAX:
        refuse(f"{place}retry", f"must be a whole number of further attempts, 0 to {RETRY_MAX}")
    tool = switch(item, "tool", place)
    if tool and item.get("request") is not None:
        what = "cannot be beside tool: a tool is the client's own work, and it posts the result"
        refuse(f"{place}request", what)
    return (
        tool,
        Manner(endpoint, retry),
        number(item, "expected_seconds", place),
        not switch(item, "placeholders", place, default=True),
    )


def _refuse_request(at: int, *, missing: bool = False) -> NoReturn:
    what = "must be an object: the body of a call"
    if missing:
        what = 'is missing: the body of a call (or "tool": true, or mode "declared")'
    refuse(f"nodes[{at}].request", what)


def _refuse_size_or_model(size: int, bounds: Bounds, at: int) -> NoReturn:
    if size > bounds.all_bytes:
        what = f"over {bounds.all_bytes} bytes (workflows.held_bytes), inputs included"
        raise RequestFault(413, "workflow_too_large", f"nodes: their requests have {what}", param="nodes")
    refuse(f"nodes[{at}].request.model", "must be a string")


def _sources(cut: Request, node_id: str, at: int) -> tuple[str, ...]:
    if isinstance(cut, bytes):
        return ()
    names = tuple(dict.fromkeys(cut.references))
    if node_id in names:
        refuse(f"nodes[{at}].request", f"needs the output of the node itself, {node_id!r}", "cycle")
    return names


def _after(given: Any, at: int, node_id: str, known: frozenset[str]) -> tuple[str, ...]:
    """Which name is wrong; or none is, but one of another node is."""
    if given is None:
        return ()
    if not isinstance(given, list):
        refuse(f"nodes[{at}].after", "must be a list of node ids")
    for place, name in enumerate(given):
        if not isinstance(name, str) or name not in known:
            refuse(f"nodes[{at}].after[{place}]", f"there is no node {str(name)[:128]!r}", "unknown_node")
        if name == node_id:
            refuse(f"nodes[{at}].after[{place}]", f"{node_id!r} cannot wait for itself", "cycle")
    return tuple(given)
