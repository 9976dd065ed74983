"""The supervised vLLM: real processes and signals; a small server stands for vLLM."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from backends.vllm.arguments import NEEDED, BadArguments, serve_arguments
from backends.vllm.process import LOG_BYTES, LOG_LINES_SHOWN, RestartRule, VllmFailed, VllmProcess, free_port
from tests.e2e.harness import run, until

FAKE = Path(__file__).with_name("fake_vllm.py")
ROOT = FAKE.parents[2]
AT_ONCE = RestartRule(restarts=2, first_wait_seconds=0.01, longest_wait_seconds=0.01)


class Stage:
    """A folder in which the stand-in is told what to do and writes down what it was given."""

    def __init__(self, folder: Path, mode: str = "") -> None:
        self.folder = folder
        self.said: list[str] = []
        (folder / "mode").write_text(mode)

    def process(self, *extra_args: str, **options: Any) -> VllmProcess:
        """A vLLM process that starts the stand-in."""
        options.setdefault("stop_seconds", 0.1)
        return VllmProcess(
            "some/model",
            port=options.pop("port", None) or free_port(),
            command=[sys.executable, str(FAKE)],
            extra_args=extra_args,
            environ={**os.environ, "FAKE_VLLM": str(self.folder)},
            say=self.said.append,
            **options,
        )

    @property
    def starts(self) -> list[dict[str, Any]]:
        """What each start recorded."""
        record = self.folder / "record.jsonl"
        return [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []

    def alive(self) -> list[int]:
        """Those of all started processes that still run."""
        return [pid for start in self.starts for pid in (start["pid"], start["child"]) if is_alive(pid)]


def is_alive(pid: int) -> bool:
    """Whether it runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def keepers(folder: Path) -> list[str]:
    """The keepers of this test's processes that still run."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command, environment = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
        except OSError:
            continue
        if b"keeper.py" in command and f"FAKE_VLLM={folder}".encode() in environment.split(b"\0"):
            found.append(entry.name)
    return found


def test_it_is_started_with_what_the_scheduler_needs_and_ended_with_all_its_processes(tmp_path: Path) -> None:
    async def main() -> None:
        stage = Stage(tmp_path)
        process = stage.process("--max-num-seqs", "4", log_path=tmp_path / "vllm.log")
        await process.start()
        await process.ready()
        (start,) = stage.starts
        assert start["arguments"] == [
            *("serve", "some/model", "--host", "127.0.0.1", "--port", str(process.port)),
            *("--scheduling-policy", "priority", "--enable-prefix-caching", "--enable-prompt-tokens-details"),
            *("--enable-request-id-headers", "--enable-server-load-tracking", "--max-num-seqs", "4"),
        ]
        assert start["stdin"] == os.devnull
        assert start["pid"] == process.pid
        assert "serve some/model" in str(process)
        assert len(stage.alive()) == 2
        assert len(keepers(tmp_path)) == 1
        await process.stop()
        assert stage.alive() == []
        assert (tmp_path / "vllm.log").read_text() == "serving\n"
        assert stage.said == []
        await until(lambda: keepers(tmp_path) == [], "the keeper goes when there is nothing left to keep")
        await process.stop()

    run(main)


def test_ready_waits_for_a_health_that_is_well(tmp_path: Path) -> None:
    async def main() -> None:
        stage = Stage(tmp_path)
        (tmp_path / "loading").touch()
        process = stage.process()
        await process.start()
        ready = asyncio.ensure_future(process.ready())
        await until(lambda: process.log_lines().count("still loading") > 2, "it is asked again")
        assert not ready.done()
        (tmp_path / "loading").unlink()
        await ready
        await process.stop()

    run(main)


def test_a_failing_start_shows_the_log_and_leaves_nothing_behind(tmp_path: Path) -> None:
    async def main() -> None:
        stage = Stage(tmp_path, "fail")
        process = stage.process()
        await process.start()
        with pytest.raises(VllmFailed, match="exited with code 3 before it was ready") as failed:
            await process.ready()
        assert failed.value.exit_code == 3
        expected = [*(f"line {number}" for number in range(60 - LOG_LINES_SHOWN + 1, 60)), "CUDA out of memory"]
        assert sorted(failed.value.log_lines) == sorted(expected), "standard output is flushed after standard error"
        assert "\n  CUDA out of memory" in str(failed.value)
        assert stage.alive() == []
        await process.stop()

    run(main)


def test_a_hanging_start_ends_with_an_error(tmp_path: Path) -> None:
    async def main() -> None:
        stage = Stage(tmp_path)
        (tmp_path / "loading").touch()
        process = stage.process(start_seconds=0.5)
        await process.start()
        with pytest.raises(VllmFailed, match=r"not ready after 0\.5 s .* and was ended"):
            await process.ready()
        assert stage.alive() == []

    run(main)


def test_a_missing_command_names_the_extra() -> None:
    async def main() -> None:
        process = VllmProcess("m", port=free_port(), command=["no-such-vllm"])
        with pytest.raises(VllmFailed, match=r"no-such-vllm is not on PATH.*joulegate\[vllm\].*--vllm-command"):
            await process.start()
        await process.stop()

    run(main)


def test_a_command_that_cannot_be_run_is_said(tmp_path: Path) -> None:
    """A broken script passes the look-up on PATH and fails only when it is executed."""

    async def main() -> None:
        script = tmp_path / "vllm"
        script.write_text("#!/no/such/interpreter\n")
        script.chmod(0o755)
        process = VllmProcess("m", port=free_port(), command=[str(script)])
        await process.start()
        with pytest.raises(VllmFailed, match=r"exited with code 127 .*\n.*\n.*No such file or directory"):
            await process.ready()

    run(main)


def test_a_taken_port_is_not_mistaken_for_vllm(tmp_path: Path) -> None:
    async def main() -> None:
        stage = Stage(tmp_path)
        with socket.create_server(("127.0.0.1", 0)) as other:
            process = stage.process(port=other.getsockname()[1])
            with pytest.raises(VllmFailed, match=r"port \d+ is taken.*--vllm-port"):
                await process.start()
        assert stage.starts == []

    run(main)


def test_it_is_restarted_when_it_dies_and_given_up_when_it_dies_too_often(tmp_path: Path) -> None:
    async def main() -> None:
        stage = Stage(tmp_path)
        process = stage.process(restart=AT_ONCE)
        await process.start()
        await process.ready()
        kept = asyncio.ensure_future(process.keep())
        for deaths in (1, 2):
            first = process.pid
            assert first is not None
            os.kill(first, signal.SIGKILL)  # the child lives on and would hold the GPU
            await until(lambda n=deaths: stage.said.count(f"{process} is ready again") == n, "ready again")  # type: ignore[misc]
            assert process.pid != first
            assert stage.alive() == [process.pid, stage.starts[-1]["child"]]
        assert process.restart_count == 2
        assert "was ended by SIGKILL; restart 1 of 2 in 0.01 s" in stage.said[0]
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(VllmFailed, match=r"SIGKILL; it was restarted 2 times within 3600 s and is given up"):
            await kept
        assert stage.alive() == []
        await process.stop()

    run(main)


def test_a_restart_that_fails_counts(tmp_path: Path) -> None:
    async def main() -> None:
        stage = Stage(tmp_path)
        process = stage.process(restart=AT_ONCE)
        await process.start()
        await process.ready()
        (tmp_path / "mode").write_text("fail")
        kept = asyncio.ensure_future(process.keep())
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(VllmFailed, match="exited with code 3; it was restarted 2 times") as failed:
            await kept
        assert "CUDA out of memory" in failed.value.log_lines
        assert len(stage.starts) == 3

    run(main)


def test_stopping_ends_the_wait_for_a_restart(tmp_path: Path) -> None:
    async def main() -> None:
        stage = Stage(tmp_path)
        process = stage.process(restart=RestartRule(first_wait_seconds=3600.0, longest_wait_seconds=3600.0))
        await process.start()
        await process.ready()
        kept = asyncio.ensure_future(process.keep())
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        await until(lambda: bool(stage.said), "it is told of the restart to come")
        await process.stop()
        await kept
        assert len(stage.starts) == 1
        assert stage.alive() == []

    run(main)


def test_who_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    async def main() -> None:
        stage = Stage(tmp_path, "stubborn")
        process = stage.process()
        await process.start()
        await process.ready()
        assert len(stage.alive()) == 2
        await process.stop()
        assert stage.alive() == []

    run(main)


def test_a_chatty_vllm_costs_bounded_memory(tmp_path: Path) -> None:
    async def main() -> None:
        stage = Stage(tmp_path, "chatty")
        process = stage.process(log_path=tmp_path / "vllm.log")
        await process.start()
        await process.ready()
        await until(lambda: process.log_lines(1) == ["serving"], "all of it is read")
        assert process.log_lines(2)[0] == f"{16_383:063d}"
        assert len("\n".join(process.log_lines(10**9))) <= LOG_BYTES
        await process.stop()
        assert len((tmp_path / "vllm.log").read_bytes()) == 16_384 * 64 + len("serving\n")

    run(main)


@pytest.mark.parametrize("mode", ["", "stubborn"])
def test_it_does_not_outlive_a_gateway_that_is_killed(tmp_path: Path, mode: str) -> None:
    """`kill -9` of the parent: nothing of ours runs any more, and yet no process of vLLM stays behind."""
    parent = (
        "import asyncio, sys\nfrom pathlib import Path\nimport uvloop\nfrom tests.e2e.test_vllm_process import Stage\n"
        "async def main():\n"
        "    process = Stage(Path(sys.argv[1]), sys.argv[2]).process()\n"
        "    await process.start()\n    await process.ready()\n    print('ready', flush=True)\n"
        "    await process.keep()\n"
        "uvloop.run(main())\n"
    )

    async def main() -> None:
        command = [sys.executable, "-c", parent, str(tmp_path), mode]
        gateway = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, cwd=ROOT)
        assert gateway.stdout is not None
        assert await gateway.stdout.readline() == b"ready\n"
        stage = Stage(tmp_path, mode)
        assert len(stage.alive()) == 2
        gateway.kill()
        await gateway.wait()
        await until(lambda: stage.alive() == [] and keepers(tmp_path) == [], "everything is gone")

    run(main)


@pytest.mark.parametrize(
    ("extra", "missing", "warning"),
    [
        (["--scheduling-policy", "priority"], "--scheduling-policy", None),
        (["--scheduling-policy=fcfs"], "--scheduling-policy", "--scheduling-policy fcfs is passed to vLLM as given"),
        (["--scheduling_policy", "fcfs"], "--scheduling-policy", "--scheduling-policy fcfs is passed to vLLM as given"),
        (["--no-enable-prefix-caching"], "--enable-prefix-caching", "--no-enable-prefix-caching is passed to vLLM"),
        (["--enable_prefix_caching"], "--enable-prefix-caching", None),
    ],
)
def test_the_users_flags_win(extra: list[str], missing: str, warning: str | None) -> None:
    arguments, warnings = serve_arguments("m", 1234, extra)
    assert arguments[-len(extra) :] == extra
    ours = arguments[: -len(extra)]
    assert missing not in ours
    assert {flag for flag, _, _ in NEEDED} - {missing} <= set(ours)
    assert len(warnings) == (warning is not None)
    assert warning is None or warnings[0].startswith(warning)


@pytest.mark.parametrize("flag", ["--port=1", "--host", "--uds", "--ssl-keyfile", "--ssl_certfile=x"])
def test_flags_that_would_hide_vllm_from_us_are_refused_with_the_way_out(flag: str) -> None:
    with pytest.raises(BadArguments, match=r"joulegate up --engine URL"):
        serve_arguments("m", 1234, [flag])


def test_a_refused_flag_fails_the_start() -> None:
    async def main() -> None:
        process = VllmProcess("m", port=free_port(), command=[sys.executable], extra_args=["--port", "1"])
        with pytest.raises(VllmFailed, match="--vllm-port"):
            await process.start()

    run(main)


def test_restarts_wait_longer_each_time_up_to_a_limit() -> None:
    rule = RestartRule(first_wait_seconds=1.0, longest_wait_seconds=60.0)
    assert [rule.wait_seconds(before) for before in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
