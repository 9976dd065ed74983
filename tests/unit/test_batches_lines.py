"""Which files are good batches: every line, its number, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.batches import lines
from proxy.batches.lines import ENDPOINTS, ERRORS_MAX, LineFault, Rules, check, read_chunk, read_line

RULES = Rules(ENDPOINTS[0], lines=100, line_bytes=1_000, json_values=10_000)


def line(custom_id: Any = "a", **more: Any) -> dict[str, Any]:
    """A good line, or nearly."""
    return {"custom_id": custom_id, "method": "POST", "url": ENDPOINTS[0], "body": {"model": "m"}, **more}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Of a file."""
    return tmp_path / "in.jsonl"


@pytest.mark.parametrize(
    ("value", "code", "param"),
    [
        (b"{", "invalid_json_line", None),
        (b"[]", "invalid_json_line", None),
        (b'"x"', "invalid_json_line", None),
        (b'{"custom_id": "\\ud800"}', "invalid_json_line", None),
        (
            {key: value for key, value in line().items() if key != "custom_id"},
            "missing_required_parameter",
            "custom_id",
        ),
        ({key: value for key, value in line().items() if key != "body"}, "missing_required_parameter", "body"),
        (line(""), "invalid_custom_id", "custom_id"),
        (line(7), "invalid_custom_id", "custom_id"),
        (line("x" * 257), "invalid_custom_id", "custom_id"),
        (line(method="GET"), "invalid_method", "method"),
        (line(url="/v1/embeddings"), "url_mismatch", "url"),
        (line(url=7), "url_mismatch", "url"),
        (line(body=[]), "invalid_request", "body"),
        (line(body={"stream": True}), "invalid_request", "body.stream"),
        (line(body={"stream": "true"}), "invalid_request", "body.stream"),
        (line(body={"stream": "perhaps"}), "invalid_request", "body.stream"),
        (line(body={"background": True}), "invalid_request", "body.background"),
        (line(body={"pad": "x" * 1_000}), "line_too_long", None),
    ],
)
def test_what_is_wrong_with_a_line(value: Any, code: str, param: str | None, path: Path) -> None:
    data = value if isinstance(value, bytes) else orjson.dumps(value)
    with pytest.raises(LineFault) as caught:
        read_line(data, 1, RULES)
    assert (caught.value.code, caught.value.param) == (code, param)
    path.write_bytes(orjson.dumps(line("first")) + b"\n\n" + data + b"\n")
    (error,) = check(path, RULES).errors
    assert (error["code"], error["param"], error["line"]) == (code, param, 3)
    assert error["message"]


def test_a_line_that_costs_much_to_read_is_not_read() -> None:
    rules = RULES._replace(line_bytes=10**6, json_values=1_000)
    with pytest.raises(LineFault) as caught:
        read_line(orjson.dumps(line(body={"list": [[]] * 40_000})), 1, rules)
    assert caught.value.code == "line_too_complex"


@pytest.mark.parametrize("stream", [False, None, "false", 0])
def test_no_stream_is_no_stream(stream: Any) -> None:
    assert read_line(orjson.dumps(line(body={"stream": stream})), 1, RULES).number == 1


def test_the_body_is_as_the_client_wrote_it() -> None:
    body = b'{ "model":"m", "seed": 123456789012345678901234567890, "t": 1.10, "u": "\\u00e9" }'
    data = b'{"custom_id":"a","body":{},"method":"POST","url":"%b", "body" : %b }' % (ENDPOINTS[0].encode(), body)
    found = read_line(data, 4, RULES)
    assert (found.number, found.custom_id, found.model, found.body) == (4, "a", "m", body)


def test_a_whole_file(path: Path) -> None:
    good = [orjson.dumps(line(str(index))) for index in range(3)]
    path.write_bytes(good[0] + b"\r\n\n  \n" + good[1] + b"\n" + good[2])
    assert check(path, RULES) == (3, 5, "m", [])
    path.write_bytes(good[0] + b"\n" + orjson.dumps(line("z", body={"model": "n"})))
    assert check(path, RULES).model is None
    path.write_bytes(b"\n \n")
    assert [error["code"] for error in check(path, RULES).errors] == ["empty_file"]
    path.write_bytes(b"\n".join(good[:2] * 1 + good[:1]))
    assert [(error["code"], error["line"]) for error in check(path, RULES).errors] == [("duplicate_custom_id", 3)]
    path.write_bytes(b"".join(orjson.dumps(line(str(index))) + b"\n" for index in range(101)))
    assert [(error["code"], error["line"]) for error in check(path, RULES).errors] == [("too_many_tasks", 101)]
    path.write_bytes(b"\n" * 10_000)
    assert "too_many_tasks" in [error["code"] for error in check(path, RULES).errors]


def test_many_errors_are_counted(path: Path) -> None:
    path.write_bytes(b"{\n" * (ERRORS_MAX + 50))
    errors = check(path, RULES._replace(lines=1_000)).errors
    assert len(errors) == ERRORS_MAX + 1
    assert errors[-1]["code"] == "too_many_errors" and "50 further" in errors[-1]["message"]


def test_a_long_line_is_not_held_and_the_next_is_found(path: Path) -> None:
    path.write_bytes(b"x" * 3_000_000 + b"\n" + orjson.dumps(line()) + b"\n" + b"y" * 3_000_000)
    errors = check(path, RULES).errors
    assert [(error["code"], error["line"]) for error in errors] == [("line_too_long", 1), ("line_too_long", 3)]


@given(
    st.lists(st.sampled_from(["line", "blank", "done"]), max_size=60),
    st.integers(1, 7),
    st.sampled_from([b"\n", b"\r\n"]),
)
def test_reading_on_gives_every_line_once(kinds: list[str], at_once: int, line_end: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "CHUNK_LINES", at_once)
        path = Path(folder) / "in"
        texts = [b"" if kind == "blank" else orjson.dumps(line(str(n))) for n, kind in enumerate(kinds, 1)]
        path.write_bytes(line_end.join(texts))
        done = bytearray(len(kinds) + 1)
        for number, kind in enumerate(kinds, 1):
            done[number] = kind == "done"
        found, offset, number, ended = [], 0, 0, False
        while not ended:
            some, offset, number, ended = read_chunk(path, ENDPOINTS[0], offset, number, done)
            assert len(some) <= at_once
            found += [(each.number, each.custom_id) for each in some]
        assert found == [(number, str(number)) for number, kind in enumerate(kinds, 1) if kind == "line"]
