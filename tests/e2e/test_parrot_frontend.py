"""What Parrot's own front end sends for its example programs, sent again: every field, in its order, over the twin.

The shapes of the programs and the fields are those of its source; the prompts are ours.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest

from proxy.keys import hash_key
from tests.e2e.harness import gateway, run, until
from tests.e2e.twin_process import CHAT, MODEL, Twin, good, sample
from tests.vllm.children import ROOT
from tests.vllm.wire import Answer, ask

OUTPUT, INPUT, OBJECT = "output", "input", "python object"


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    child = Twin(tmp_path_factory.mktemp("twin") / "log", "--speed", "100", "--max-model-len", "8192")
    try:
        yield child.wait_ready_to_serve().url
    finally:
        child.end()
    assert "Traceback" not in child.text()


def sampling(max_gen_length: int = 20) -> dict[str, Any]:
    """Its `SamplingConfig`, all fields; temperature 0, so that the twin says the same each time."""
    return {
        "temperature": 0.0,
        "top_p": 1.0,
        "max_gen_length": max_gen_length,
        "ignore_tokenizer_eos": True,
        "stop_token_ids": [],
        "stop_str": None,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "n": 1,
        "best_of": 1,
        "logit_bias": None,
        "repetition_penalty": 0.0,
        "length_penalty": 0.0,
    }


@dataclass
class Variable:
    """A semantic variable of the front end: with an id once it is registered."""

    name: str
    content: str | None = None
    id: str | None = None


@dataclass
class Function:
    """A semantic function: its template, and its parameters in the order of its signature."""

    name: str
    template: str
    parameters: dict[str, str]


class FrontEnd:
    """Its virtual machine, as far as requests go."""

    def __init__(self, core_http_addr: str) -> None:
        self.address = core_http_addr
        self.session: dict[str, Any] = {}
        self.auth: dict[str, Any] = {}
        self.sent: list[tuple[str, str]] = []

    def ask(self, method: str, path: str, body: dict[str, Any]) -> Answer:
        """One request on a connection of its own, as `requests` makes them."""
        self.sent.append((method, path.split("/")[1]))
        prefix = self.address.partition("://")[2].partition("/")[1:]
        return ask(self.address, method, f"{''.join(prefix)}/v1{path}", body)

    def good(self, method: str, path: str, body: dict[str, Any]) -> Any:
        answer = self.ask(method, path, body)
        assert answer.status == 200, answer.body
        return answer.json()

    def __enter__(self) -> FrontEnd:
        answer = self.good("POST", "/session", {"api_key": "1"})
        assert type(answer["session_id"]) is int and type(answer["session_auth"]) is str
        self.session = {"session_id": answer["session_id"]}
        self.auth = {"session_auth": answer["session_auth"]}
        return self

    def __exit__(self, *_: object) -> None:
        assert self.good("DELETE", f"/session/{self.session['session_id']}", self.auth) == {}

    def variable(self, name: str, content: str) -> Variable:
        """A variable that the program makes: registered, then set."""
        answer = self.good("POST", "/semantic_var", {**self.session, **self.auth, "var_name": name})
        assert type(answer["var_id"]) is str
        body = {**self.session, **self.auth, "content": content}
        assert self.good("POST", f"/semantic_var/{answer['var_id']}", body) == {}
        return Variable(name, content, answer["var_id"])

    def call(self, function: Function, **arguments: Any) -> tuple[Variable, ...]:
        """Submit a call; its outputs' variables."""
        bindings: dict[str, Variable] = {}
        template, parameters = function.template, []
        for name, kind in function.parameters.items():
            entry: dict[str, Any] = {"name": name, "is_output": kind == OUTPUT}
            if kind == OBJECT:
                template = template.replace("{{" + name + "}}", str(arguments[name]))
                continue
            if kind == OUTPUT:
                entry["sampling_config"] = sampling()
                bindings[name] = Variable(name)
            else:
                given = arguments[name]
                bindings[name] = given if isinstance(given, Variable) else Variable(name, str(given))
            if bindings[name].id is not None:
                entry["var_id"] = bindings[name].id
            elif kind == INPUT:
                entry["value"] = bindings[name].content
            parameters.append(entry)
        body = {
            **self.session,
            "models": [],
            "model_type": "token_id",
            "remove_pure_fill": True,
            "cache_prefix": True,
            "output_criteria": None,
            "fuse_fill": False,
            "template": template,
            "parameters": parameters,
            "func_name": function.name,
        }
        answer = self.good("POST", "/semantic_call", body)
        assert type(answer["request_id"]) is int and isinstance(answer["param_info"], list)
        for mapping in answer["param_info"]:
            bindings[mapping["parameter_name"]].id = mapping["var_id"]
        assert all(variable.id for variable in bindings.values())
        return tuple(bindings[name] for name, kind in function.parameters.items() if kind == OUTPUT)

    def get(self, variable: Variable, criteria: str = "latency") -> str:
        """Its content: at once if the program knows it."""
        if variable.content is None:
            body = {**self.session, **self.auth, "criteria": criteria}
            variable.content = self.good("GET", f"/semantic_var/{variable.id}", body)["content"]
        return variable.content


