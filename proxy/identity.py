"""Which workflow does a request belong to? The first scheme that names one is used; schemes are never mixed."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import unquote

from proxy.identity_schemes import (
    BASE_URL,
    BODY_MEMBERS,
    ID_LENGTH_MAX,
    POSITIONS,
    READERS,
    VENDOR_SESSION,
    Hints,
    Identity,
    ResponseRoots,
    is_vendor_session,
    word,
)
from scheduler.workflow.spec import CLASSES

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["NOTHING_SAID", "OWN_HEADERS", "Identity", "IdentityError", "ResponseRoots", "identify"]

OWN_HEADERS = frozenset(
    (
        b"x-workflow-id",
        b"x-workflow-node",
        b"x-workflow-after",
        b"x-workflow-deadline-ms",
        b"x-workflow-class",
        b"x-workflow-final",
    )
)
"""Removed before the engine sees the request, as is the body's member `workflow`."""

_OWN_MEMBERS = frozenset(
    ("id", "node", "after", "deadline_ms", "class", "energy_budget_joules", "expected_output_tokens", "final")
)
_AFTER_MAX = 256
_NUMBER_MAX = 1e12
_DECIMAL = re.compile(r"[0-9]{1,15}(?:\.[0-9]{1,9})?")
_TRUTH = {"true": True, "1": True, "false": False, "0": False}

NOTHING_SAID = Identity("", "none")
_HINT_MEMBERS = BODY_MEMBERS | {"workflow"}
# Names that most requests consist of and that say nothing about a workflow: one subset test rules them out together.
_COMMON_HEADERS = frozenset(
    b"""host accept accept-encoding accept-language authorization api-key x-api-key connection keep-alive content-type
    content-length transfer-encoding user-agent cookie origin referer cache-control pragma expect te dnt priority
    openai-organization openai-project openai-beta anthropic-version anthropic-beta x-app http-referer x-title
    anthropic-dangerous-direct-browser-access x-request-id x-client-request-id idempotency-key tracestate baggage
    forwarded via x-forwarded-for x-forwarded-proto x-forwarded-host x-forwarded-port x-real-ip
    x-stainless-lang x-stainless-package-version x-stainless-os x-stainless-arch x-stainless-runtime
    x-stainless-runtime-version x-stainless-async x-stainless-retry-count x-stainless-read-timeout x-stainless-timeout
    x-stainless-raw-response x-stainless-helper-method sec-fetch-mode sec-fetch-site sec-fetch-dest""".split()
)


