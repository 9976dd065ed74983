"""Errors that an engine says in a stream of status 200."""

from __future__ import annotations

import pytest

from proxy.usage import EventReader

ERRORS = {
    "vLLM": b'data: {"error":{"message":"no","type":"InternalServerError","param":null,"code":500}}\n\n',
    "vLLM before 0.10": b'data: {"object":"error","message":"no","code":500}\n\n',
    "Anthropic's": b'event: error\r\ndata: {"type": "error", "error": {"type": "overloaded_error"}}\r\n\r\n',
    "Responses": b'event: response.failed\ndata: {"type":"response.failed","response":{"error":{"code":"x"}}}\n\n',
}
NONE = {
    "a model's words": b'data: {"choices":[{"delta":{"content":"data: {\\"error\\": {}}\\nevent: error"}}]}\n\n',
    "no error": b'data: {"type":"response.completed","response":{"error":null}}\n\n',
    "an error that is null": b'data: {"error":null,"choices":[]}\n\n',
}


@pytest.mark.parametrize("take_out", [True, False])
@pytest.mark.parametrize("name", [*ERRORS, *NONE])
def test_an_error_event_is_noticed_however_it_is_cut(name: str, take_out: bool) -> None:
    before = b'data: {"choices":[{"delta":{"content":"hello"}}]}\n\n'
    stream = before + {**ERRORS, **NONE}[name] + b"data: [DONE]\n\n"
    for cut in range(len(stream)):
        reader = EventReader(take_out=take_out)
        passed = reader.feed(stream[:cut]) + reader.feed(stream[cut:]) + reader.end()
        assert passed == stream
        assert reader.has_error == (name in ERRORS), cut
