"""`joulegate twin` as a user starts it, on a port of its own choice."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tests.vllm.children import ROOT, Child, joulegate_command, wait_until
from tests.vllm.wire import Answer, ask

CALIBRATION = "h200-llama-3.1-8b"
MODEL = "tiny"
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
START_SECONDS = 60.0
_READY = re.compile(r"joulegate twin: (http://\S+) simulates")


class Twin(Child):
    """A running twin; `url` is known once it is ready."""

    def __init__(
        self, log: Path, *options: str, calibration: str = CALIBRATION, command: list[str] | None = None
    ) -> None:
        if command is None:
            command = [*joulegate_command(), "twin", "--calibration", calibration, "--port", "0"]
            command += ["--model-name", MODEL]
        super().__init__([*command, *options], log, {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"})
        self.url = ""

    def wait_ready_to_serve(self) -> Twin:
        """Wait for its line that says where it listens."""

        def said() -> bool:
            assert self.running, f"exit {self.process.returncode}\n{self.tail()}"
            found = _READY.search(self.text())
            if found:
                self.url = found[1]
            return bool(found)

        wait_until(said, START_SECONDS, "the twin says where it listens")
        return self


def own_calibration(folder: Path, **engine: int) -> str:
    """The path of a copy of the shipped calibration with these values in [engine]."""
    text = (ROOT / "backends" / "twin" / "calibrations" / f"{CALIBRATION}.toml").read_text()
    for name, value in engine.items():
        text = re.sub(rf"^{name} = .*\n", "", text, flags=re.MULTILINE)
        text = text.replace("[engine]\n", f"[engine]\n{name} = {value}\n", 1)
    path = folder / "own.toml"
    path.write_text(text)
    return str(path)


def completion(prompt: Any = "tell me", **more: Any) -> dict[str, Any]:
    """A completion request of 30 tokens."""
    return {"model": MODEL, "prompt": prompt, "max_tokens": 30, "ignore_eos": True, **more}


def good(url: str, path: str, body: Any) -> Any:
    """The JSON of an answer that is 200."""
    answer = ask(url, "POST", path, body)
    assert answer.status == 200, answer.body
    return answer.json()


def refused(answer: Answer, status: int = 400) -> str:
    """The message of a refusal in OpenAI's shape."""
    assert answer.status == status, answer.body
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["code"] == status
    message: str = error["message"]
    return message


def sample(url: str, name: str, **labels: str) -> float:
    """The first sample of /metrics that has these labels among its own."""
    for line in ask(url, "GET", "/metrics").body.decode().splitlines():
        named = line.startswith((f"{name}{{", f"{name} "))
        if named and all(f'{key}="{value}"' in line for key, value in labels.items()):
            return float(line.rsplit(" ", 1)[1])
    raise KeyError(name)
