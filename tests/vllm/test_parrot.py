"""Parrot's API over a real vLLM: the example program, several outputs of one template, an error's words."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from tests.vllm.children import MAX_MODEL_LEN, ROOT
from tests.vllm.wire import Answer, ask

GREEDY = {"temperature": 0, "max_gen_length": 6, "ignore_tokenizer_eos": True}


def good(answer: Answer) -> Any:
    """The JSON of an answer that is 200."""
    assert answer.status == 200, answer.body
    return answer.json()


class Session:
    """One session, as the front end makes it: JSON bodies on every method."""

    def __init__(self, url: str) -> None:
        self.url = url + "/parrot/v1"
        self.id = good(ask(url, "POST", "/parrot/v1/session", {"api_key": "1"}))["session_id"]

    def call(self, template: str, outputs: str, **values: str) -> dict[str, str]:
        """Variables' ids by parameter."""
        parameters: list[dict[str, Any]] = [
            {"name": name, "is_output": False, "value": value} for name, value in values.items()
        ]
        parameters += [{"name": name, "is_output": True, "sampling_config": GREEDY} for name in outputs.split()]
        body = {"session_id": self.id, "template": template, "parameters": parameters}
        info = good(ask(self.url, "POST", "/parrot/v1/semantic_call", body))["param_info"]
        return {entry["parameter_name"]: entry["var_id"] for entry in info}

    def get(self, var_id: str) -> Answer:
        """Wait for a variable."""
        body = {"session_id": self.id, "criteria": "latency"}
        return ask(self.url, "GET", f"/parrot/v1/semantic_var/{var_id}", body)

    def end(self) -> None:
        assert good(ask(self.url, "DELETE", f"/parrot/v1/session/{self.id}", {})) == {}


def test_the_example_runs_with_one_command(gateway: str) -> None:
    command = [sys.executable, str(ROOT / "examples" / "parrot_http.py"), gateway]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("part 1: ") and "\nthe whole: " in done.stdout


def test_outputs_follow_one_another_and_equal_texts_have_equal_answers(gateway: str) -> None:
    session = Session(gateway)
    first = session.call("Once {{x}}: {{p}} and then {{q}}", "p q", x="upon a time")
    again = session.call("Once {{x}}: {{p}} and never {{q}}", "p q", x="upon a time")
    texts = {name: good(session.get(var_id))["content"] for name, var_id in first.items()}
    assert texts["p"] and texts["q"]
    assert good(session.get(again["p"]))["content"] == texts["p"], "the same text has the same answer"
    session.end()


def test_what_does_not_fit_fails_with_vllms_words(gateway: str) -> None:
    session = Session(gateway)
    ids = session.call("{{x}} {{y}} {{z}}", "y z", x="word " * (2 * MAX_MODEL_LEN))
    for name in ("z", "y"):
        answer = session.get(ids[name])
        assert answer.status == 400 and set(answer.json()) == {"error"}
        assert str(MAX_MODEL_LEN) in answer.json()["error"], answer.body
    session.end()
