"""What a request is let in as: how much JSON, which route, whether it streams."""

from __future__ import annotations

import contextlib
import hashlib
import json
from typing import TYPE_CHECKING, Any, cast

import pytest

from proxy.admission import Admission, Admitted, as_boolean
from proxy.call import Call
from proxy.config_file import load
from proxy.errors import RequestFault
from proxy.http.connection import ClientConnection
from proxy.http.request import Request
from proxy.identity import NOTHING_SAID, ResponseRoots
from proxy.jsonsize import over

if TYPE_CHECKING:
    from collections.abc import Callable

KEYS = {"keys": [{"name": "k", "sha256": hashlib.sha256(b"kk").hexdigest()}]}
VALUES = load(None, {}, {"engines": [{"url": "http://a:1"}]}).limits.json_values
MIB = 1 << 20


def admission(**tables: Any) -> Admission:
    return Admission(load(None, {}, {"engines": [{"url": "http://127.0.0.1:1"}], **tables}))


def admit(
    ours: Admission, target: str, body: bytes = b"", method: str = "POST", **headers: str
) -> tuple[Admitted, Call, Request]:
    request = Request()
    request.method, request.target, request.body = method.encode(), target.encode(), body
    for name, value in {"host": "x", "content_type": "application/json", **headers}.items():
        field = name.replace("_", "-").encode()
        request.fields[field] = value.encode()
        request.headers.append((field, field, value.encode()))
    call = Call("jg-1", "jg-1", method, "", "other", 0.0, 0.0, NOTHING_SAID)
    return ours.admit(request, cast(ClientConnection, _Connection()), call), call, request


class _Connection:
    authorized = None


TOO_MUCH: dict[str, Callable[[], bytes]] = {
    "objects": lambda: b'{"a":[' + b",".join([b'{"a":1}'] * 2_090_000) + b"]}",
    "lists": lambda: b'{"a":[' + b",".join([b"[]"] * 2_000_000) + b"]}",
    "members": lambda: b"{" + b",".join([b'"k%d":1' % number for number in range(300_000)]) + b"}",
    "strings": lambda: b'{"a":[' + b'"",' * (8 * MIB) + b"1]}",
}
PASSES: dict[str, Callable[[], bytes]] = {
    "text": lambda: b'{"a":"' + b"x" * (31 * MIB) + b'"}',
    "brackets in text": lambda: b'{"a":"' + b"{[,:" * (7 * MIB) + b'"}',
    "escapes in text": lambda: b'{"a":"' + b'\\"{\\\\' * (6 * MIB) + b'"}',
    "token ids": lambda: b'{"prompt":' + json.dumps(list(range(128_000))).encode() + b"}",
    "embeddings": lambda: b'{"input":' + json.dumps([list(range(262))] * 1000).encode() + b"}",
    "tools": lambda: (
        b'{"tools":' + json.dumps([{"type": "function", "function": {"name": "f"}}] * 2000).encode() + b"}"
    ),
}


@pytest.mark.parametrize("kind", [*TOO_MUCH, *PASSES])
def test_what_costs_too_much_to_read_is_refused_and_text_is_not(kind: str) -> None:
    body = (TOO_MUCH | PASSES)[kind]()
    assert over(body, VALUES) is (kind in TOO_MUCH)
    if kind in TOO_MUCH:
        with pytest.raises(RequestFault) as refused:
            admit(admission(), "/v1/chat/completions", body)
        assert (refused.value.status, refused.value.reason) == (413, "body_too_complex")


@pytest.mark.parametrize(
    ("value", "taken_for"),
    [
        (True, True), ("true", True), ("True", True), (1, True), (1.0, True), ("on", True), ("1", True), ("y", True),
        (False, False), (None, False), ("false", False), (0, False), ("off", False),
        ("perhaps", None), (2, None), ([], None), ({}, None), ("", None), (2**80, None),
    ],
)  # fmt: skip
def test_truth_as_vllm_reads_it(value: object, taken_for: bool | None) -> None:
    assert as_boolean(value) is taken_for


