"""The record of a batch: whatever a crash leaves of it, every line comes to have exactly one result."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.batches.record import Usage
from proxy.batches.results import Results, failed, result_id, usage_of, write
from proxy.batches.verdict import WAIT_SECONDS_MAX, judge
from proxy.call import Call, Outcome
from proxy.identity import NOTHING_SAID
from proxy.inner import InnerAnswer

BATCH = "batch_00112233445566778899aabb"
BODY = b'{"id":"x","n":123456789012345678901234567890,"usage":{"prompt_tokens":3,"completion_tokens":2}}'


def answer(body: bytes = BODY, status: int = 200, whole: bool = True, **headers: str) -> InnerAnswer:
    """An answer as inner calls get it."""
    fields = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    return InnerAnswer(status, fields, body, whole, None)


def called(status: int, outcome: Outcome, reason: str | None = None, **headers: str) -> InnerAnswer:
    """An answer with its call."""
    call = Call("c", "r", "POST", "/", "/", 0.0, 0.0, NOTHING_SAID)
    call.status, call.outcome, call.reason = status, outcome, reason
    return answer(BODY, status, True, **headers)._replace(call=call)


def one(given: InnerAnswer) -> tuple[bytes, bytes]:
    """What is written of one answer: as a good result, as another."""
    good, bad = write(BATCH, [(7, "seven", given)])
    return good.data, bad.data


def test_the_shapes_are_openais() -> None:
    good, bad = one(answer(x_request_id="r-1"))
    assert bad == b"" and good.endswith(b"\n") and good.count(b"\n") == 1
    assert BODY in good, "the engine's bytes are the client's"
    value = orjson.loads(good)
    assert value["id"] == result_id(BATCH, 7) == "batch_req_00112233445566778899aabb00000007"
    assert value["custom_id"] == "seven" and value["error"] is None
    assert value["response"].keys() == {"status_code", "request_id", "body"}
    assert (value["response"]["status_code"], value["response"]["request_id"]) == (200, "r-1")
    good, bad = one(answer(b'{"error": {}}', 400))
    assert good == b"" and orjson.loads(bad)["response"] == {
        "status_code": 400,
        "request_id": "",
        "body": {"error": {}},
    }
    value = orjson.loads(one(answer(b"", 200, whole=False))[1])
    assert value["response"] is None and value["error"]["code"] == "engine_lost"
    assert orjson.loads(failed(BATCH, 1, "a", "batch_expired", "late")) == {
        "id": result_id(BATCH, 1),
        "custom_id": "a",
        "response": None,
        "error": {"code": "batch_expired", "message": "late"},
    }


@pytest.mark.parametrize("body", [b'{\n "a": 1\r\n}', b"no json\n at all \xff", b""])
def test_no_answer_tears_the_line(body: bytes) -> None:
    good, _ = one(answer(body))
    assert good.count(b"\n") == 1 and b"\r" not in good
    shown = orjson.loads(good)["response"]["body"]
    assert shown == ({"a": 1} if body.startswith(b"{") else body.decode("utf-8", "replace"))


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (
            {
                "prompt_tokens": 5,
                "completion_tokens": 3,
                "prompt_tokens_details": {"cached_tokens": 2},
                "completion_tokens_details": {"reasoning_tokens": 1},
            },
            (5, 2, 3, 1),
        ),
        (
            {
                "input_tokens": 5,
                "output_tokens": 3,
                "input_tokens_details": {"cached_tokens": 2},
                "output_tokens_details": {"reasoning_tokens": 1},
            },
            (5, 2, 3, 1),
        ),
        ({"prompt_tokens": 5, "total_tokens": 5}, (5, 0, 0, 0)),
        ({"prompt_tokens": "5", "prompt_tokens_details": None}, (0, 0, 0, 0)),
        (None, (0, 0, 0, 0)),
        ([], (0, 0, 0, 0)),
    ],
)
def test_usage_in_either_api(usage: Any, expected: tuple[int, int, int, int]) -> None:
    assert usage_of({"usage": usage}) == Usage(*expected)
    assert usage_of("text") == Usage()


@given(st.integers(1, 12), st.data())
def test_a_torn_file_is_mended(total: int, data: st.DataObject) -> None:
    """Cut or overwritten anywhere: what is left are whole results, and doing the others again gives each line one."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "r"
        file = Results(path)
        order = data.draw(st.permutations(range(1, total + 1)))
        ends = [0]
        for number in order:
            file.append(write(BATCH, [(number, f"c{number}", answer())])[0].data)
            ends.append(file.size)
        whole = path.read_bytes()
        cut = data.draw(st.integers(0, len(whole)))
        noise = data.draw(st.binary(max_size=30) | st.just(whole[: ends[1]]) | st.just(b'{"id": 7}\n'))
        path.write_bytes(whole[:cut] + noise)
        file, done = Results(path), bytearray(total + 1)
        found = file.recover(BATCH, done)
        kept = sum(end <= cut for end in ends[1:])
        assert found.lines >= kept, "a whole result is never lost"
        if whole.startswith(whole[:cut] + noise) or noise == b"":
            assert found.lines == sum(end <= cut + len(noise) for end in ends[1:])
        assert found.usage == Usage(3 * found.lines, 0, 2 * found.lines, 0)
        assert path.stat().st_size == file.size
        for number in [number for number in range(1, total + 1) if not done[number]]:
            file.append(write(BATCH, [(number, f"c{number}", answer())])[0].data)
        results = [orjson.loads(line) for line in path.read_bytes().splitlines()]
        assert sorted(value["custom_id"] for value in results) == sorted(f"c{n}" for n in range(1, total + 1))