@dataclass
class Oracle:
    """What the twin itself says to a text, asked without the gateway."""

    url: str
    texts: list[str] = field(default_factory=list)

    def __call__(self, text: str) -> str:
        self.texts.append(text)
        messages = [{"role": "user", "content": text}]
        body = {"model": MODEL, "messages": messages, "max_tokens": 20, "temperature": 0.0, "ignore_eos": True}
        return str(good(self.url, CHAT, body)["choices"][0]["message"]["content"])


Program = Callable[[FrontEnd, Oracle], None]


def hello(front: FrontEnd, says: Oracle) -> None:
    repeat = Function("llm_print", "Repeat: {{string}} Now you: {{output}}", {"string": INPUT, "output": OUTPUT})
    [output] = front.call(repeat, string="Hello World!")
    assert front.get(output) == says("Repeat: Hello World! Now you: ")
    assert front.sent == [("POST", "session"), ("POST", "semantic_call"), ("GET", "semantic_var")]


def joke(front: FrontEnd, says: Oracle) -> None:
    kinds = {"topic": INPUT, "topic2": INPUT, "joke": OUTPUT, "explanation": OUTPUT}
    tell = Function("tell_me_a_joke", "{{topic}} meets {{topic2}}: {{joke}}. Why? {{explanation}}", kinds)
    first, second = front.call(tell, topic="a cat", topic2="a dog")
    said = says("a cat meets a dog: ")
    assert front.get(first) == said
    assert front.get(second) == says(f"a cat meets a dog: {said}. Why? ")


def letter(front: FrontEnd, says: Oracle) -> None:
    names = ("stu_name", "prof_name", "major", "grades", "specialty")
    template = "From {{prof_name}} on {{stu_name}}, {{major}}, {{grades}}, {{specialty}}: {{letter}}"
    function = Function("write_recommendation_letter", template, {**dict.fromkeys(names, INPUT), "letter": OUTPUT})
    arguments = dict(zip(names, ("Jo", "Dr. A", "physics", "3.8", "chess"), strict=True))
    [output] = front.call(function, **arguments)
    assert front.get(output) == says("From Dr. A on Jo, physics, 3.8, chess: ")


def chain(front: FrontEnd, says: Oracle) -> None:
    kinds = {"doc": INPUT, "summary": OUTPUT, "word_limit": OBJECT}
    first = Function("chain_summarize_first", "Read {{doc}}\nin {{word_limit}} words:\n{{summary}}", kinds)
    kinds = {"new_text": INPUT, "previous_sum": INPUT, "next_sum": OUTPUT, "word_limit": OBJECT}
    template = "Add {{new_text}}\nto {{previous_sum}}\nin {{word_limit}} words:\n{{next_sum}}"
    refine = Function("chain_summarize_refine", template, kinds)
    chunks = [f"chunk {number} " * 30 for number in range(5)]
    [summary] = front.call(first, doc=chunks[0], word_limit=100)
    for chunk in chunks[1:]:
        [summary] = front.call(refine, new_text=chunk, previous_sum=summary, word_limit=100)
    said = says(f"Read {chunks[0]}\nin 100 words:\n")
    for chunk in chunks[1:]:
        said = says(f"Add {chunk}\nto {said}\nin 100 words:\n")
    assert front.get(summary) == said
    assert front.sent.count(("GET", "semantic_var")) == 1