@pytest.mark.parametrize("stream", [True, "true", 1, "on"])
@pytest.mark.parametrize("options", [{}, {"stream_options": {}}, {"stream_options": {"include_usage": "false"}}])
def test_usage_is_asked_for_in_every_stream_that_vllm_takes_for_one(stream: object, options: dict[str, Any]) -> None:
    body = json.dumps({"model": "m", "stream": stream, **options}).encode()
    admitted, call, _ = admit(admission(), "/v1/chat/completions", body)
    assert admitted.take_out_usage and call.stream
    assert json.loads(admitted.body)["stream_options"] == {"include_usage": True}


def test_what_vllm_refuses_is_left_for_it_to_refuse() -> None:
    for members in ({"stream": "perhaps"}, {"stream": True, "stream_options": {"include_usage": "perhaps"}}):
        body = json.dumps({"model": "m", **members}).encode()
        admitted, _, _ = admit(admission(), "/v1/chat/completions", body)
        assert admitted.body == body and not admitted.take_out_usage


def test_a_path_is_known_however_it_is_written() -> None:
    admitted, call, _ = admit(admission(), "/v1/chat/%63ompletions", b'{"model":"m","stream":true}')
    assert (call.route, admitted.take_out_usage) == ("/v1/chat/completions", True)
    assert admitted.target == b"/v1/chat/%63ompletions", "passed on as it is"


def test_a_question_for_one_model_is_routed_by_it() -> None:
    admitted, call, _ = admit(admission(), "/v1/models/meta-llama%2FLlama-3.1:8B/x?a=1", method="GET")
    assert (call.model, call.route, admitted.models_asked) == ("meta-llama/Llama-3.1:8B/x", "/v1/models", False)
    admitted, call, _ = admit(admission(), "/v1/models", method="GET")
    assert (call.model, admitted.models_asked) == (None, True)
    admitted, call, _ = admit(admission(), "/v1/models/m", b"{}")
    assert (call.model, call.route) == (None, "other")


def test_a_preflight_needs_no_key_and_has_no_body() -> None:
    ours = admission(**KEYS)
    admitted, call, _ = admit(ours, "/w/run/v1/completions", b'{"a":1}', "OPTIONS", origin="http://x", x_api_key="kk")
    assert (call.key_name, call.route, call.model) == ("-", "OPTIONS", None)
    assert admitted.body == b""
    assert admitted.target == b"/v1/completions"
    assert b"origin: http://x" in admitted.fields and b"kk" not in admitted.fields
    with pytest.raises(RequestFault) as refused:
        admit(ours, "/v1/completions", b"{}")
    assert refused.value.status == 401


@pytest.mark.parametrize(("length", "let_in"), [(b"0", True), (b"5", False), (None, False)])
def test_a_preflight_that_announces_a_body_needs_a_key(length: bytes | None, let_in: bool) -> None:
    request = Request()
    request.method = b"OPTIONS"
    if length is not None:
        request.fields[b"content-length"] = length
    else:
        request.fields[b"transfer-encoding"] = b"chunked"
    expected = contextlib.nullcontext() if let_in else pytest.raises(RequestFault, match="no valid API key")
    with expected:
        admission(**KEYS).check_before_body(request, cast(ClientConnection, _Connection()))


def test_the_table_of_responses_has_the_configured_limit() -> None:
    ours = admission(limits={"response_roots": 3})
    for number in range(5):
        ours.roots.remember("-", f"resp_{number}", "w")
    assert len(ours.roots) == 3
    ours.configure(load(None, {}, {"engines": [{"url": "http://127.0.0.1:1"}], "limits": {"response_roots": 2}}))
    assert [ours.roots.root("-", f"resp_{number}") for number in (3, 4)] == ["w", "w"]
    assert ours.roots.root("-", "resp_2") == "resp_2"
    assert len(ResponseRoots()) == 0