class IdentityError(ValueError):
    """A field of ours is malformed. `field` names it; the text says what it must be."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field} {message}")
        self.field = field


def identify(
    headers: Mapping[bytes, bytes],
    body: Mapping[str, Any] | None,
    path_workflow_id: str | None,
    roots: ResponseRoots,
    key_name: str,
) -> Identity:
    """Read a request's place in a workflow. `headers` by lowercase name, the last of equal names.

    A scheme hits when it *names* a workflow, and then every field of the answer is that scheme's. So hints without an
    id (`nvext.agent_hints`, `x-llm-d-inference-objective`) neither hit nor keep a later scheme from hitting, and are
    dropped if a scheme other than their own names the workflow. `nvext.agent_hints` is the body's half of Dynamo's
    scheme: beside `x-dynamo-session-id` it is used. Where no scheme at all names a workflow, the hints are kept with an
    empty `workflow_id`, since a call that is a workflow of its own mixes nothing.

    Raises IdentityError for malformed fields of ours, even where another of our schemes comes first: whoever sent them
    meant us. Other schemes' malformed fields count as absent. Sub-agents' sessions are noted in `roots`.
    """
    if (
        _COMMON_HEADERS.issuperset(headers)
        and (body is None or _HINT_MEMBERS.isdisjoint(body))
        and path_workflow_id is None
    ):
        return NOTHING_SAID
    body = body or {}
    own = _own_body(body["workflow"]) if "workflow" in body else None
    if not OWN_HEADERS.isdisjoint(headers):
        own_headers = _own_headers(headers)
        own = own or own_headers
    if path_workflow_id is not None:
        path_workflow_id = _own_word("/w/{workflow-id}", unquote(path_workflow_id))
    if own is not None:
        return own
    hints = Hints(headers, body, path_workflow_id, roots, key_name)
    for position in sorted(_positions(hints)):
        if (found := READERS[position](hints)) is not None:
            return found
    return NOTHING_SAID


def _positions(hints: Hints) -> set[int]:
    """The readers that may find something."""
    found = {POSITIONS[name] for name in BODY_MEMBERS.intersection(hints.body)}
    for name in hints.headers:
        if name in POSITIONS:
            found.add(POSITIONS[name])
        elif name.endswith(b"-session-id") and is_vendor_session(name):
            found.add(VENDOR_SESSION)
    if hints.path_workflow_id is not None:
        found.add(BASE_URL)
    return found


def _own_body(given: object) -> Identity:
    if not isinstance(given, dict):
        raise IdentityError("workflow", f'must be an object such as {{"id": "run-1"}}, not {_kind(given)}')
    for name in given:
        if name not in _OWN_MEMBERS:
            raise IdentityError("workflow", f"has no member {name[:64]!r}; it has {', '.join(sorted(_OWN_MEMBERS))}")
    if given.get("id") is None:
        raise IdentityError("workflow.id", "is missing; every call of one workflow gives the same id")
    after = given.get("after")
    if not isinstance(after, list | None):
        raise IdentityError("workflow.after", f"must be a list of nodes, not {_kind(after)}")
    tokens = _own_number("workflow.expected_output_tokens", given.get("expected_output_tokens"))
    if tokens is not None and not isinstance(tokens, int):
        raise IdentityError("workflow.expected_output_tokens", "must be a whole number of tokens")
    final = given.get("final")
    if not isinstance(final, bool | None):
        raise IdentityError("workflow.final", f"must be true or false, not {_kind(final)}")
    return Identity(
        _own_word("workflow.id", given["id"]),
        "joulegate-body",
        _own_optional_word("workflow.node", given.get("node")),
        after=_own_after("workflow.after", after or []),
        deadline_ms=_own_number("workflow.deadline_ms", given.get("deadline_ms")),
        workflow_class=_own_class("workflow.class", given.get("class")),
        energy_budget_joules=_own_number("workflow.energy_budget_joules", given.get("energy_budget_joules")),
        expected_output_tokens=tokens,
        final=final is True,
    )


def _own_headers(headers: Mapping[bytes, bytes]) -> Identity:
    given = {name: headers[name].strip().decode("latin-1") for name in OWN_HEADERS if name in headers}
    if b"x-workflow-id" not in given:
        others = ", ".join(sorted(name.decode("ascii") for name in given))
        raise IdentityError(
            "x-workflow-id", f"is missing beside {others}; every call of one workflow gives the same id"
        )
    nodes = [node.strip() for node in given.get(b"x-workflow-after", "").split(",")]
    deadline = given.get(b"x-workflow-deadline-ms")
    if deadline is not None and not _DECIMAL.fullmatch(deadline):
        _bad_number("x-workflow-deadline-ms")
    final = given.get(b"x-workflow-final", "false").lower()
    if final not in _TRUTH:
        raise IdentityError("x-workflow-final", "must be true or false")
    return Identity(
        _own_word("x-workflow-id", given[b"x-workflow-id"]),
        "joulegate-header",
        _own_optional_word("x-workflow-node", given.get(b"x-workflow-node")),
        after=_own_after("x-workflow-after", [node for node in nodes if node]),
        deadline_ms=None if deadline is None else _own_number("x-workflow-deadline-ms", float(deadline)),
        workflow_class=_own_class("x-workflow-class", given.get(b"x-workflow-class")),
        final=_TRUTH[final],
    )


def _own_word(field: str, value: object) -> str:
    if not isinstance(value, str):
        raise IdentityError(field, f"must be a string, not {_kind(value)}")
    if word(value) is None:
        raise IdentityError(field, f"must be 1 to {ID_LENGTH_MAX} printable ASCII characters, no space at either end")
    return value


def _own_optional_word(field: str, value: object) -> str | None:
    return None if value is None else _own_word(field, value)


def _own_class(field: str, value: object) -> str | None:
    name = _own_optional_word(field, value)
    if name is not None and name not in CLASSES:
        raise IdentityError(field, f"must be one of {', '.join(CLASSES)}")
    return name


def _own_after(field: str, nodes: list[object]) -> tuple[str, ...]:
    if len(nodes) > _AFTER_MAX:
        raise IdentityError(field, f"names {len(nodes)} nodes; at most {_AFTER_MAX} are allowed")
    return tuple([_own_word(field, node) for node in nodes])


def _own_number(field: str, value: object) -> int | float | None:
    if value is None:
        return None
    # NaN and the infinities fail the comparison as well.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _NUMBER_MAX:
        _bad_number(field)
    return value


def _bad_number(field: str) -> NoReturn:
    raise IdentityError(field, f"must be a number from 0 to {_NUMBER_MAX:.0f}")


def _kind(value: object) -> str:
    """What JSON calls it."""
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)
