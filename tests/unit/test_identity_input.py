"""Is what is wrong with our own fields said, and is nothing of what others may send ever an error?"""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.identity import OWN_HEADERS, Identity, IdentityError, ResponseRoots, identify
from proxy.identity_schemes import BODY_MEMBERS, ID_LENGTH_MAX, KNOWN_HEADERS


def identity_of(headers: dict[str, str], body: dict[str, Any] | None = None, path: str | None = None) -> Identity:
    encoded = {name.encode(): value.encode() for name, value in headers.items()}
    return identify(encoded, body, path, ResponseRoots(), "-")


@pytest.mark.parametrize(
    ("workflow", "field"),
    [
        (None, "workflow"),
        ("run-1", "workflow"),
        ([], "workflow"),
        ({}, "workflow.id"),
        ({"id": None}, "workflow.id"),
        ({"id": 7}, "workflow.id"),
        ({"id": ""}, "workflow.id"),
        ({"id": "x" * 257}, "workflow.id"),
        ({"id": "é"}, "workflow.id"),
        ({"id": "a\n"}, "workflow.id"),
        ({"id": " a"}, "workflow.id"),
        ({"id": "r", "node": 1}, "workflow.node"),
        ({"id": "r", "after": "a"}, "workflow.after"),
        ({"id": "r", "after": ["a", 1]}, "workflow.after"),
        ({"id": "r", "after": [None]}, "workflow.after"),
        ({"id": "r", "after": ["a"] * 257}, "workflow.after"),
        ({"id": "r", "deadline_ms": -1}, "workflow.deadline_ms"),
        ({"id": "r", "deadline_ms": "1"}, "workflow.deadline_ms"),
        ({"id": "r", "deadline_ms": True}, "workflow.deadline_ms"),
        ({"id": "r", "deadline_ms": math.nan}, "workflow.deadline_ms"),
        ({"id": "r", "deadline_ms": math.inf}, "workflow.deadline_ms"),
        ({"id": "r", "deadline_ms": 10**400}, "workflow.deadline_ms"),
        ({"id": "r", "class": {}}, "workflow.class"),
        ({"id": "r", "energy_budget_joules": -0.5}, "workflow.energy_budget_joules"),
        ({"id": "r", "expected_output_tokens": 1.5}, "workflow.expected_output_tokens"),
        ({"id": "r", "final": 1}, "workflow.final"),
        ({"id": "r", "deadline": 5}, "workflow"),
    ],
)
def test_a_malformed_member_of_ours_is_named(workflow: object, field: str) -> None:
    with pytest.raises(IdentityError) as caught:
        identity_of({"x-session-id": "s"}, {"workflow": workflow})
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field} ")


def test_an_unknown_member_is_told_what_there_is() -> None:
    with pytest.raises(IdentityError, match=r"no member 'deadline'; it has after, class, deadline_ms, "):
        identity_of({}, {"workflow": {"id": "r", "deadline": 5}})


@pytest.mark.parametrize(
    ("headers", "field"),
    [
        ({"x-workflow-node": "n"}, "x-workflow-id"),
        ({"x-workflow-id": ""}, "x-workflow-id"),
        ({"x-workflow-id": "x" * 257}, "x-workflow-id"),
        ({"x-workflow-id": "é"}, "x-workflow-id"),
        ({"x-workflow-id": "r", "x-workflow-node": "\x01"}, "x-workflow-node"),
        ({"x-workflow-id": "r", "x-workflow-after": "a,é"}, "x-workflow-after"),
        *(
            ({"x-workflow-id": "r", "x-workflow-deadline-ms": bad}, "x-workflow-deadline-ms")
            for bad in ("", "-1", "nan", "inf", "1_0", "1e3", "0x1", "9" * 15)
        ),
        ({"x-workflow-id": "r", "x-workflow-class": "é"}, "x-workflow-class"),
        ({"x-workflow-id": "r", "x-workflow-final": "yes"}, "x-workflow-final"),
    ],
)
def test_a_malformed_header_of_ours_is_named(headers: dict[str, str], field: str) -> None:
    # Even beside a body that would have been used: whoever sent the header meant us.
    for body in ({}, {"workflow": {"id": "r"}}):
        with pytest.raises(IdentityError) as caught:
            identity_of(headers, body)
        assert caught.value.field == field


def test_optional_members_may_be_null_and_lists_loose() -> None:
    members = ("node", "after", "deadline_ms", "class", "energy_budget_joules", "expected_output_tokens", "final")
    assert identity_of({}, {"workflow": {"id": "r"} | dict.fromkeys(members)}) == Identity("r", "joulegate-body")
    full = {"id": "r", "energy_budget_joules": 12.5, "expected_output_tokens": 0, "final": True}
    expected = Identity("r", "joulegate-body", energy_budget_joules=12.5, expected_output_tokens=0, final=True)
    assert identity_of({}, {"workflow": full}) == expected
    found = identity_of({"x-workflow-id": " r ", "x-workflow-after": " a ,, b,", "x-workflow-final": "FALSE"})
    assert found == Identity("r", "joulegate-header", after=("a", "b"))


@pytest.mark.parametrize(("path", "workflow_id"), [("run-1", "run-1"), ("my%20run", "my run"), ("a:b@c", "a:b@c")])
def test_the_id_in_the_base_url(path: str, workflow_id: str) -> None:
    assert identity_of({}, None, path) == Identity(workflow_id, "base-url")


