"""Parrot's API through a whole gateway: what is run, when, and what the engine is sent."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from proxy.gateway import Gateway
from proxy.keys import hash_key
from proxy.parrot import work
from proxy.parrot.door import ParrotDoor
from proxy.parrot.sessions import Session
from scheduler.workflow.spec import NodeSpec
from tests.e2e.harness import Answer, Client, EngineRequest, RunningGateway, ScriptedEngine, engine, gateway, run, until


class Api:
    """A client of Parrot's API, and one session of its own."""

    def __init__(self, running: RunningGateway, door: ParrotDoor, base: str = "") -> None:
        self.running = running
        self.door = door
        self.base = base
        self.headers = ""
        self.session_id = 0
        self.workflow_id = ""

    def bytes_of(self, method: str, path: str, body: Any) -> bytes:
        """A request as the front end sends it: with a JSON body, whatever the method."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = f"{method} {self.base}/v1{path} HTTP/1.1\r\nhost: gateway\r\ncontent-type: application/json\r\n"
        return f"{head}{self.headers}content-length: {len(data)}\r\n\r\n".encode() + data

    async def ask(self, method: str, path: str, body: Any) -> Answer:
        """One request on a connection of its own."""
        return await self.running.request(self.bytes_of(method, path, body))

    async def good(self, method: str, path: str, body: Any) -> Any:
        """The JSON of an answer that is 200."""
        answer = await self.ask(method, path, body)
        assert answer.status == 200, answer.body
        return answer.json

    async def refused(self, method: str, path: str, body: Any, status: int, reason: str | None = None) -> str:
        """The words of an error in Parrot's shape."""
        answer = await self.ask(method, path, body)
        return refusal(answer, status, reason)

    async def begin(self, **body: Any) -> Api:
        """Open the session."""
        answer = await self.ask("POST", "/session", body)
        assert answer.status == 200, answer.body
        assert answer.json.keys() == {"session_id", "session_auth"}
        self.session_id, self.workflow_id = answer.json["session_id"], answer.header("x-workflow-id") or ""
        return self

    async def end(self) -> None:
        """Delete it."""
        assert await self.good("DELETE", f"/session/{self.session_id}", {}) == {}

    def call_body(self, template: str, outputs: str = "y", sampling: Any = None, **inputs: Any) -> dict[str, Any]:
        """A semantic call; inputs are values, or variables' ids as `(id,)`."""
        parameters: list[dict[str, Any]] = [
            {"name": name, "is_output": False}
            | ({"var_id": value[0]} if isinstance(value, tuple) else {"value": value})
            for name, value in inputs.items()
        ]
        parameters += [{"name": name, "is_output": True, "sampling_config": sampling} for name in outputs.split()]
        return {"session_id": self.session_id, "template": template, "parameters": parameters}

    async def call(self, template: str, outputs: str = "y", more: dict[str, Any] | None = None, **inputs: Any) -> Any:
        """Submit one: its variables' ids by parameter."""
        body = self.call_body(template, outputs, **inputs) | (more or {})
        answer = await self.good("POST", "/semantic_call", body)
        assert answer.keys() == {"request_id", "param_info"} and type(answer["request_id"]) is int
        return {info["parameter_name"]: info["var_id"] for info in answer["param_info"]}

    async def new(self, name: str = "v") -> str:
        """A variable that nobody writes yet."""
        answer = await self.good("POST", "/semantic_var", {"session_id": self.session_id, "var_name": name})
        assert answer.keys() == {"var_id"}
        return str(answer["var_id"])

    async def set(self, var_id: str, content: str) -> None:
        """Write it."""
        body = {"session_id": self.session_id, "content": content}
        assert await self.good("POST", f"/semantic_var/{var_id}", body) == {}

    def get_body(self, criteria: str = "latency") -> dict[str, Any]:
        return {"session_id": self.session_id, "criteria": criteria}

    async def get(self, var_id: str, criteria: str = "latency") -> str:
        """Wait for it."""
        answer = await self.good("GET", f"/semantic_var/{var_id}", self.get_body(criteria))
        assert answer.keys() == {"content"}
        return str(answer["content"])

    async def getting(self, var_id: str) -> Client:
        """A connection on which it is waited for."""
        client = await self.running.connect()
        await client.send(self.bytes_of("GET", f"/semantic_var/{var_id}", self.get_body()))
        return client


