"""Whose session is it? Keys in Parrot's API, where the front end names one in the session's body alone."""

from __future__ import annotations

import asyncio
import base64
from typing import TYPE_CHECKING, Any

import aiohttp

from tests.e2e.harness import configuration, engine, run, until
from tests.e2e.test_parrot import Api, echo, keys, only, parrot_api, refusal

if TYPE_CHECKING:
    from tests.e2e.harness import EngineRequest


def test_a_sessions_key_counts_wherever_it_stands() -> None:
    async def main() -> None:
        async with engine(echo) as upstream, parrot_api(upstream, keys=keys(a={}, b={})) as api:
            basic = base64.b64encode(b"any:key-b").decode()
            for headers, body, owner in (
                ("", {"api_key": "key-a"}, "a"),
                ("authorization: Bearer key-b\r\n", {"api_key": "1"}, "b"),
                (f"authorization: Basic {basic}\r\n", {"api_key": "1"}, "b"),
                ("x-api-key: key-b\r\n", {}, "b"),
            ):
                api.headers = headers
                await api.begin(**body)
                assert only(api).key_name == owner
                assert await api.get((await api.call("a {{y}}"))["y"]) == "[a ]"
                await api.end()
            nobodys: tuple[tuple[str, Any], ...] = (
                ("", {"api_key": "1"}),
                ("", {"api_key": ["key-a"]}),
                ("", {}),
                ("", []),
                ("authorization: Bearer key-c\r\n", {}),
                ("authorization: Basic !\r\n", {}),
                ("authorization: Digest key-a\r\n", {}),
            )
            for headers, nothing in nobodys:
                api.headers = headers
                answer = await api.ask("POST", "/session", nothing)
                refusal(answer, 401, "invalid_api_key")
                assert answer.header("www-authenticate") == "Bearer"
            assert api.door.sessions_open == 0

    run(main)


def test_another_keys_session_does_not_exist() -> None:
    async def main() -> None:
        async with engine(echo) as upstream, parrot_api(upstream, keys=keys(a={}, b={})) as api:
            await api.begin(api_key="key-a")
            variable = await api.new()
            other = await Api(api.running, api.door).begin(api_key="key-b")
            requests: tuple[tuple[str, str, dict[str, Any]], ...] = (
                ("POST", "/semantic_call", api.call_body("a {{y}}")),
                ("POST", "/semantic_var", {"session_id": api.session_id, "var_name": "v"}),
                ("POST", f"/semantic_var/{variable}", {"session_id": api.session_id, "content": "c"}),
                ("GET", f"/semantic_var/{variable}", api.get_body()),
                ("DELETE", f"/session/{api.session_id}", {}),
            )
            api.headers = "authorization: Bearer key-b\r\n"
            for method, path, body in requests:
                told = await api.refused(method, path, body, 404, "unknown_session")
                assert told == await api.refused(method, path, {**body, "session_id": 7}, 404)
            api.headers = "authorization: Bearer nobody\r\n"
            for method, path, body in requests:
                await api.refused(method, path, body, 401, "invalid_api_key")
            foreign = await other.refused("GET", f"/semantic_var/{variable}", other.get_body(), 404, "unknown_variable")
            assert foreign == await other.refused("GET", "/semantic_var/nothing", other.get_body(), 404)
            api.headers = ""
            await api.set(variable, "mine")
            assert await api.get(variable) == "mine"

    run(main)


def test_a_key_that_is_taken_away_ends_the_use_of_its_sessions() -> None:
    async def main() -> None:
        async with engine(echo) as upstream, parrot_api(upstream, keys=keys(a={}, b={})) as api:
            await api.begin(api_key="key-a")
            variable = await api.new()
            for name, status in (("a", 200), ("b", 401), ("a", 200)):
                api.running.app.gateway.admission.configure(configuration(upstream, keys=keys(**{name: {}})))
                body = {"session_id": api.session_id, "var_name": "v"}
                assert (await api.ask("POST", "/semantic_var", body)).status == status
            await api.set(variable, "still mine")

    run(main)


def test_a_key_that_is_taken_away_runs_no_more_calls() -> None:
    async def main() -> None:
        go_on = asyncio.Event()

        async def answer(request: EngineRequest) -> None:
            await go_on.wait()
            await echo(request)

        async with engine(answer) as upstream, parrot_api(upstream, keys=keys(a={})) as api:
            await api.begin(api_key="key-a")
            first = (await api.call("a {{y}}"))["y"]
            second = (await api.call("{{x}} b {{y}}", x=(first,)))["y"]
            asking = asyncio.ensure_future(api.ask("GET", f"/semantic_var/{second}", api.get_body()))
            await until(lambda: len(upstream.requests) == 1, "the first call")
            api.running.app.gateway.admission.configure(configuration(upstream, keys=keys(b={})))
            go_on.set()
            assert "does not exist any more" in refusal(await asking, 401, "invalid_api_key")
            assert len(upstream.requests) == 1

    run(main)


def test_an_unmodified_front_end_may_have_the_key_in_its_address() -> None:
    """`VirtualMachine.register_session` always sends `api_key="1"`; its HTTP clients turn a URL's user into Basic."""

    async def main() -> None:
        async with engine(echo) as upstream, parrot_api(upstream, keys=keys(a={}, b={})) as api:
            address = f"http://any:key-b@127.0.0.1:{api.running.port}/parrot"
            async with aiohttp.ClientSession() as client:
                async with client.post(f"{address}/v1/session", json={"api_key": "1"}) as answer:
                    assert answer.status == 200
                    api.session_id = (await answer.json())["session_id"]
                assert only(api).key_name == "b"
                body = api.call_body("a {{y}}") | {"session_id": api.session_id}
                async with client.post(f"{address}/v1/semantic_call", json=body) as answer:
                    output = (await answer.json())["param_info"][0]["var_id"]
                async with client.get(f"{address}/v1/semantic_var/{output}", json=api.get_body()) as answer:
                    assert await answer.json() == {"content": "[a ]"}

    run(main)


def test_who_shows_no_key_cannot_fill_the_room_of_those_who_do() -> None:
    """Parrot's paths are read before a key is known: it may stand in the body."""

    async def main() -> None:
        limits = {"buffered_bytes": 80_000}
        async with engine(echo) as upstream, parrot_api(upstream, keys=keys(a={}), limits=limits) as api:
            server = api.running.app.gateway.server
            head = b"POST /v1/session HTTP/1.1\r\nhost: g\r\ncontent-length: 50000\r\n"
            strangers = [await api.running.connect() for _ in range(3)]
            for stranger in strangers[:2]:
                await stranger.send(head + b"\r\n" + bytes(5_500))
                await until(lambda: server.buffered_bytes >= 5_500, "the first part")
            (await strangers[1].answer()).assert_error(503, "buffers_full")
            friend = await api.running.connect()
            await friend.send(head + b"x-api-key: key-a\r\n\r\n" + b" " * 49_998)
            await until(lambda: server.buffered_bytes >= 55_000, "a friend has room")
            strangers[0].abort()
            await until(lambda: server.buffered_bytes < 50_000, "the stranger's part is free")
            await strangers[2].send(head + b"\r\n" + b" " * 9_000)
            await until(lambda: server.buffered_bytes >= 58_000, "the next one has it")
            strangers[2].abort()
            await friend.send(b"{}")
            assert (await friend.answer()).status == 200
            assert (await api.begin(api_key="key-a")).session_id, "a key in the body alone"

    run(main)
