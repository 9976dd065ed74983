"""What exactly does a client want run? The body of POST /v1/workflows, checked whole before anything is begun."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from proxy.errors import RequestFault
from proxy.workflows.checks import number, only, refuse, switch, text
from proxy.workflows.nodes import Bounds, Manner, read_nodes
from proxy.workflows.placeholders import NAME, Request, in_json_string
from scheduler.workflow.spec import CLASSES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scheduler.workflow.spec import NodeSpec

_NODE_NAME = re.compile(NAME)
_NODE_NAMES = re.compile(rf"{NAME}(?:\n{NAME})*+")
_WORKFLOW_ID = re.compile(r"[!-~]{1,256}")
_MEMBERS = frozenset(
    "id name class deadline_ms energy_budget_joules nodes outputs inputs mode stream background".split()  # noqa: SIM905
)


class Submission(NamedTuple):
    """A workflow as submitted."""

    id: str | None
    name: str | None
    workflow_class: str | None
    deadline_ms: float | None
    energy_budget_joules: float | None
    specs: tuple[NodeSpec, ...]
    """All nodes, as the scheduler is told of them."""
    requests: list[Request | None]
    """Of each of them what is sent, None for tools; empty where the client makes the calls."""
    manners: dict[str, Manner]
    """By name how the calls of some are made."""
    request_bytes: int
    """Of all requests together."""
    outputs: tuple[str, ...]
    """The nodes whose outputs the user waits for; empty: those that nobody waits for."""
    declared: bool
    """The client makes the calls itself."""
    stream: bool
    background: bool
    """Answer at once; the workflow goes on without its client."""


def parse(body: Mapping[str, Any], bounds: Bounds) -> Submission:
    """Check a submission. RequestFault 400 or 413 names the path of what is wrong."""
    only(body, _MEMBERS, "")
    mode = body.get("mode", "run")
    if mode not in ("run", "declared"):
        refuse("mode", 'must be "run" or "declared"')
    declared = mode == "declared"
    given = body.get("nodes")
    if not isinstance(given, list) or not given:
        refuse("nodes", "must be a list of at least one node")
    if len(given) > bounds.nodes:
        message = f"nodes: {len(given)} are over the limit of {bounds.nodes} (workflows.nodes)"
        raise RequestFault(413, "workflow_too_large", message, param="nodes")
    known = _ids(given)
    specs, requests, manners, size = read_nodes(given, known, _inputs(body.get("inputs")), bounds, declared=declared)
    workflow_class = body.get("class")
    if workflow_class is not None and workflow_class not in CLASSES:
        refuse("class", f"must be one of {', '.join(CLASSES)}")
    workflow_id = body.get("id")
    if workflow_id is not None and not (isinstance(workflow_id, str) and _WORKFLOW_ID.fullmatch(workflow_id)):
        refuse("id", "must be 1 to 256 printable ASCII characters without blanks")
    return Submission(
        workflow_id,
        text(body, "name"),
        workflow_class,
        number(body, "deadline_ms"),
        number(body, "energy_budget_joules"),
        tuple(specs),
        requests,
        manners,
        size,
        _outputs(body.get("outputs"), known),
        declared,
        switch(body, "stream", ""),
        switch(body, "background", ""),
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
            refuse(f"nodes[{at}]", "must be an object")
        node_id = item.get("id")
        if not isinstance(node_id, str) or not _NODE_NAME.fullmatch(node_id):
            refuse(f"nodes[{at}].id", "must be 1 to 128 letters, digits and _ . : -, a letter, digit or _ first")
        if (before := ids.setdefault(node_id, at)) != at:
            refuse(f"nodes[{at}].id", f"{node_id!r} is the id of nodes[{before}] already", "duplicate_node")
    return frozenset(ids)


def _inputs(given: Any) -> dict[str, bytes]:
    """By name, as they stand in JSON's strings."""
    if given is None:
        return {}
    if not isinstance(given, dict):
        refuse("inputs", "must be an object of values")
    inputs = {}
    for name, value in given.items():
        try:
            said = value if isinstance(value, str) else orjson.dumps(value).decode()
        except orjson.JSONEncodeError:  # reading takes deeper ones than writing
            refuse(f"inputs.{name[:64]}", "is nested too deeply")
        inputs[name] = in_json_string(said)
    return inputs


def _outputs(given: Any, known: frozenset[str]) -> tuple[str, ...]:
    if given is None:
        return ()
    if not isinstance(given, list):
        refuse("outputs", "must be a list of node ids")
    for at, name in enumerate(given):
        if not isinstance(name, str) or name not in known:
            refuse(f"outputs[{at}]", f"there is no node {str(name)[:128]!r}", "unknown_node")
    return tuple(dict.fromkeys(given))
