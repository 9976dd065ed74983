"""Does each scheme name the workflow as its clients mean it, in the conventions' order, and without mixing?

`data/requests/` holds what real clients sent to a server that wrote down the bytes: openai-python, openai-agents,
langchain-openai, litellm, anthropic, and the Claude Code, Codex and OpenCode command lines with a sub-agent each.
Prompts and tool lists of the command lines are cut out; line ends are LF.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from proxy.identity import Identity, ResponseRoots, identify
from proxy.identity_schemes import ID_LENGTH_MAX
from proxy.routes import split_workflow

REQUESTS = Path(__file__).parent / "data" / "requests"
CLAUDE = "d48915a2-7af9-4fd2-832d-e7d4c965afc3"
CODEX = "01a20dd2-103e-73b1-b66b-5be48898bb3e"
OPENCODE = "ses_df22dd340ffeQrnAWTKspfpMV6"


def sent(name: str, roots: ResponseRoots | None = None, key_name: str = "-") -> Identity:
    """The identity of a captured request, read as the gateway reads it."""
    head, _, body = (REQUESTS / f"{name}.http").read_bytes().partition(b"\n\n")
    first, *lines = head.split(b"\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
    assert int(headers[b"content-length"]) == len(body)
    path_workflow_id, _ = split_workflow(first.split(b" ")[1])
    roots = ResponseRoots() if roots is None else roots
    return identify(headers, orjson.loads(body), path_workflow_id, roots, key_name)


def of(
    headers: dict[str, str] | None = None,
    body: dict[str, Any] | None = None,
    path: str | None = None,
    roots: ResponseRoots | None = None,
    key_name: str = "-",
) -> Identity:
    encoded = {name.encode(): value.encode() for name, value in (headers or {}).items()}
    return identify(encoded, body, path, ResponseRoots() if roots is None else roots, key_name)


CASES: list[tuple[str, Identity]] = [
    # 1: ours
    (
        "own-body",
        Identity("run-42", "joulegate-body", "plan", None, ("search",), deadline_ms=30_000, workflow_class="batch"),
    ),
    (
        "own-headers",
        Identity(
            "run-42",
            "joulegate-header",
            "answer",
            None,
            ("plan", "search"),
            deadline_ms=30_000.0,
            workflow_class="interactive",
            final=True,
        ),
    ),
    ("langchain-default-headers", Identity("lg-run-9", "joulegate-header", "grader")),
    # 2: extensions of engines' bodies
    ("agentic-context", Identity("t1", "vllm-xargs", "coder", "lead")),
    (
        "agent-hints",
        Identity(
            *("", "nvext"),
            expected_output_tokens=1024,
            priority_hint=5,
            strict_priority=1,
            speculative_prefill=True,
        ),
    ),
    ("program-id", Identity("swe-bench-17", "program-id")),
    # 3: Dynamo (its body's hints belong to its headers), llm-d
    (
        "dynamo",
        Identity(
            "research-run-42",
            "dynamo",
            "research-run-42:researcher",
            "research-run-42",
            expected_output_tokens=1024,
            priority_hint=5,
        ),
    ),
    ("llm-d", Identity("tenant-a", "llm-d", workflow_class="premium-traffic")),
    # 4: harnesses
    ("claude-code-main", Identity(CLAUDE, "claude-code")),
    ("claude-code-subagent", Identity(CLAUDE, "claude-code", "aa4be6614b48ce3db", CLAUDE)),
    ("codex-main", Identity(CODEX, "codex")),
    ("codex-subagent", Identity(CODEX, "codex", "01a20dd2-10bb-7b93-91cc-30593b4e3350", CODEX)),
    ("opencode-main", Identity(OPENCODE, "opencode")),
    ("opencode-subagent", Identity(OPENCODE, "opencode", "ses_df22dca3dffexoFWFs3J102Ypv", OPENCODE)),
    ("deepseek-harness", Identity("session-0f2d", "deepseek-harness")),
    # 5: gateways
    ("helicone", Identity("5b7c1a52", "helicone", "/abstract/outline/lesson-1", "/abstract/outline")),
    ("litellm-headers", Identity("trace-7", "litellm")),
    ("litellm-body", Identity("litellm-run-7", "litellm")),
    ("bifrost", Identity("user-123-session-456", "bifrost")),
    ("vendor-session", Identity("acme-1", "vendor-session")),
    # 6: the base URL
    ("base-url", Identity("run-42", "base-url")),
    # 7: the Responses API
    ("responses-next", Identity("resp_1", "responses")),
    ("openai-agents-responses", Identity("resp_1", "responses")),
    ("conversation-string", Identity("conv_68a1", "responses")),
    ("conversation-object", Identity("conv_68a1", "responses")),
    # 8 and 9
    ("prompt-cache-key", Identity("tenant-7:docs", "prompt-cache-key")),
    ("traceparent", Identity("4bf92f3577b34da6a3ce929d0e0e4736", "traceparent")),
    # what unmodified clients send says nothing
    ("openai-plain", Identity("", "none")),
    ("openai-agents-chat", Identity("", "none")),
    ("litellm-plain", Identity("", "none")),
    ("anthropic-plain", Identity("", "none")),
    ("responses-first", Identity("", "none")),
]


@pytest.mark.parametrize(("request_name", "expected"), CASES)
def test_a_real_request(request_name: str, expected: Identity) -> None:
    assert sent(request_name) == expected


def test_every_captured_request_is_tested() -> None:
    assert {name for name, _ in CASES} == {file.stem for file in REQUESTS.iterdir()}


# One request per scheme, in the order of the conventions: (source, headers, body, path).
ORDERED: list[tuple[str, dict[str, str], dict[str, Any], str | None]] = [
    ("joulegate-body", {}, {"workflow": {"id": "own-body", "node": "n"}}, None),
    ("joulegate-header", {"x-workflow-id": "own-header", "x-workflow-class": "batch"}, {}, None),
    ("vllm-xargs", {}, {"vllm_xargs": {"agentic_context": {"task_id": "xargs", "agent_id": "a"}}}, None),
    ("program-id", {}, {"program_id": "program"}, None),
    ("dynamo", {"x-dynamo-session-id": "dynamo", "x-dynamo-session-final": "true"}, {}, None),
    ("llm-d", {"x-llm-d-inference-fairness-id": "fair", "x-llm-d-inference-objective": "slow"}, {}, None),
    ("claude-code", {"x-claude-code-session-id": "claude", "x-claude-code-agent-id": "a1"}, {}, None),
    ("codex", {"session-id": "codex", "thread-id": "t2", "x-codex-parent-thread-id": "t1"}, {}, None),
    ("opencode", {"x-session-id": "ses_2", "x-parent-session-id": "ses_1"}, {}, None),
    ("deepseek-harness", {"x-deepseek-harness-session-id": "deepseek"}, {}, None),
    ("helicone", {"helicone-session-id": "helicone", "helicone-session-path": "/a/b"}, {}, None),
    ("litellm", {"x-litellm-session-id": "litellm"}, {"litellm_session_id": "litellm-body"}, None),
    ("bifrost", {"x-bf-session-id": "bifrost"}, {}, None),
    ("vendor-session", {"x-acme-session-id": "vendor"}, {}, None),
    ("base-url", {}, {}, "path"),
    ("responses", {}, {"previous_response_id": "resp", "conversation": "conv"}, None),
    ("prompt-cache-key", {}, {"prompt_cache_key": "cache"}, None),
    ("traceparent", {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}, {}, None),
    ("nvext", {}, {"nvext": {"agent_hints": {"priority": 3}}}, None),
    ("llm-d", {"x-llm-d-inference-objective": "slow"}, {}, None),
    ("none", {"x-foo": "1"}, {"model": "m"}, None),
]


def merged(first: int) -> tuple[dict[str, str], dict[str, Any], str | None]:
    """Everything that the schemes from this one on would send, in one request."""
    headers: dict[str, str] = {}
    body: dict[str, Any] = {}
    path = None
    for _, more_headers, more_body, more_path in reversed(ORDERED[first:]):
        headers |= more_headers
        body |= more_body
        path = more_path or path
    return headers, body, path


@pytest.mark.parametrize("at", range(len(ORDERED)), ids=[source for source, *_ in ORDERED])
def test_the_first_hit_wins_and_takes_nothing_from_the_others(at: int) -> None:
    source, headers, body, path = ORDERED[at]
    expected = of(headers, body, path)
    assert expected.source == source
    if source == "dynamo":  # the one scheme with fields in two places: its hints are in the body of the merged request
        expected = of(headers, body | {"nvext": {"agent_hints": {"priority": 3}}})
    assert of(*merged(at)) == expected


@pytest.mark.parametrize("at", range(len(ORDERED) - 1), ids=[source for source, *_ in ORDERED[1:]])
def test_neighbours_in_the_order(at: int) -> None:
    (source, headers, body, path), (_, next_headers, next_body, next_path) = ORDERED[at], ORDERED[at + 1]
    assert of(next_headers | headers, next_body | body, path or next_path).source == source


def test_a_malformed_foreign_hint_leaves_its_place_to_the_next_scheme() -> None:
    too_long = "x" * (ID_LENGTH_MAX + 1)
    for bad in ("", " ", "é", "a\x07b", too_long):
        headers = {"x-claude-code-session-id": bad, "x-claude-code-agent-id": "a", "x-session-id": "next"}
        assert of(headers) == Identity("next", "opencode")
        assert of({}, {"program_id": bad, "prompt_cache_key": "next"}) == Identity("next", "prompt-cache-key")
    wrongs: list[Any] = [None, True, 1.5, [], {}, {"id": None}, {"id": ["x"]}, 2**70]
    for wrong in wrongs:
        body = {
            "vllm_xargs": wrong,
            "nvext": wrong,
            "program_id": wrong,
            "conversation": wrong,
            "prompt_cache_key": "k",
        }
        assert of({}, body) == Identity("k", "prompt-cache-key")


def test_a_malformed_side_field_is_left_out() -> None:
    assert of({"x-claude-code-session-id": "s", "x-claude-code-agent-id": "é"}) == Identity("s", "claude-code")
    headers = {"x-dynamo-session-id": "s", "x-dynamo-session-final": "maybe"}
    wrong = {"priority": "high", "strict_priority": 2**40, "osl": -1, "speculative_prefill": "yes"}
    hints: dict[str, Any] = {"nvext": {"agent_hints": wrong}}
    assert of(headers, hints) == Identity("s", "dynamo")


@pytest.mark.parametrize(
    ("context", "expected"),
    [
        ({"program_id": "p"}, Identity("p", "vllm-xargs")),
        ({"session_id": "s", "agent_id": "lead"}, Identity("s", "vllm-xargs", "lead")),
        ({"task_id": 7, "session_id": "s", "program_id": "7:sub"}, Identity("7", "vllm-xargs", "sub")),
        ({"task_id": "t", "agent_id": "t:x", "parent_agent_id": "t:lead"}, Identity("t", "vllm-xargs", "x", "lead")),
        ("{", Identity("", "none")),
        ("[]", Identity("", "none")),
        ("[" * 10_000, Identity("", "none")),
        ("\ud800", Identity("", "none")),
        ({"agent_id": "nobody's"}, Identity("", "none")),
    ],
)
def test_agentic_context(context: object, expected: Identity) -> None:
    assert of({}, {"vllm_xargs": {"agentic_context": context}}) == expected


def test_hints_without_an_id_do_not_keep_a_scheme_from_naming_the_workflow() -> None:
    hints = {"nvext": {"agent_hints": {"strict_priority": 2, "osl": 10, "speculative_prefill": True}}}
    assert of({"x-session-id": "s"}, hints) == Identity("s", "opencode")  # not Dynamo's: the hints are dropped
    found = of({"x-dynamo-session-id": "s"}, hints)
    assert (found.expected_output_tokens, found.strict_priority, found.speculative_prefill) == (10, 2, True)
    assert of({"x-llm-d-inference-objective": "slow", "x-session-id": "s"}) == Identity("s", "opencode")
    assert of({"x-llm-d-inference-objective": "slow"}, hints).workflow_class is None


def test_sessions_that_start_sessions_are_one_workflow() -> None:
    """The scheme names only the parent; the grandchild's workflow is that of the session at the top."""
    roots = ResponseRoots()
    for source, own, parent in (
        ("opencode", "x-session-id", "x-parent-session-id"),
        ("dynamo", "x-dynamo-session-id", "x-dynamo-parent-session-id"),
        ("codex", "thread-id", "x-codex-parent-thread-id"),
    ):
        assert of({own: "top"}, roots=roots) == Identity("top", source)
        assert of({own: "child", parent: "top"}, roots=roots) == Identity("top", source, "child", "top")
        for _ in range(2):  # every call says it again
            found = of({own: "grandchild", parent: "child"}, roots=roots)
            assert found == Identity("top", source, "grandchild", "child")
    other = of({"x-session-id": "grandchild", "x-parent-session-id": "child"}, roots=roots, key_name="other")
    assert other == Identity("child", "opencode", "grandchild", "child")


