"""Parrot's API where something is wrong: engines, bodies, keys, limits, clients that leave, sessions that end."""

from __future__ import annotations

import json
from time import monotonic
from typing import Any

import pytest

from proxy.errors import RequestFault
from tests.e2e.harness import EngineRequest, engine, post, run, until
from tests.e2e.test_parrot import Held, echo, keys, only, parrot_api, refusal, text_of

TOO_LONG = "This model's maximum context length is 2048 tokens"


async def too_long(request: EngineRequest) -> None:
    """What vLLM answers to a prompt that does not fit."""
    body = json.dumps({"error": {"message": TOO_LONG, "type": "BadRequestError", "code": 400}})
    await request.answer(body.encode(), status="400 Bad Request")


# --- engines ---


def test_what_an_engine_refuses_fails_with_its_words_and_so_does_all_behind_it() -> None:
    async def main() -> None:
        async with engine(too_long) as upstream, parrot_api(upstream) as api:
            await api.begin()
            first = (await api.call("a {{y}}", more={"func_name": "sum"}))["y"]
            behind = await api.call("b {{x}} {{y}} {{z}}", "y z", x=(first,))
            for var_id in (behind["z"], behind["y"], first):
                words = await api.refused("GET", f"/semantic_var/{var_id}", api.get_body(), 400, "engine_4xx")
                assert words == f"sum.y: {TOO_LONG}"
            later = (await api.call("c {{x}} {{y}}", x=(first,)))["y"]
            assert TOO_LONG in await api.refused("GET", f"/semantic_var/{later}", api.get_body(), 400)
            assert len(upstream.requests) == 1

    run(main)


@pytest.mark.parametrize(
    ("status", "answer", "told", "words"),
    [
        ("500 Internal Server Error", b"boom", 502, "boom"),
        ("404 Not Found", b'{"error": "no such model"}', 502, "no such model"),
        ("503 Service Unavailable", b"", 503, "(engine_5xx)"),
        ("200 OK", b'{"choices": []}', 502, "no text"),
        ("200 OK", b"not json", 502, "no text"),
    ],
)
def test_other_answers_that_help_nobody(status: str, answer: bytes, told: int, words: str) -> None:
    async def main() -> None:
        async def odd(request: EngineRequest) -> None:
            await request.answer(answer, status=status)

        async with engine(odd) as upstream, parrot_api(upstream) as api:
            await api.begin()
            output = (await api.call("a {{y}}"))["y"]
            assert words in await api.refused("GET", f"/semantic_var/{output}", api.get_body(), told)

    run(main)


