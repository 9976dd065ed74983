"""`joulegate up --model DIR` starts a real vLLM with the flags that the scheduler needs, and ends it when it ends."""

from __future__ import annotations

import json
import shlex
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.vllm.children import (
    CPU_FLAGS,
    MAX_MODEL_LEN,
    SERVED_NAME,
    VLLM_ENVIRONMENT,
    VLLM_START_SECONDS,
    Gateway,
    model_directory,
    vllm_python,
    wait_until,
)
from tests.vllm.wire import ask, chat_body

SHIM = Path(__file__).with_name("vllm_serve_shim.py")
NEEDED = {
    "--scheduling-policy": "priority",
    "--enable-prefix-caching": None,
    "--enable-prompt-tokens-details": None,
    "--enable-request-id-headers": None,
}
"""The flags that the gateway adds by itself."""


def start(folder: Path, *vllm_arguments: str) -> Gateway:
    """The gateway with a vLLM of its own, whose command is the stand-in for `vllm`."""
    command = shlex.join([str(vllm_python()), str(SHIM)])
    return Gateway(
        folder / "joulegate.log",
        ["--model", str(model_directory()), "--vllm-command", command, "--", *vllm_arguments],
        {**VLLM_ENVIRONMENT, "SHIM_RECORD": str(folder / "record.json")},
    )


def read_record(folder: Path) -> dict[str, Any]:
    """What the stand-in was given, and its process id."""
    record: dict[str, Any] = json.loads((folder / "record.json").read_text())
    return record


def family(pid: int) -> set[int]:
    """A process and all its descendants that live now."""
    parents: dict[int, int] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if fields[0] != "Z":
            parents[int(status.parent.name)] = int(fields[1])
    found = {pid} & parents.keys()
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


@dataclass(frozen=True, slots=True)
class Supervised:
    """A gateway that started its own vLLM."""

    gateway: Gateway
    folder: Path


@pytest.fixture(scope="module")
def supervised(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervised]:
    """Started once for this module; the last test ends it."""
    folder = tmp_path_factory.mktemp("supervised")
    gateway = start(folder, *CPU_FLAGS, "--served-model-name", SERVED_NAME, "--max-num-seqs", "4")
    try:
        gateway.wait_ready_to_serve(VLLM_START_SECONDS)
        yield Supervised(gateway, folder)
    finally:
        gateway.end()


class TestSupervised:
    def test_1_needed_flags_and_the_users_own_are_passed(self, supervised: Supervised) -> None:
        arguments = read_record(supervised.folder)["arguments"]
        assert arguments[:2] == ["serve", str(model_directory())]
        words = [part for argument in arguments for part in (argument.split("=", 1) if "=" in argument else [argument])]
        for flag, value in NEEDED.items():
            assert words.count(flag) == 1, words
            assert value is None or words[words.index(flag) + 1] == value
        assert " ".join(CPU_FLAGS) in " ".join(arguments)

    def test_2_answers_flow(self, supervised: Supervised) -> None:
        url = supervised.gateway.url
        [model] = ask(url, "GET", "/v1/models").json()["data"]
        assert (model["id"], model["max_model_len"]) == (SERVED_NAME, MAX_MODEL_LEN)
        answer = ask(url, "POST", "/v1/chat/completions", chat_body(), {"x-request-id": "supervised-1"})
        assert answer.json()["id"] == "chatcmpl-supervised-1"
        assert answer.json()["choices"][0]["message"]["content"]
        assert answer.json()["usage"]["prompt_tokens_details"] is not None
        streamed = ask(url, "POST", "/v1/chat/completions", chat_body(stream=True))
        assert streamed.body.endswith(b"data: [DONE]\n\n")

    def test_3_vllm_ends_with_the_gateway(self, supervised: Supervised) -> None:
        """SIGTERM to the gateway alone: vLLM and its engine process must not outlive it."""
        relatives = family(read_record(supervised.folder)["pid"])
        assert len(relatives) >= 2, "vLLM's API server and its engine process"
        supervised.gateway.process.send_signal(signal.SIGTERM)
        assert supervised.gateway.wait_exit(60) == 0, supervised.gateway.tail()
        wait_until(lambda: not any(family(pid) for pid in relatives), 10, "no process of vLLM is left")
        assert "Traceback (most recent call last)" not in supervised.gateway.text()


def test_log_is_shown_when_vllm_does_not_start(tmp_path: Path) -> None:
    gateway = start(tmp_path, "--no-such-flag-of-vllm")
    try:
        assert gateway.wait_exit(VLLM_START_SECONDS) not in (0, None)
        assert "unrecognized arguments: --no-such-flag-of-vllm" in gateway.text(), gateway.tail()
    finally:
        gateway.end()