def test_only_the_session_at_the_top_ends_the_workflow() -> None:
    top = {"x-dynamo-session-id": "top", "x-dynamo-session-final": "true"}
    assert of(top).final
    assert not of(top | {"x-dynamo-session-id": "child", "x-dynamo-parent-session-id": "top"}).final


def test_codex_in_its_older_spelling() -> None:
    assert of({"session_id": "s", "thread_id": "s"}) == Identity("s", "codex")
    assert of({"session-id": "new", "session_id": "old"}) == Identity("new", "codex")


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("x-amzn-bedrock-agentcore-runtime-session-id", "vendor-session"),
        ("x-qwen-code-session-id", "vendor-session"),
        ("x-acme-parent-session-id", "none"),
        ("x-session-id-acme", "none"),
        ("acme-session-id", "none"),
        ("x--session-id", "none"),
        ("x-parent-session-id", "none"),
        ("x-dynamo-parent-session-id", "none"),
    ],
)
def test_which_headers_are_a_vendor_s_session(name: str, source: str) -> None:
    assert of({name: "s"}).source == source


def test_of_several_vendors_the_order_of_headers_does_not_matter() -> None:
    one, other = {"x-a-session-id": "a"}, {"x-b-session-id": "b"}
    assert of(one | other) == of(other | one) == Identity("a", "vendor-session")