def map_reduce(front: FrontEnd, says: Oracle) -> None:
    kinds = {"doc_pieces": INPUT, "summary": OUTPUT}
    summarize = Function("summarize_map", "Sum up:\n{{doc_pieces}}\n{{summary}}", kinds)
    kinds = {"doc_summaries": INPUT, "final_summary": OUTPUT}
    reduce = Function("summarize_reduce", "Join:\n{{doc_summaries}}\n{{final_summary}}", kinds)
    outputs = [front.call(summarize, doc_pieces=f"piece {number}")[0] for number in range(6)]
    with ThreadPoolExecutor(6) as pool:  # `aget` of all of them at once
        summaries = list(pool.map(front.get, outputs))
    assert summaries == [says(f"Sum up:\npiece {number}\n") for number in range(6)]
    joined = "\n".join(summaries)
    [final] = front.call(reduce, doc_summaries=joined)
    assert front.get(final) == says(f"Join:\n{joined}\n")


def play(front: FrontEnd, says: Oracle) -> None:
    synopsis_of = Function(
        "write_synopsis", "{{title}} in {{era}}: {{synopsis}}", {"title": INPUT, "era": INPUT, "synopsis": OUTPUT}
    )
    review_of = Function("write_review", "Judge {{synopsis}}: {{review}}", {"synopsis": INPUT, "review": OUTPUT})
    kinds = {**dict.fromkeys(("time", "location", "synopsis", "review"), INPUT), "post": OUTPUT}
    post_of = Function("write_post", "{{time}}, {{location}}: {{synopsis}} {{review}} {{post}}", kinds)
    [synopsis] = front.call(synopsis_of, title="Sunset", era="1900")
    [review] = front.call(review_of, synopsis=synopsis)
    front.get(review)
    [post] = front.call(post_of, time="8 pm", location="park", synopsis=synopsis, review=review)
    story = says("Sunset in 1900: ")
    assert front.get(synopsis, "throughput") == story
    assert front.get(review) == says(f"Judge {story}: ")
    assert front.get(post) == says(f"8 pm, park: {story} {front.get(review)} ")


def snake_game(front: FrontEnd, says: Oracle) -> None:
    files = ("main", "game", "snake")
    apis = {f"{name}_api": OUTPUT for name in files}
    template = "Design.\n" + "".join(f"{name}.py: {{{{{name}_api}}}}\n" for name in files)
    architect = Function("architect", template, apis)
    kinds = {"architect_response": INPUT, "file_name": OBJECT, "code": OUTPUT}
    programmer = Function("programmer", "APIs: {{architect_response}} Write {{file_name}}: {{code}}", kinds)
    codes = {f"{name}_code": INPUT for name in files}
    shown = "Rules of the house. " * 40 + " ".join(f"{name}.py: {{{{{name}_code}}}}" for name in files)
    reviewer = Function("reviewer", shown + " Comments: {{review}}", {**codes, "review": OUTPUT})
    kinds = {**codes, "file_name": OBJECT, "review": INPUT, "revised_code": OUTPUT}
    reviser = Function("reviser", shown + " {{review}} Revise {{file_name}}: {{revised_code}}", kinds)
    designs = dict(zip(files, front.call(architect), strict=True))
    written = {
        f"{name}_code": front.call(programmer, architect_response=designs[name], file_name=f"{name}.py")[0]
        for name in files
    }
    [review] = front.call(reviewer, **written)
    revised = [front.call(reviser, **written, file_name=f"{name}.py", review=review)[0] for name in files]
    hits = sample(says.url, "vllm:prefix_cache_hits_total")
    contents = [front.get(variable) for variable in revised]
    assert sample(says.url, "vllm:prefix_cache_hits_total") > hits, "equal leading fills are cached"
    text = "Design.\n"
    for name in files:
        text += f"{name}.py: "
        designs[name].content = says(text)
        text += f"{designs[name].content}\n"
    code = {name: says(f"APIs: {designs[name].content} Write {name}.py: ") for name in files}
    leading = "Rules of the house. " * 40 + " ".join(f"{name}.py: {code[name]}" for name in files)
    judged = says(f"{leading} Comments: ")
    assert contents == [says(f"{leading} {judged} Revise {name}.py: ") for name in files]


def variables(front: FrontEnd, says: Oracle) -> None:
    function = Function("qa", "Q: {{question}} A: {{answer}}", {"question": INPUT, "answer": OUTPUT})
    question = front.variable("var_0", "why?")
    [answer] = front.call(function, question=question)
    assert front.get(answer) == says("Q: why? A: ")
    assert front.sent[1:3] == [("POST", "semantic_var")] * 2