def test_another_batchs_results_are_not_taken(tmp_path: Path) -> None:
    file = Results(tmp_path / "r")
    file.append(
        failed(BATCH, 1, "a", "x", "y") + failed("batch_ff", 2, "b", "x", "y") + failed(BATCH, 3, "c", "x", "y")
    )
    done = bytearray(4)
    assert Results(file.path).recover(BATCH, done).lines == 1 and list(done) == [0, 1, 0, 0]
    assert Results(tmp_path / "none").recover(BATCH, bytearray(4)).lines == 0


def test_half_a_write_is_overwritten(tmp_path: Path) -> None:
    file = Results(tmp_path / "r")
    file.append(b"one\n")
    with file.path.open("ab") as torn:  # as a full disk leaves it
        torn.write(b"tw")
    file.append(b"two\n")
    assert file.path.read_bytes() == b"one\ntwo\n" and file.size == 8


@pytest.mark.parametrize(
    ("given", "tries", "expected"),
    [
        (called(200, Outcome.OK), 1, None),
        (called(400, Outcome.ENGINE_4XX), 1, None),
        (called(500, Outcome.ENGINE_5XX), 1, None),
        (called(404, Outcome.REFUSED, "unknown_model"), 1, None),
        (answer(status=413), 1, None),
        (called(429, Outcome.REFUSED, retry_after="7"), 99, (7.0, True)),
        (called(429, Outcome.REFUSED, retry_after="86400"), 99, (WAIT_SECONDS_MAX, True)),
        (called(503, Outcome.REFUSED, retry_after="soon"), 1, (1.0, True)),
        (answer(status=503), 9, (1.0, True)),
        (called(429, Outcome.ENGINE_4XX, retry_after="9"), 1, (9.0, False)),
        (called(503, Outcome.ENGINE_5XX), 2, (2.0, False)),
        (called(503, Outcome.ENGINE_5XX), 3, None),
        (called(502, Outcome.ENGINE_LOST), 1, (1.0, False)),
        (called(504, Outcome.TIMEOUT), 1, (1.0, False)),
        (called(200, Outcome.ENGINE_LOST, "engine_reset")._replace(whole=False), 2, (2.0, False)),
        (called(200, Outcome.OK, "answer_too_large")._replace(whole=False), 1, None),
    ],
)
def test_what_is_asked_again(given: InnerAnswer, tries: int, expected: tuple[float, bool] | None) -> None:
    assert judge(given, tries, 3) == expected
