"""What of a call's end the content inference is told."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any, cast

import pytest

from proxy import watching
from proxy.call import Call, Outcome
from proxy.identity import NOTHING_SAID
from proxy.watching import ContentWatch
from scheduler.events import CallPlaced

CHAT = "/v1/chat/completions"
HI = {"role": "user", "content": "Hi"}
ANSWER = json.dumps({"choices": [{"message": {"role": "assistant", "content": "Hello."}}]}).encode()


def call_of(call_id: str) -> Call:
    call = Call(call_id, call_id, "POST", CHAT, CHAT, 0.0, 0.0, NOTHING_SAID)
    call.key_name, call.model = "k", "m"
    return call


def next_turn(outcome: Outcome, body: bytes) -> tuple[str | None, float]:
    """A call that ended so; whose next turn its history, the answer and a question are."""

    async def main() -> CallPlaced:
        told: list[Any] = []
        watch = ContentWatch(cast(Any, SimpleNamespace(tell=told.append)), 1 << 20)
        first = call_of("first")
        watch.arrived(first, {"messages": [HI]})
        first.outcome, first.response_bytes = outcome, len(body)
        watch.answered(first, [body])
        said = {"role": "assistant", "content": "Hello."}
        watch.arrived(call_of("second"), {"messages": [HI, said, {"role": "user", "content": "And?"}]})
        await asyncio.sleep(0)
        return cast(CallPlaced, told[-1])

    placed = asyncio.run(main())
    return placed.turn_of, placed.turn_confidence


def test_an_answer_is_gone_on_from() -> None:
    assert next_turn(Outcome.OK, ANSWER) == ("first", 0.99)


def test_an_answer_too_long_to_be_looked_at_is_gone_on_from_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "ANSWER_BYTES_MAX", len(ANSWER) - 1)
    assert next_turn(Outcome.OK, ANSWER) == ("first", 0.7)


def test_nothing_goes_on_from_a_call_that_failed() -> None:
    assert next_turn(Outcome.ENGINE_5XX, b"{}") == (None, 0.0)