def native(front: FrontEnd, says: Oracle) -> None:
    tell = Function("tell_me_a_joke", "A joke on {{topic}}: {{joke}}", {"topic": INPUT, "joke": OUTPUT})
    [told] = front.call(tell, topic="hens")
    body = {
        **front.session,
        "timeout": 0.1,
        "output_criteria": None,
        "parameters": [
            {"name": "joke", "is_output": False, "var_id": told.id},
            {"name": "formatted_joke", "is_output": True},
        ],
        "func_name": "format_joke",
        "func_code": "4wAAAAAAAAA=",
    }
    answer = front.ask("POST", "/py_native_call", body)
    assert answer.status == 403 and "byte code" in answer.json()["error"]
    assert front.get(told) == says("A joke on hens: "), "the session goes on"


@pytest.mark.parametrize(
    "program", [hello, joke, letter, chain, map_reduce, play, snake_game, variables, native], ids=lambda p: p.__name__
)
@pytest.mark.parametrize("base", ["", "/parrot"], ids=["root", "parrot"])
def test_its_example_programs(twin: str, program: Program, base: str) -> None:
    async def main() -> None:
        async with gateway(twin) as running:
            [seen] = running.app.gateway.engines.values()
            await until(lambda: seen.models is not None, "the twin's models")

            def play_it() -> None:
                with FrontEnd(f"http://127.0.0.1:{running.port}{base}") as front:
                    program(front, Oracle(twin))

            await asyncio.to_thread(play_it)
            door = running.app.own.parrot
            assert (door.sessions_open, door.variables, door.held_bytes) == (0, 0, 0)

    run(main)


@pytest.mark.parametrize("base", ["", "/parrot/"], ids=["root", "parrot"])
def test_the_example_runs_with_one_command(twin: str, base: str) -> None:
    async def main() -> None:
        keys = [{"name": "a", "sha256": hash_key("key-a")}]
        async with gateway(twin, keys=keys) as running:
            url = f"http://127.0.0.1:{running.port}{base}"
            for key, status in (("key-a", 0), ("nobodys", 1)):
                command = [sys.executable, str(ROOT / "examples" / "parrot_http.py"), url, "--key", key]
                pipe = asyncio.subprocess.PIPE
                child = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)
                said, wrong = await child.communicate()
                assert (child.returncode, b"Traceback" in wrong) == (status, False), wrong
                if status:
                    assert b"401" in wrong and b"no valid API key" in wrong
                else:
                    assert said.count(b"\npart ") == 3 and b"\nthe whole: " in said and said.startswith(b"part 1: ")
            assert running.app.own.parrot.sessions_open == 0

    run(main)


def test_the_replay_sends_what_the_front_end_sends(twin: str) -> None:
    """The order of the fields, in a body as it is on the wire."""
    sent: list[dict[str, Any]] = []

    class Recorder(FrontEnd):
        def good(self, method: str, path: str, body: dict[str, Any]) -> Any:
            sent.append(json.loads(json.dumps(body)))
            info = [{"parameter_name": p["name"], "var_id": "1"} for p in body.get("parameters", ())]
            return {
                "session_id": 1,
                "session_auth": "s",
                "var_id": "1",
                "request_id": 1,
                "param_info": info,
                "content": "",
            }

    recorder = Recorder(twin)
    recorder.session, recorder.auth = {"session_id": 1}, {"session_auth": "s"}
    function = Function("f", "{{a}} {{b}} {{c}}", {"a": INPUT, "b": OBJECT, "c": OUTPUT})
    [output] = recorder.call(function, a="x", b=7)
    recorder.get(output)
    call, get = sent
    assert list(call) == [
        *("session_id", "models", "model_type", "remove_pure_fill", "cache_prefix", "output_criteria", "fuse_fill"),
        *("template", "parameters", "func_name"),
    ]
    assert call["template"] == "{{a}} 7 {{c}}"
    assert [list(entry) for entry in call["parameters"]] == [
        ["name", "is_output", "value"],
        ["name", "is_output", "sampling_config"],
    ]
    assert get == {"session_id": 1, "session_auth": "s", "criteria": "latency"}
