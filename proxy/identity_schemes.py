"""What do the fields of other people's clients, harnesses and gateways say about a call's place in a workflow?

One reader per scheme, in the order in which they are asked. A reader takes fields of its own scheme alone. Its answer
is None where its scheme names no workflow; a field that is malformed counts as absent, since it was not meant for us.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import orjson

ID_LENGTH_MAX = 256
_WORD = re.compile(rf"[!-~](?:[ -~]{{0,{ID_LENGTH_MAX - 2}}}[!-~])?")
_HEADER_WORD = re.compile(_WORD.pattern.encode())
_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")
_VENDOR_SESSION = re.compile(rb"x-[a-z0-9_-]+-session-id")
_RESPONSE_ID = re.compile(rb'"id"\s*:\s*"(resp_[!-~]{1,200}?)"')
_CONTEXT_LENGTH_MAX = 16_384
_TOKENS_MAX = 2**32
_PRIORITY_MAX = 2**31


@dataclass(frozen=True, slots=True)
class Identity:
    """What a request says about its place in a workflow. `source` names the scheme it was read from.

    `workflow_id` is "" where nothing names a workflow: then the call is a workflow of its own. `node` is the call's
    place, or where the scheme knows agents and not places, the agent that makes it; None = the workflow's main agent.
    `parent_id` is the agent that started this one: another node, or `workflow_id` for the main agent.
    """

    workflow_id: str
    source: str
    node: str | None = None
    parent_id: str | None = None
    after: tuple[str, ...] = ()
    deadline_ms: float | None = None
    workflow_class: str | None = None
    energy_budget_joules: float | None = None
    expected_output_tokens: int | None = None
    priority_hint: int | None = None
    """Higher = more urgent. (vLLM's own `priority` counts the other way.)"""
    final: bool = False
    """The workflow's last call."""
    strict_priority: int | None = None
    """A tier of the queue, higher first, before any other order."""
    speculative_prefill: bool = False
    """The next turn may be prefilled ahead of its coming."""


class ResponseRoots:
    """Which workflow a response began or belongs to, so that the next turn can name it by the response's id alone.

    Bounded: the entries not used for longest go first. One key never sees what another key's calls left here.
    """

    def __init__(self, entries_max: int = 10_000) -> None:
        self._roots: OrderedDict[tuple[str, str], str] = OrderedDict()
        self._entries_max = entries_max

    def __len__(self) -> int:
        return len(self._roots)

    def resize(self, entries_max: int) -> None:
        """Another limit."""
        self._entries_max = entries_max
        while len(self._roots) > entries_max:
            self._roots.popitem(last=False)

    def remember(self, key_name: str, response_id: str, workflow_id: str) -> None:
        """The response `response_id` belongs to `workflow_id`. Ids too long to be sent back are not kept."""
        if len(response_id) > ID_LENGTH_MAX:
            return
        entry = key_name, response_id
        self._roots[entry] = workflow_id
        self._roots.move_to_end(entry)
        if len(self._roots) > self._entries_max:
            self._roots.popitem(last=False)

    def remember_in(self, key_name: str, answer: bytes, workflow_id: str) -> bool:
        """Look for a response's id in some of an answer: the next turn names it by that. Whether there was one."""
        if (match := _RESPONSE_ID.search(answer)) is None:
            return False
        self.remember(key_name, match[1].decode("ascii"), workflow_id)
        return True

    def root(self, key_name: str, previous_response_id: str) -> str:
        """The workflow of an earlier response; a response that is not known here is itself the root."""
        entry = key_name, previous_response_id
        workflow_id = self._roots.get(entry)
        if workflow_id is None:
            return previous_response_id
        self._roots.move_to_end(entry)
        return workflow_id


class Hints(NamedTuple):
    """Where readers look."""

    headers: Mapping[bytes, bytes]
    body: Mapping[str, Any]
    path_workflow_id: str | None
    roots: ResponseRoots
    key_name: str

    def header(self, *names: bytes) -> str | None:
        """The first of these headers that holds a usable id."""
        for name in names:
            value = self.headers.get(name)
            if value is not None and _HEADER_WORD.fullmatch(value):
                return value.decode("ascii")
        return None

    def session(self, source: str, session_id: str, parent_id: str | None, *, final: bool = False) -> Identity:
        """A scheme in which each agent has a session and names the session that started it.

        The workflow is the session at the top, which answers to the user; a session started by another is a node of it.
        Only the top can end the workflow.
        """
        if parent_id is None or parent_id == session_id:
            return Identity(session_id, source, final=final)
        # A parent has made calls before its child does, so its own root is known unless it was long ago.
        root = self.roots.root(self.key_name, f"{source} {parent_id}")
        workflow_id = parent_id if root == f"{source} {parent_id}" else root
        self.roots.remember(self.key_name, f"{source} {session_id}", workflow_id)
        return Identity(workflow_id, source, session_id, parent_id)


def word(value: object) -> str | None:
    """An id in a JSON body: 1 to 256 printable ASCII characters, no space at the ends; or a whole number. Else None."""
    if type(value) is int and abs(value) < 2**63:
        return str(value)
    return value if isinstance(value, str) and _WORD.fullmatch(value) else None


def _agentic_context(hints: Hints) -> Identity | None:
    """AgentInfer's: an object, or as vLLM's `vllm_xargs` takes scalars alone, that object as a JSON string."""
    arguments = hints.body.get("vllm_xargs")
    context = arguments.get("agentic_context") if isinstance(arguments, dict) else None
    if isinstance(context, str) and len(context) <= _CONTEXT_LENGTH_MAX:
        try:
            context = orjson.loads(context)
        except orjson.JSONDecodeError:
            return None
    if not isinstance(context, dict):
        return None
    program = word(context.get("program_id"))
    # A program is one agent; the task, else the session, is what its agents work on together.
    workflow_id = word(context.get("task_id")) or word(context.get("session_id")) or program
    if workflow_id is None:
        return None
    node = word(context.get("agent_id")) or program
    parent_id = word(context.get("parent_agent_id")) or word(context.get("parent_program_id"))
    # Both may be written with the task before them, `task:agent`.
    node, parent_id = (name and (name.removeprefix(f"{workflow_id}:") or name) for name in (node, parent_id))
    return Identity(workflow_id, "vllm-xargs", node if node != workflow_id else None, parent_id)


def _program_id(hints: Hints) -> Identity | None:
    workflow_id = word(hints.body.get("program_id"))
    return None if workflow_id is None else Identity(workflow_id, "program-id")


def _dynamo(hints: Hints) -> Identity | None:
    """Headers name the session; `nvext.agent_hints` in the body belongs to the same scheme and goes with them."""
    session_id = hints.header(b"x-dynamo-session-id")
    if session_id is None:
        return None
    final = hints.headers.get(b"x-dynamo-session-final", b"").lower() == b"true"
    found = hints.session("dynamo", session_id, hints.header(b"x-dynamo-parent-session-id"), final=final)
    given = _agent_hints(hints.body)
    return replace(found, **given) if given else found


def _agent_hints(body: Mapping[str, Any]) -> dict[str, Any]:
    """What `nvext.agent_hints` says, by the names of Identity's fields. Priorities: higher = more urgent."""
    extension = body.get("nvext")
    given = extension.get("agent_hints") if isinstance(extension, dict) else None
    if not isinstance(given, dict):
        return {}
    found: dict[str, Any] = {}
    for name, field in (("priority", "priority_hint"), ("strict_priority", "strict_priority")):
        value = given.get(name)
        if type(value) is int and abs(value) < _PRIORITY_MAX:
            found[field] = value
    tokens = given.get("osl")
    if type(tokens) is int and 0 <= tokens < _TOKENS_MAX:
        found["expected_output_tokens"] = tokens
    if given.get("speculative_prefill") is True:
        found["speculative_prefill"] = True
    return found


def _llm_d(hints: Hints) -> Identity | None:
    workflow_id = hints.header(b"x-llm-d-inference-fairness-id")
    if workflow_id is None:
        return None
    return Identity(workflow_id, "llm-d", workflow_class=hints.header(b"x-llm-d-inference-objective"))


def _claude_code(hints: Hints) -> Identity | None:
    """All agents of a session share its id; sub-agents add their own, and their parent's where that is one as well."""
    session_id = hints.header(b"x-claude-code-session-id")
    if session_id is None:
        return None
    agent_id = hints.header(b"x-claude-code-agent-id")
    if agent_id is None:
        return Identity(session_id, "claude-code")
    parent_id = hints.header(b"x-claude-code-parent-agent-id") or session_id
    return Identity(session_id, "claude-code", agent_id, parent_id)


def _codex(hints: Hints) -> Identity | None:
    """Threads are agents; the session is common to them, and the first thread has its id."""
    session_id = hints.header(b"session-id", b"session_id")
    thread_id = hints.header(b"thread-id", b"thread_id")
    parent_id = hints.header(b"x-codex-parent-thread-id")
    if session_id is None:
        return None if thread_id is None else hints.session("codex", thread_id, parent_id)
    return Identity(session_id, "codex", thread_id if thread_id != session_id else None, parent_id)


def _opencode(hints: Hints) -> Identity | None:
    session_id = hints.header(b"x-session-id", b"x-session-affinity", b"x-opencode-session")
    if session_id is None:
        return None
    return hints.session("opencode", session_id, hints.header(b"x-parent-session-id"))


def _helicone(hints: Hints) -> Identity | None:
    """The path is the call's place, written like a directory: what is above it started it. The name is for people."""
    workflow_id = hints.header(b"helicone-session-id")
    if workflow_id is None:
        return None
    path = hints.header(b"helicone-session-path")
    parent_id = path.rstrip("/").rpartition("/")[0] if path else None
    return Identity(workflow_id, "helicone", path, parent_id or None)


def _litellm(hints: Hints) -> Identity | None:
    workflow_id = hints.header(b"x-litellm-trace-id", b"x-litellm-session-id")
    if workflow_id is None:
        workflow_id = word(hints.body.get("litellm_session_id"))
    return None if workflow_id is None else Identity(workflow_id, "litellm")


def _vendor_session(hints: Hints) -> Identity | None:
    """Any x-<vendor>-session-id; of several the first in the alphabet, whatever order a proxy put them in."""
    for name in sorted(hints.headers):
        if is_vendor_session(name) and (workflow_id := hints.header(name)) is not None:
            return Identity(workflow_id, "vendor-session")
    return None


def is_vendor_session(name: bytes) -> bool:
    """Whether a header names a session in a scheme without a reader of its own; the session of a parent does not."""
    return (
        name.endswith(b"-session-id")
        and name not in KNOWN_HEADERS
        and not name.endswith(b"-parent-session-id")
        and _VENDOR_SESSION.fullmatch(name) is not None
    )


def _base_url(hints: Hints) -> Identity | None:
    return None if hints.path_workflow_id is None else Identity(hints.path_workflow_id, "base-url")


def _responses(hints: Hints) -> Identity | None:
    """The turn before this one names the workflow that it belongs to; a conversation is one."""
    previous = hints.body.get("previous_response_id")
    if isinstance(previous, str) and _WORD.fullmatch(previous):
        return Identity(hints.roots.root(hints.key_name, previous), "responses")
    conversation = hints.body.get("conversation")
    if isinstance(conversation, dict):
        conversation = conversation.get("id")
    workflow_id = word(conversation)
    return None if workflow_id is None else Identity(workflow_id, "responses")


def _prompt_cache_key(hints: Hints) -> Identity | None:
    workflow_id = word(hints.body.get("prompt_cache_key"))
    return None if workflow_id is None else Identity(workflow_id, "prompt-cache-key")


def _traceparent(hints: Hints) -> Identity | None:
    """The trace id alone: the span id changes with every call."""
    match = _TRACEPARENT.fullmatch(hints.headers.get(b"traceparent", b""))
    return None if match is None else Identity(match[1].decode("ascii"), "traceparent")


def _hints_alone(hints: Hints) -> Identity | None:
    """What is left where nothing named a workflow: the call is one of its own, and hints about it hold all the same."""
    if given := _agent_hints(hints.body):
        return Identity("", "nvext", **given)
    objective = hints.header(b"x-llm-d-inference-objective")
    return None if objective is None else Identity("", "llm-d", workflow_class=objective)


def _one_header(name: bytes, source: str) -> Reader:
    def read(hints: Hints) -> Identity | None:
        workflow_id = hints.header(name)
        return None if workflow_id is None else Identity(workflow_id, source)

    return read


Reader = Callable[[Hints], Identity | None]

SCHEMES: tuple[tuple[Reader, tuple[bytes | str, ...]], ...] = (
    (_agentic_context, ("vllm_xargs",)),
    (_program_id, ("program_id",)),
    (_dynamo, (b"x-dynamo-session-id",)),
    (_llm_d, (b"x-llm-d-inference-fairness-id",)),
    (_claude_code, (b"x-claude-code-session-id",)),
    (_codex, (b"session-id", b"session_id", b"thread-id", b"thread_id")),
    (_opencode, (b"x-session-id", b"x-session-affinity", b"x-opencode-session")),
    (_one_header(b"x-deepseek-harness-session-id", "deepseek-harness"), (b"x-deepseek-harness-session-id",)),
    (_helicone, (b"helicone-session-id",)),
    (_litellm, (b"x-litellm-trace-id", b"x-litellm-session-id", "litellm_session_id")),
    (_one_header(b"x-bf-session-id", "bifrost"), (b"x-bf-session-id",)),
    (_vendor_session, ()),
    (_base_url, ()),
    (_responses, ("previous_response_id", "conversation")),
    (_prompt_cache_key, ("prompt_cache_key",)),
    (_traceparent, (b"traceparent",)),
    (_hints_alone, ("nvext", b"x-llm-d-inference-objective")),
)
"""Readers in the order in which they are asked. Beside each: headers (bytes) and members of the body (str); it finds
nothing unless one of them is there."""

READERS = tuple([reader for reader, _ in SCHEMES])
POSITIONS: dict[bytes | str, int] = {name: at for at, (_, names) in enumerate(SCHEMES) for name in names}
"""Name of a header or member → the place in READERS of the reader that it may be a hint for."""
VENDOR_SESSION = READERS.index(_vendor_session)
BASE_URL = READERS.index(_base_url)

KNOWN_HEADERS = frozenset(
    (
        *[name for name in POSITIONS if isinstance(name, bytes)],
        b"x-dynamo-parent-session-id",
        b"x-dynamo-session-final",
        b"x-claude-code-agent-id",
        b"x-claude-code-parent-agent-id",
        b"x-codex-parent-thread-id",
        b"x-parent-session-id",
        b"helicone-session-path",
    )
)
"""Every header that some reader looks at by name."""
BODY_MEMBERS = frozenset([name for name in POSITIONS if isinstance(name, str)])