@pytest.mark.parametrize("path", ["%20", "x" * 257, "%C3%A9", "%FF", "a%0D%0Ab"])
def test_a_malformed_id_in_the_base_url_is_ours_too(path: str) -> None:
    with pytest.raises(IdentityError, match=r"/w/\{workflow-id\} must be 1 to 256 printable ASCII characters"):
        identity_of({"x-session-id": "s"}, {}, path)


def test_own_headers_are_the_ones_that_are_read() -> None:
    assert all(name.startswith(b"x-workflow-") for name in OWN_HEADERS)
    for name in OWN_HEADERS - {b"x-workflow-id"}:
        with pytest.raises(IdentityError, match="x-workflow-id is missing beside"):
            identify({name: b"1"}, None, None, ResponseRoots(), "-")


# --- anything at all ---

TEXTS = st.text(max_size=8) | st.sampled_from(["a", "true", "x" * 257, "00-" + "a" * 32 + "-" + "b" * 16 + "-01"])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS
INNER_MEMBERS = """agentic_context agent_hints task_id agent_id parent_agent_id
    priority strict_priority osl speculative_prefill id node model"""
MEMBERS = st.sampled_from([*sorted(BODY_MEMBERS), *INNER_MEMBERS.split()])
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(MEMBERS, inner, max_size=4))
CONTEXTS = st.dictionaries(MEMBERS, SCALARS, max_size=4)
BODIES = st.dictionaries(
    MEMBERS, JSON | st.builds(lambda value: {"agentic_context": json.dumps(value), "agent_hints": value}, CONTEXTS)
)
HEADERS = st.dictionaries(
    st.sampled_from([*sorted(KNOWN_HEADERS), b"x-foo-session-id", b"host"]) | st.binary(max_size=6),
    st.binary(max_size=6) | TEXTS.map(lambda text: text.encode("utf-8", "replace")),
    max_size=6,
)


@given(HEADERS, st.none() | BODIES)
def test_foreign_fields_never_raise_and_give_usable_words(
    headers: dict[bytes, bytes], body: dict[str, Any] | None
) -> None:
    found = identify(headers, body, None, ResponseRoots(), "-")
    for given_word in (found.workflow_id or "-", found.node, found.parent_id, found.workflow_class):
        assert given_word is None or (0 < len(given_word) <= ID_LENGTH_MAX and given_word.isprintable())
        assert given_word is None or given_word.isascii()
    assert found.workflow_id or found.source in ("none", "nvext", "llm-d")


OWN_OF = {
    "vllm-xargs": {"vllm_xargs"},
    "nvext": {"nvext"},
    "program-id": {"program_id"},
    "dynamo": {"x-dynamo-session-id", "x-dynamo-parent-session-id", "x-dynamo-session-final", "nvext"},
    "llm-d": {"x-llm-d-inference-fairness-id", "x-llm-d-inference-objective"},
    "claude-code": {"x-claude-code-session-id", "x-claude-code-agent-id", "x-claude-code-parent-agent-id"},
    "codex": {"session-id", "session_id", "thread-id", "thread_id", "x-codex-parent-thread-id"},
    "opencode": {"x-session-id", "x-session-affinity", "x-parent-session-id", "x-opencode-session"},
    "deepseek-harness": {"x-deepseek-harness-session-id"},
    "helicone": {"helicone-session-id", "helicone-session-path"},
    "litellm": {"x-litellm-trace-id", "x-litellm-session-id", "litellm_session_id"},
    "bifrost": {"x-bf-session-id"},
    "vendor-session": {"x-foo-session-id"},
    "responses": {"previous_response_id", "conversation"},
    "prompt-cache-key": {"prompt_cache_key"},
    "traceparent": {"traceparent"},
    "none": set(),
}


@given(HEADERS, BODIES)
def test_two_schemes_are_never_mixed(headers: dict[bytes, bytes], body: dict[str, Any]) -> None:
    """What was found is found again from the fields of its scheme alone."""
    found = identify(headers, body, None, ResponseRoots(), "-")
    own = OWN_OF[found.source]
    own_headers = {name: value for name, value in headers.items() if name.decode("latin-1") in own}
    own_body = {name: value for name, value in body.items() if name in own}
    assert identify(own_headers, own_body, None, ResponseRoots(), "-") == found


def test_every_field_that_is_read_has_its_scheme_in_that_table() -> None:
    named = set().union(*OWN_OF.values()) - {"x-foo-session-id"}
    assert named == {name.decode() for name in KNOWN_HEADERS} | BODY_MEMBERS


@given(
    HEADERS,
    st.none() | BODIES | st.fixed_dictionaries({"workflow": JSON}),
    st.none() | TEXTS,
    st.sets(st.sampled_from(sorted(OWN_HEADERS))),
)
def test_nothing_but_an_identity_error_is_raised(
    headers: dict[bytes, bytes], body: dict[str, Any] | None, path: str | None, own: set[bytes]
) -> None:
    headers |= dict(zip(sorted(own), headers.values(), strict=False))
    try:
        identify(headers, body, path, ResponseRoots(), "-")
    except IdentityError as error:
        field = error.field
    else:
        return
    assert field.startswith(("workflow", "x-workflow-", "/w/"))
