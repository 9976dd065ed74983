"""A workload's calls as prompts for other benches."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.cli import main


def exported(folder: Path, *options: str) -> list[dict[str, object]]:
    path = folder / "calls.jsonl"
    assert main(["export", "--out", str(path), *options]) == 0
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lengths_and_shared_beginnings_are_those_of_the_workload(tmp_path: Path) -> None:
    found = exported(tmp_path, "--workload", "copilot", "--preset", "cpu", "--calls", "12", "--seed", "4")
    assert len(found) == 12 and {line["node"] for line in found} == {"answer"}
    prompts = [str(line["prompt"]) for line in found]
    assert len(set(prompts)) == 12
    assert len({tuple(prompt.split()[:100]) for prompt in prompts}) == 1  # the system prompt, of 180 tokens
    assert all(28 <= int(str(line["output_tokens"])) <= 32 for line in found)
    assert all(line["output_tokens"] == line["output_tokens_count"] for line in found)
    assert found == exported(tmp_path, "--workload", "copilot", "--preset", "cpu", "--calls", "12", "--seed", "4")


def test_a_quoted_answer_is_the_same_text_wherever_it_is_quoted(tmp_path: Path) -> None:
    found = exported(tmp_path, "--workload", "coding", "--preset", "cpu", "--calls", "5")
    design, *programmers = (str(line["prompt"]).split("\n\n") for line in found[:3])
    assert len(programmers) == 2 and len(design) < len(programmers[0])
    common = set(programmers[0]) & set(programmers[1])
    assert common - set(design)  # the architect's design, which was no text of a caller's


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--calls", "0", "--out", "x.jsonl"], "--calls must be from 1"),
        (["--out", "x.json"], "by the ending .jsonl"),
        (["--workload", "trace", "--out", "x.jsonl"], "trace"),
        (["--workload", "codng", "--out", "x.jsonl"], "did you mean 'coding'?"),
        (["--out", "/nowhere/x.jsonl"], "No such file"),
    ],
)
def test_what_cannot_be_exported_is_said(options: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", *options]) == 2
    assert words in capsys.readouterr().err