def refusal(answer: Answer, status: int, reason: str | None = None) -> str:
    """It is an error in Parrot's shape; returns its words."""
    assert answer.status == status, (answer.status, answer.body)
    assert answer.json.keys() == {"error"} and isinstance(answer.json["error"], str) and answer.json["error"]
    assert b"Traceback" not in answer.body
    assert reason is None or answer.header("x-joulegate-reason") == reason
    return str(answer.json["error"])


@contextlib.asynccontextmanager
async def parrot_api(*engines: ScriptedEngine | str, **tables: Any) -> AsyncIterator[Api]:
    """A client of a whole gateway; `tables` as in the configuration file. At the end no session is left."""
    async with gateway(*engines, **tables) as running:
        door = running.app.own.parrot
        yield Api(running, door)
        door.close()
        assert (door.sessions_open, door.variables, door.held_bytes) == (0, 0, 0)


def keys(**names: Any) -> list[dict[str, Any]]:
    """[[keys]] whose key is `key-NAME`."""
    return [{"name": name, "sha256": hash_key(f"key-{name}"), **limits} for name, limits in names.items()]


def text_of(request: EngineRequest) -> str:
    """What a model is to go on from."""
    body = request.json
    if request.target == "/v1/completions":
        return str(body["prompt"])
    assert request.target == "/v1/chat/completions"
    [message] = body["messages"]
    assert message.keys() == {"role", "content"} and message["role"] == "user"
    return str(message["content"])


async def say(request: EngineRequest, text: str) -> None:
    """Answer with a text."""
    chat = request.target == "/v1/chat/completions"
    choice = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    await request.answer(json.dumps({"choices": [{"index": 0, **choice}], "usage": usage}).encode())


async def echo(request: EngineRequest) -> None:
    """Answer with what was said, in brackets."""
    await say(request, f"[{text_of(request)}]")