@pytest.mark.parametrize("path", ["/a", "/", "a", "/a/b/", "//"])
def test_helicone_paths(path: str) -> None:
    found = of({"helicone-session-id": "s", "helicone-session-path": path})
    assert (found.node, found.parent_id) == (path, "/a" if path == "/a/b/" else None)


@pytest.mark.parametrize(
    "value",
    [
        f"00-{'0' * 32}-{'b' * 16}-01",
        f"00-{'a' * 32}-{'0' * 16}-01",
        f"ff-{'a' * 32}-{'b' * 16}-01",
        f"00-{'A' * 32}-{'b' * 16}-01",
        f"00-{'a' * 32}-{'b' * 16}",
        "",
    ],
)
def test_a_traceparent_that_is_none(value: str) -> None:
    assert of({"traceparent": value}) == Identity("", "none")


def test_two_spans_of_a_trace_are_one_workflow() -> None:
    first, second = (of({"traceparent": f"00-{'a' * 32}-{span * 16}-00"}) for span in "bc")
    assert first == second


def test_a_chain_of_responses_is_one_workflow_and_keys_are_apart() -> None:
    roots = ResponseRoots()
    first = sent("responses-first", roots, "alice")
    assert first.workflow_id == ""
    roots.remember("alice", "resp_1", "call-1")  # what the gateway does with the answer of a call without workflow
    second = sent("responses-next", roots, "alice")
    assert second == Identity("call-1", "responses")
    roots.remember("alice", "resp_2", second.workflow_id)
    assert of({}, {"previous_response_id": "resp_2"}, roots=roots, key_name="alice").workflow_id == "call-1"
    assert of({}, {"previous_response_id": "resp_2"}, roots=roots, key_name="bob").workflow_id == "resp_2"


def test_roots_are_bounded_and_forget_the_least_used() -> None:
    roots = ResponseRoots(entries_max=3)
    for i in range(3):
        roots.remember("k", f"r{i}", f"w{i}")
    assert roots.root("k", "r0") == "w0"  # used: now the youngest
    roots.remember("k", "r1", "w1")  # said again: younger still
    roots.remember("k", "r3", "w3")
    assert [roots.root("k", f"r{i}") for i in range(4)] == ["w0", "w1", "r2", "w3"]
    roots.remember("k", "x" * (ID_LENGTH_MAX + 1), "w")
    assert len(roots) == 3