def test_an_engine_that_dies_fails_the_call() -> None:
    async def main() -> None:
        async def dies(request: EngineRequest) -> None:
            await request.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{")
            request.reset()

        async with engine(dies) as upstream, parrot_api(upstream) as api:
            await api.begin()
            output = (await api.call("a {{y}}"))["y"]
            words = await api.refused("GET", f"/semantic_var/{output}", api.get_body(), 502, "engine_reset")
            assert words.startswith("call.y: ")

    run(main)


# --- who waits, and who leaves ---


def test_a_client_that_leaves_ends_its_wait_and_not_the_call() -> None:
    async def main() -> None:
        held = Held()
        async with engine(held) as upstream, parrot_api(upstream) as api:
            await api.begin()
            output = (await api.call("a {{y}}"))["y"]
            leaves, stays = await api.getting(output), await api.getting(output)
            variable = only(api).graph.variables[output]
            await until(lambda: len(variable.watchers) == 2, "both waits")
            leaves.abort()
            await until(lambda: len(variable.watchers) == 1, "one left")
            assert held.at_once == 1
            held.open.set()
            assert (await stays.answer()).json == {"content": "[a ]"}
            assert len(upstream.requests) == 1

    run(main)


def test_deleting_a_session_cancels_what_runs_and_tells_who_waits() -> None:
    async def main() -> None:
        held = Held()
        async with engine(held) as upstream, parrot_api(upstream, parrot={"running_calls": 1}) as api:
            await api.begin()
            running = (await api.call("a {{y}}"))["y"]
            await api.call("b {{y}}", more={"output_criteria": "latency"})
            waits = await api.getting(running)
            await until(lambda: bool(upstream.requests), "the call at the engine")
            await api.end()
            await upstream.requests[0].gone.wait()
            refusal(await waits.answer(), 410, "session_deleted")
            await api.refused("DELETE", f"/session/{api.session_id}", {}, 404, "unknown_session")
            assert len(upstream.requests) == 1, "what waited for its turn is not started"

    run(main)


def test_sessions_expire_but_not_while_they_work() -> None:
    async def main() -> None:
        held = Held()
        async with engine(held) as upstream, parrot_api(upstream) as api:
            await api.begin()
            never = (await api.call("a {{x}} {{y}}", x=(await api.new(),)))["y"]
            works = (await api.call("b {{y}}"))["y"]
            waits, served = await api.getting(never), await api.getting(works)
            await until(lambda: bool(upstream.requests), "the call at the engine")
            later = monotonic() + 601
            api.door.tick(later)
            assert api.door.sessions_open == 1
            held.open.set()
            assert (await served.answer()).status == 200
            only(api).last_used = monotonic() - 601
            api.door.tick(monotonic())
            assert "600 s" in refusal(await waits.answer(), 410, "session_expired")
            for method, path in (("GET", f"/semantic_var/{never}"), ("DELETE", f"/session/{api.session_id}")):
                await api.refused(method, path, api.get_body(), 410, "session_expired")

    run(main)


def test_at_the_end_who_waits_is_told() -> None:
    async def main() -> None:
        async with engine(echo) as upstream, parrot_api(upstream) as api:
            await api.begin()
            waits = await api.getting((await api.call("a {{x}} {{y}}", x=(await api.new(),)))["y"])
            await until(lambda: any(v.watchers for v in only(api).graph.variables.values()), "the wait")
            api.door.close()
            refusal(await waits.answer(), 503, "draining")

    run(main)


# --- bodies ---


def test_what_cannot_be_taken_is_refused_with_the_path_of_the_field() -> None:
    async def main() -> None:
        async with engine(echo) as upstream, parrot_api(upstream) as api:
            await api.begin()
            unwritten, session = await api.new("empty"), {"session_id": api.session_id}
            written = await api.new()
            await api.set(written, "once")
            produced = (await api.call("a {{y}}"))["y"]
            for method, path, body, status, words in (
                ("POST", "/session", b"{", 400, "not valid JSON"),
                ("POST", "/semantic_call", b"[]", 400, "must be a JSON object"),
                ("POST", "/semantic_call", {"template": "x"}, 400, "session_id: is missing"),
                ("POST", "/semantic_call", {"session_id": "7"}, 400, "session_id: must be an integer"),
                ("POST", "/semantic_call", {"session_id": 7}, 404, "session_id: there is no such session"),
                ("POST", "/semantic_call", session, 400, "template: is missing"),
                ("POST", "/semantic_call", api.call_body("{{x}} {{z}} {{y}}", x="a"), 400, "template: {{z}} at"),
                ("POST", "/semantic_call", api.call_body("{{x}} {{y}}", x=("no",)), 404, "parameters[0].var_id: "),
                ("POST", "/semantic_var", session, 400, "var_name: is missing"),
                ("POST", "/semantic_var", {**session, "var_name": "n" * 257}, 400, "var_name: must have"),
                ("POST", f"/semantic_var/{unwritten}", session, 400, "content: is missing"),
                ("POST", f"/semantic_var/{unwritten}", {**session, "content": 7}, 400, "content: must be a text"),
                ("POST", f"/semantic_var/{written}", {**session, "content": "2"}, 409, "content: the variable 'v'"),
                ("POST", f"/semantic_var/{produced}", {**session, "content": "2"}, 409, "content: the variable 'y'"),
                ("POST", "/semantic_var/nothing", {**session, "content": "2"}, 404, "var_id: there is no such"),
                ("GET", "/semantic_var/nothing", api.get_body(), 404, "var_id: there is no such"),
                ("GET", f"/semantic_var/{unwritten}", api.get_body(), 409, "var_id: the variable 'empty' is not"),
                ("GET", f"/semantic_var/{produced}", api.get_body("speed"), 400, "criteria: must be one of"),
                ("GET", f"/semantic_var/{produced}", b"", 400, "not valid JSON"),
                ("DELETE", "/session/abc", {}, 404, "session_id: there is no such session"),
                ("DELETE", "/session/7", {}, 404, "session_id: there is no such session"),
                ("DELETE", f"/session/{api.session_id}", {"session_auth": "x"}, 404, "session_id: there is no such"),
            ):
                answered = await api.refused(method, path, body, status)
                assert words in answered, (path, body, answered)
            assert await api.get(written) == "once" and api.door.variables == 3
            assert upstream.requests == []
            answer = await api.ask("DELETE", f"/session/{api.session_id}", b"")
            assert answer.json == {}, "a body is not asked for where nothing is needed of it"

    run(main)


def test_client_byte_code_is_refused_with_an_explanation() -> None:
    async def main() -> None:
        async with engine(echo) as upstream, parrot_api(upstream) as api:
            await api.begin()
            body = {"session_id": api.session_id, "func_name": "f", "func_code": "4wAAAA==", "parameters": []}
            for sent in (body, {**body, "func_code": None}, b"\x80\x04", b""):
                words = await api.refused("POST", "/py_native_call", sent, 403, "native_call")
                assert "byte code" in words and "semantic_var" in words
            assert api.door.variables == 0

    run(main)


# --- limits ---


def test_a_session_runs_so_many_calls_at_once() -> None:
    async def main() -> None:
        held = Held()
        async with engine(held) as upstream, parrot_api(upstream, parrot={"running_calls": 2}) as api:
            await api.begin()
            ids = [(await api.call(f"{number} {{{{y}}}}"))["y"] for number in range(5)]
            inputs: dict[str, Any] = {f"x{number}": (var_id,) for number, var_id in enumerate(ids)}
            final = await api.call("{{x0}}{{x1}}{{x2}}{{x3}}{{x4}}{{y}}", **inputs)
            waits = await api.getting(final["y"])
            await until(lambda: held.at_once == 2, "two calls")
            held.open.set()
            assert (await waits.answer()).json["content"] == f"[{''.join(f'[{number} ]' for number in range(5))}]"
            assert held.most == 2
            assert [text_of(request)[0] for request in upstream.requests[:2]] == ["0", "1"]

    run(main)


def test_calls_that_a_key_may_not_make_at_once_wait_for_their_turn() -> None:
    async def main() -> None:
        held = Held()
        limited = keys(a={"max_concurrency": 2})
        async with engine(held) as upstream, parrot_api(upstream, keys=limited) as api:
            await api.begin(api_key="key-a")
            ids = [(await api.call(f"{n} {{{{y}}}}", more={"output_criteria": "throughput"}))["y"] for n in range(9)]
            waits = [await api.getting(var_id) for var_id in ids]
            await until(lambda: held.at_once == 2, "two calls")
            held.open.set()
            for number, client in enumerate(waits):
                assert (await client.answer()).json == {"content": f"[{number} ]"}
            assert held.most == 2

    run(main)


def test_where_another_has_all_the_places_a_session_tries_again() -> None:
    async def main() -> None:
        held = Held()
        limited = keys(a={"max_concurrency": 1})
        async with engine(held) as upstream, parrot_api(upstream, keys=limited) as api:
            other = await api.running.connect()
            body = {"model": "m", "messages": [{"content": "direct", "role": "user"}]}
            await other.send(post("/v1/chat/completions", body, "authorization: Bearer key-a\r\n"))
            await until(lambda: held.at_once == 1, "the other call")
            await api.begin(api_key="key-a")
            waits = await api.getting((await api.call("mine {{y}}"))["y"])
            [client] = api.door._clients.values()
            await until(lambda: client.work._pause is not None, "it was turned away")
            held.open.set()
            assert (await other.answer()).status == 200
            assert (await waits.answer()).json == {"content": "[mine ]"}
            assert len(upstream.requests) == 2

    run(main)


def test_what_is_turned_away_for_too_long_fails() -> None:
    async def main() -> None:
        held = Held()
        limited = keys(a={"requests_per_minute": 1})
        async with engine(held) as upstream, parrot_api(upstream, keys=limited, parrot={"turn_seconds": 1e-9}) as api:
            held.open.set()
            await api.begin(api_key="key-a")
            await api.get((await api.call("first {{y}}"))["y"])
            output = (await api.call("second {{y}}"))["y"]
            words = await api.refused("GET", f"/semantic_var/{output}", api.get_body(), 429, "key_request_rate")
            assert "1 requests a minute" in words
            assert len(upstream.requests) == 1

    run(main)


def test_texts_and_outputs_have_limits() -> None:
    async def main() -> None:
        narrow = {"body_bytes": 1_000}
        async with (
            engine(echo) as upstream,
            parrot_api(upstream, parrot={"session_bytes": 9_000}, limits=narrow) as api,
        ):
            await api.begin()
            big = await api.new()
            await api.set(big, "x" * 400)
            long = (await api.call("{{x}}" * 3 + "{{y}}", x=(big,)))["y"]
            words = await api.refused("GET", f"/semantic_var/{long}", api.get_body(), 413, "body_too_large")
            assert "limits.body_bytes" in words and upstream.requests == []
            much = [(await api.call("{{x}}{{y}}", x=(big,)))["y"] for _ in range(3)]
            assert [len(await api.get(var_id)) for var_id in much[:2]] == [402, 402]
            words = await api.refused("GET", f"/semantic_var/{much[2]}", api.get_body(), 413, "session_bytes")
            assert "parrot.session_bytes" in words and len(upstream.requests) == 3

    run(main)


def test_a_fault_of_ours_fails_the_call_and_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with engine(echo) as upstream, parrot_api(upstream) as api:
            await api.begin()

            def broken(*_: Any, **__: Any) -> None:
                raise ZeroDivisionError

            monkeypatch.setattr(api.running.app.gateway.inner, "start", broken)
            output = (await api.call("a {{y}}"))["y"]
            words = await api.refused("GET", f"/semantic_var/{output}", api.get_body(), 500, "internal")
            assert "ZeroDivision" not in words
            api.running.faults_expected = 1

            def full(*_: Any, **__: Any) -> None:
                raise RequestFault(413, "body_too_large", "the body is over 1 bytes")

            monkeypatch.setattr(api.running.app.gateway.inner, "start", full)
            output = (await api.call("a {{y}}"))["y"]
            await api.refused("GET", f"/semantic_var/{output}", api.get_body(), 413, "body_too_large")

    run(main)