class Held:
    """An engine's answers that wait until the test lets them go."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.at_once = self.most = 0

    async def __call__(self, request: EngineRequest) -> None:
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        gone, let_go = asyncio.ensure_future(request.gone.wait()), asyncio.ensure_future(self.open.wait())
        await asyncio.wait([gone, let_go], return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        let_go.cancel()
        self.at_once -= 1
        if self.open.is_set():
            await echo(request)


@pytest.mark.parametrize("base", ["", "/parrot"])
def test_a_call_is_one_user_message_under_both_addresses(base: str) -> None:
    async def main() -> None:
        async with engine(echo) as upstream, parrot_api(upstream) as api:
            api.base = base
            await api.begin(api_key="1")
            sampling = {"temperature": 0.5, "max_gen_length": 50, "stop_str": "END", "n": 1}
            body = api.call_body("Tell {{x}}:\n {{y}} bye {{x}}", sampling=sampling, x="Zoë") | {"func_name": "tell"}
            answer = await api.good("POST", "/semantic_call", body)
            first, second = answer["param_info"]
            assert first == {"parameter_name": "x", "is_output": False, "var_name": "x", "var_id": first["var_id"]}
            assert second == {"parameter_name": "y", "is_output": True, "var_name": "y", "var_id": second["var_id"]}
            assert await api.get(first["var_id"]) == "Zoë"
            assert upstream.requests == [], "nobody has asked for its output"
            assert await api.get(second["var_id"]) == "[Tell Zoë:\n ]"
            assert await api.get(second["var_id"], "throughput") == "[Tell Zoë:\n ]"
            [request] = upstream.requests
            assert text_of(request) == "Tell Zoë:\n "
            rest = {name: value for name, value in request.json.items() if name != "messages"}
            assert rest == {"model": "m", "temperature": 0.5, "top_p": 1.0, "max_tokens": 50, "stop": "END"}
            await api.end()
            assert await api.refused("GET", f"/semantic_var/{second['var_id']}", api.get_body(), 404, "unknown_session")

    run(main)


def test_asking_for_the_last_runs_all_that_it_needs_and_nothing_else() -> None:
    async def main() -> None:
        async with engine(echo) as upstream, parrot_api(upstream) as api:
            await api.begin()
            maps = [(await api.call("map {{x}}: {{y}}", x=f"part {number}"))["y"] for number in range(3)]
            unused = (await api.call("unused {{y}}"))["y"]
            inputs: dict[str, Any] = {f"s{number}": (var_id,) for number, var_id in enumerate(maps)}
            final = (await api.call("reduce {{s0}}, {{s1}}, {{s2}}: {{y}}", **inputs))["y"]
            said = [f"[map part {number}: ]" for number in range(3)]
            assert await api.get(final, "TTFT") == f"[reduce {', '.join(said)}: ]"
            assert len(upstream.requests) == 4 and text_of(upstream.requests[3]).startswith("reduce")
            assert await api.get(maps[1]) == said[1] and len(upstream.requests) == 4
            assert await api.get(unused) == "[unused ]" and len(upstream.requests) == 5

    run(main)


def test_output_criteria_run_a_call_that_nobody_asks_for() -> None:
    async def main() -> None:
        async with engine(echo) as upstream, parrot_api(upstream) as api:
            await api.begin()
            first = (await api.call("first {{y}}"))["y"]
            await api.call("second {{x}} {{y}}{{z}}", "y z", {"output_criteria": "throughput"}, x=(first,))
            await until(lambda: len(upstream.requests) == 3, "all that it needs")

    run(main)


def test_several_outputs_come_one_after_another_each_seeing_what_stands_before_it() -> None:
    async def main() -> None:
        async def letters(request: EngineRequest) -> None:
            await say(request, "ABC"[len(upstream.requests) - 1])

        async with engine(letters) as upstream, parrot_api(upstream) as api:
            await api.begin()
            ids = await api.call("1 {{p}} 2 {{x}} {{q}}{{r}}", "p q r", x="in")
            assert await api.get(ids["r"]) == "C"
            assert [await api.get(ids[name]) for name in "pq"] == ["A", "B"]
            assert [text_of(request) for request in upstream.requests] == ["1 ", "1 A 2 in ", "1 A 2 in B"]

    run(main)


def test_variables_may_be_written_after_they_were_used_and_asked_for() -> None:
    async def main() -> None:
        async with engine(echo) as upstream, parrot_api(upstream) as api:
            await api.begin()
            late = await api.new("late")
            output = (await api.call("say {{x}} {{y}}", x=(late,)))["y"]
            waiting = await api.getting(output)
            await until(lambda: any(v.watchers for v in only(api).graph.variables.values()), "the wait")
            assert upstream.requests == []
            await api.set(late, "it")
            assert (await waiting.answer()).json == {"content": "[say it ]"}
            assert await api.get(late) == "it"

    run(main)


def only(api: Api) -> Session:
    """The one session that is open."""
    [session] = api.door._sessions.open.values()
    return session


def test_models_without_a_chat_template_are_found_out_and_remembered() -> None:
    async def main() -> None:
        async def base_model(request: EngineRequest) -> None:
            if request.target == "/v1/chat/completions":
                words = "default chat template is no longer allowed, so you must provide a chat template"
                await request.answer(json.dumps({"error": {"message": words}}).encode(), status="400 Bad Request")
            else:
                await echo(request)

        async with engine(base_model) as upstream, parrot_api(upstream) as api:
            await api.begin()
            assert await api.get((await api.call("one {{y}}"))["y"]) == "[one ]"
            assert await api.get((await api.call("two {{y}}"))["y"]) == "[two ]"
            chat, completion = "/v1/chat/completions", "/v1/completions"
            assert [request.target for request in upstream.requests] == [chat, completion, completion]

        async def bad_template(request: EngineRequest) -> None:
            body = b'{"error": {"message": "An error occurred while applying chat template"}}'
            await request.answer(body, status="400 Bad Request")

        async with engine(bad_template) as upstream, parrot_api(upstream) as api:
            await api.begin()
            output = (await api.call("one {{y}}"))["y"]
            assert "applying" in await api.refused("GET", f"/semantic_var/{output}", api.get_body(), 400)
            assert len(upstream.requests) == 1, "a template that goes wrong is one"
        async with engine(base_model) as upstream, parrot_api(upstream, parrot={"completion_models": ["m"]}) as api:
            await api.begin()
            assert await api.get((await api.call("one {{y}}"))["y"]) == "[one ]"
            assert [request.json["prompt"] for request in upstream.requests] == ["one "]

    run(main)


def test_a_call_names_its_models_or_gets_the_default() -> None:
    async def main() -> None:
        async with (
            engine(echo, models=("a", "b")) as upstream,
            parrot_api(upstream, parrot={"default_model": "b"}) as api,
        ):
            await api.begin()
            for models in ([], ["gone", "a"], ["b"]):
                await api.get((await api.call("x {{y}}", more={"models": models}))["y"])
            assert [request.json["model"] for request in upstream.requests] == ["b", "a", "b"]
            body = api.call_body("x {{y}}") | {"models": ["gone"]}
            words = await api.refused("POST", "/semantic_call", body, 404, "unknown_model")
            assert words == "models: none of them is served; there are a, b"

    run(main)


def test_a_session_is_one_workflow_in_the_log(tmp_path: Path) -> None:
    async def main() -> None:
        log = tmp_path / "calls.jsonl"
        async with engine(echo) as upstream, parrot_api(upstream, log=str(log)) as api:
            await api.begin()
            ids = await api.call("a {{p}} {{q}}", "p q", {"func_name": "f"})
            await api.get(ids["q"])
            await api.refused("GET", f"/session/{api.session_id}", {}, 405, "method")
            await api.refused("DELETE", f"/session/{api.session_id}", {"session_auth": "?"}, 404, "unknown_session")
            lines: list[Any] = []

            def logged() -> bool:
                lines[:] = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
                return [line["event"] for line in lines].count("call") == 7

            await until(logged, "the calls in the log")
            placed = [line["workflow"] for line in lines if line["event"] == "call" and line["workflow"]["node"]]
            assert [(place["id"], place["node"], place["source"]) for place in placed] == [
                (api.workflow_id, "f.p", "parrot"),
                (api.workflow_id, "f.q", "parrot"),
            ]
            assert str(api.session_id) not in log.read_text(), "whoever knows it may use the session"

    run(main)


def test_the_scheduler_is_told_of_the_graph_before_its_calls_come(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, tuple[NodeSpec, ...], bool]] = []
    ended: list[str] = []

    def announce(_: Gateway, session: Session, nodes: tuple[NodeSpec, ...], *, first: bool) -> None:
        told.append((session.workflow_id, nodes, first))

    monkeypatch.setattr(work, "announce", announce)
    monkeypatch.setattr(work, "announce_end", lambda _, session: ended.append(session.workflow_id))

    async def main() -> None:
        async def look(request: EngineRequest) -> None:
            assert len(told) == 1 + text_of(request).startswith("more")
            await echo(request)

        async with engine(look) as upstream, parrot_api(upstream) as api:
            await api.begin()
            first = (await api.call("a {{y}}", more={"func_name": "f"}))["y"]
            ids = await api.call("b {{x}}{{p}}-{{q}}", "p q", {"models": ["m"]}, x=(first,))
            await api.get(ids["q"], "throughput")
            await api.get((await api.call("more {{y}}"))["y"])
            [(workflow, nodes, began), (_, [more], began_again)] = told
            assert (workflow, began, began_again) == (api.workflow_id, True, False)
            assert [(node.id, node.data_from, node.criterion) for node in nodes] == [
                ("f.y", (), None),
                ("call.p", ("f.y",), None),
                ("call.q", ("call.p",), "throughput"),
            ]
            assert (more.id, more.criterion, more.max_output_tokens) == ("call.y", "latency", 512)
            await api.end()
            assert ended == [api.workflow_id]

    run(main)
