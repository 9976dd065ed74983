"""The command line of joulegate-bench, and what it says when it cannot run."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import programs
from bench.cli import COMMANDS, build_parser, main


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert "usage: joulegate-bench " + command in capsys.readouterr().out


def test_no_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


def test_defaults() -> None:
    args = build_parser("overhead").parse_args(["overhead"])
    assert (args.repeats, args.peers, args.ours, args.install) == (5, ["nginx", "vllm-router"], None, False)
    args = build_parser("soak").parse_args(["soak"])
    assert (args.streams, args.concurrency) == (100_000, 256)


def test_a_missing_compiler_names_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["soak", "--work-dir", str(tmp_path / "work")]) == 2
    assert "apt-get install gcc libc6-dev" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["soak", "--streams", "0"], "must be above 0"),
        (["overhead", "--repeats", "0"], "--repeats must be at least 1"),
        (["overhead", "--seconds", "0.1"], "--seconds must lie in 1 to 60"),
    ],
)
def test_nonsense_numbers_are_refused(options: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(options) == 2
    assert told in capsys.readouterr().err


def test_work_dir_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert programs.default_work_dir() == tmp_path / "joulegate" / "bench"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert programs.default_work_dir() == Path.home() / ".cache" / "joulegate" / "bench"
