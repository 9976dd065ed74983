"""Whatever the JSON in a body: is it refused in words, or passed on with nothing changed but what is ours?"""

from __future__ import annotations

import json
from typing import Any, cast

import orjson
from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxy.admission import Admission, Admitted, as_boolean
from proxy.call import Call
from proxy.config_file import load
from proxy.errors import RequestFault
from proxy.http.connection import ClientConnection
from proxy.http.request import Request
from proxy.identity import Identity

MANY = settings(max_examples=400)
ADMISSION = Admission(load(None, {}, {"engines": [{"url": "http://127.0.0.1:1"}], "limits": {"json_values": 20_000}}))
PATHS = ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/other", "/w/run/v1/messages"]

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.sampled_from(
        ["", "a", "workflow", '"workflow":{}', '\\","workflow":1', "\ud83d\ude00", "é", "\x00", "x" * 300]
    )
)
NAMES = st.sampled_from(
    [
        "workflow",
        "stream",
        "stream_options",
        "include_usage",
        "model",
        "messages",
        "priority",
        "n",
        "max_tokens",
        "id",
        "node",
        "after",
        "deadline_ms",
        "final",
        "class",
        "vllm_xargs",
        "agentic_context",
        "nvext",
        "agent_hints",
        "osl",
        "previous_response_id",
        "conversation",
        "prompt_cache_key",
    ]
) | st.sampled_from(["", 'a"b', "é", "workflows", "work\\flow"])
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3))
WORKFLOWS = st.fixed_dictionaries(
    {"id": st.sampled_from(["run-1", "run-1", "run-1", "", 7, None, "é"])},
    optional={
        "node": st.sampled_from(["plan", 1, None]),
        "after": st.sampled_from([["a"], [], "a", [1], None]),
        "deadline_ms": st.sampled_from([5, 1.5, -1, "5", True, 1e300]),
        "final": st.sampled_from([True, False, 1]),
        "unknown": st.just(1),
    },
)
OPTIONS = st.dictionaries(st.sampled_from(["include_usage", "continuous_usage_stats", "x"]), st.booleans() | SCALARS)
MEMBERS = st.one_of(
    st.tuples(st.just("workflow"), WORKFLOWS | VALUES),
    st.tuples(st.just("stream"), st.just(True) | SCALARS),
    st.tuples(st.just("stream_options"), OPTIONS | VALUES),
    st.tuples(st.just("model"), st.just("m") | SCALARS),
    st.tuples(NAMES, VALUES),
)
Written = tuple[bytes, list[tuple[str, bytes]]]


def escaped(name: str) -> str:
    """The name with each character as an escape."""
    units = name.encode("utf-16-be")
    return '"' + "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2)) + '"'


@st.composite
def bodies(draw: st.DrawFn) -> Written:
    """An object as some client writes it, members twice and NaN included; and each member as it stands there."""
    members = []
    for name, value in draw(st.lists(MEMBERS, max_size=6)):
        spelled = escaped(name) if draw(st.integers(0, 3)) == 0 else json.dumps(name, ensure_ascii=draw(st.booleans()))
        text = json.dumps(value, ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, None, 1])))
        blank = draw(st.sampled_from(["", "", " ", "\r\n\t"]))
        written = f"{blank}{spelled}{blank}:{blank}{text}".encode("utf-8", "surrogatepass")
        members.append((name, written + draw(st.sampled_from([b"", b" "]))))
    return b"{" + b",".join([text for _, text in members]) + b"}" + draw(st.sampled_from([b"", b"\n"])), members


def admitted(body: bytes, path: str) -> tuple[Admitted, Call] | RequestFault:
    """What becomes of this body; any other exception fails the test."""
    request = Request()
    request.method, request.target, request.body = b"POST", path.encode(), body
    for name, value in ((b"host", b"x"), (b"content-type", b"application/json")):
        request.fields[name] = value
        request.headers.append((name, name, value))
    call = Call("jg-1", "jg-1", "POST", "", "other", 0.0, 0.0, Identity("", "none"))
    try:
        return ADMISSION.admit(request, cast(ClientConnection, None), call), call
    except RequestFault as refused:
        fault = refused
    assert 400 <= fault.status < 500
    assert fault.reason.isidentifier()
    orjson.dumps([fault.message, fault.param])  # can be said
    return fault


def expected(body: dict[str, Any], path: str) -> tuple[dict[str, Any], bool]:
    """The engine's object, and whether usage is asked for in the client's stead."""
    wanted = {name: value for name, value in body.items() if name != "workflow"}
    options = wanted.get("stream_options")
    if path not in PATHS[:2] or not as_boolean(wanted.get("stream")) or not isinstance(options, dict | None):
        return wanted, False
    if options and as_boolean(options.get("include_usage")) is not False:
        return wanted, False
    wanted["stream_options"] = {**(options or {}), "include_usage": True}
    if options and options.get("continuous_usage_stats"):
        wanted["stream_options"]["continuous_usage_stats"] = False
    return wanted, True


@MANY
@given(bodies(), st.sampled_from(PATHS))
@example((b'{"stream":true,"stream_options":{"include_usage":false,"continuous_usage_stats":true}}', []), PATHS[0])
@example((b'{"model":"m","stream":true,"stream_options":{"include_usage":false}}', []), PATHS[0])
def test_an_object_is_passed_on_less_ours_with_every_other_byte(written: Written, path: str) -> None:
    body, members = written
    found = admitted(body, path)
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        if path == "/other":  # not ours to judge
            assert not isinstance(found, RequestFault)
            assert found[0].body == body
        else:
            assert isinstance(found, RequestFault)
            assert found.reason == "invalid_json"
        return
    if isinstance(found, RequestFault):
        assert found.reason == (
            "invalid_workflow" if "workflow" in value and "workflow" in found.message else found.reason
        )
        assert found.reason in ("invalid_workflow", "invalid_model")
        assert found.reason != "invalid_model" or not isinstance(value["model"], str | None)
        return
    sent, call = found
    wanted, take_out = expected(value, path)
    assert orjson.loads(sent.body) == wanted
    assert sent.take_out_usage == take_out
    assert call.model == value.get("model")
    if take_out:
        kept = [text for name, text in members if name not in ("workflow", "stream_options")]
        assert all(text in sent.body for text in kept)
    elif "workflow" in value:
        kept = [text for name, text in members if name != "workflow"]
        assert sent.body == b"{" + b",".join(kept) + body[body.rindex(b"}") :]
    else:
        assert sent.body == body


def deep(depth: int) -> bytes:
    """An object that is so deep."""
    return b'{"messages":' * depth + b"1" + b"}" * depth


@MANY
@given(
    st.binary(max_size=40) | st.text('{}[]",:\\tru0e ', max_size=40).map(str.encode) | st.integers(1, 3000).map(deep),
    st.sampled_from(PATHS),
)
def test_bytes_that_may_be_no_json_are_refused_in_words(body: bytes, path: str) -> None:
    found = admitted(body, path)
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        value = None
    if isinstance(found, RequestFault):
        assert not isinstance(value, dict) or found.reason in ("invalid_workflow", "invalid_model")
    elif isinstance(value, dict):
        assert orjson.loads(found[0].body) == expected(value, path)[0]
    else:
        assert path == "/other"
        assert found[0].body == body
