"""The process: signals, draining, reloading, ports, files. The real `joulegate` command in a subprocess."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING

from tests.e2e.harness import WAIT_SECONDS, Client, EngineRequest, engine, post, run, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

CHAT = {"model": "m", "messages": []}
TOKEN = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'


def free_port() -> int:
    """A port that nobody uses at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Process:
    """A running `joulegate`."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, control_port: int) -> None:
        self.process = process
        self.port = port
        self.control_port = control_port
        self.stderr: list[str] = []

    async def line(self, word: str) -> str:
        """Read standard error up to a line with this word in it."""
        assert self.process.stderr is not None
        async with asyncio.timeout(WAIT_SECONDS):
            while line := (await self.process.stderr.readline()).decode():
                self.stderr.append(line)
                if word in line:
                    return line
        raise AssertionError(f"ended without saying {word!r}: {''.join(self.stderr)}")

    async def connect(self, port: int | None = None) -> Client:
        """A client of the model API, or of another port."""
        return Client(*await asyncio.open_connection("127.0.0.1", port or self.port))

    async def get(self, path: str) -> tuple[int, str]:
        """GET from the control plane."""
        client = await self.connect(self.control_port)
        await client.send(f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1:{self.control_port}\r\n\r\n".encode())
        answer = await client.answer()
        client.close()
        return answer.status, answer.body.decode()

    async def post(self, headers: str = "") -> int:
        """One call; its status."""
        client = await self.connect()
        await client.send(post("/v1/chat/completions", CHAT, headers))
        answer = await client.answer()
        client.close()
        return answer.status

    async def exit_code(self) -> int:
        """Wait for the end."""
        async with asyncio.timeout(WAIT_SECONDS):
            return await self.process.wait()


@contextlib.asynccontextmanager
async def joulegate(*arguments: str) -> AsyncIterator[Process]:
    """A `joulegate` process, killed at the end if it is still there."""
    port, control_port = free_port(), free_port()
    ports = ("--port", str(port), "--control-port", str(control_port)) if arguments[0] in ("up", "serve") else ()
    command = [sys.executable, "-m", "proxy.cli", *arguments, *ports]
    process = await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    running = Process(process, port, control_port)
    try:
        yield running
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def plain(request: EngineRequest) -> None:
    """The simplest engine."""
    await request.answer(b"{}")


def test_up_says_where_it_listens_and_what_it_does() -> None:
    async def main() -> None:
        async with engine(plain) as vllm, joulegate("up", "--engine", vllm.url) as process:
            line = await process.line("in front of")
            assert f"http://127.0.0.1:{process.port}" in line
            assert f"http://127.0.0.1:{process.control_port}" in line
            assert vllm.url in line
            assert "loopback" in await process.line("API keys")
            assert await process.post() == 200

    run(main)


def test_sigterm_lets_running_streams_finish_and_exits_with_0() -> None:
    async def main() -> None:
        async def respond(request: EngineRequest) -> None:
            await request.begin_stream()
            await request.chunk(TOKEN)
            await proceed.wait()
            await request.chunk(b"data: [DONE]\n\n")
            await request.end_stream()

        proceed = asyncio.Event()
        async with engine(respond) as vllm, joulegate("up", "--engine", vllm.url) as process:
            await process.line("in front of")
            client, idle = await process.connect(), await process.connect()
            await client.send(post("/v1/chat/completions", {**CHAT, "stream": True}))
            await client.head()
            assert await client.chunk() == TOKEN
            process.process.send_signal(signal.SIGTERM)
            assert await idle.closed() == b"", "idle connections are closed"
            status, why = await process.get("/ready")
            assert status == 503
            assert "draining" in why
            assert (await process.get("/health"))[0] == 200
            proceed.set()
            assert await client.chunk() == b"data: [DONE]\n\n"
            assert await client.chunk() == b""
            assert await process.exit_code() == 0
            client.close()
            idle.close()

    run(main)


def test_a_drain_is_bounded(tmp_path: Path) -> None:
    async def main() -> None:
        async def respond(request: EngineRequest) -> None:
            await request.begin_stream()
            await request.chunk(TOKEN)
            await request.gone.wait()

        async with engine(respond) as vllm:
            config = tmp_path / "joulegate.toml"
            config.write_text(f'timeouts.drain_seconds = 0.2\n[[engines]]\nurl = "{vllm.url}"\n')
            async with joulegate("serve", "--config", str(config)) as process:
                await process.line("in front of")
                client = await process.connect()
                await client.send(post("/v1/chat/completions", {**CHAT, "stream": True}))
                await client.head()
                assert await client.chunk() == TOKEN
                process.process.send_signal(signal.SIGTERM)
                assert await process.exit_code() == 0
                client.close()

    run(main)


def test_sighup_takes_over_keys_engines_and_policy_without_dropping_a_call(tmp_path: Path) -> None:
    async def main() -> None:
        async def slow(request: EngineRequest) -> None:
            await proceed.wait()
            await request.answer(b"{}")

        proceed = asyncio.Event()
        async with engine(slow) as first, engine(plain) as second:
            log = tmp_path / "calls.jsonl"
            config = tmp_path / "joulegate.toml"
            config.write_text(f'log.path = "{log}"\n[[engines]]\nurl = "{first.url}"\n')
            async with joulegate("serve", "--config", str(config)) as process:
                await process.line("in front of")
                running = asyncio.ensure_future(process.post())
                await until(lambda: bool(first.requests), "the call is at the engine")
                digest = "86d6e5e7ba6bdc6bdbf96a5f5e5fb2d4ad1b9a8aebf0b9d9a6d1f0b7f6d5c4a3"
                config.write_text(
                    f'log.path = "{log}"\npolicy = {{ name = "fifo", max_in_flight = 7 }}\n'
                    f'[[engines]]\nurl = "{second.url}"\n[[keys]]\nname = "k"\nsha256 = "{digest}"\n'
                )
                process.process.send_signal(signal.SIGHUP)
                await until(lambda: '"reloaded"' in log.read_text(), "the new file is taken over")
                assert json.loads((await process.get("/admin/state"))[1])["policy"] == "fifo"
                assert await process.post() == 401
                proceed.set()
                assert await running == 200
                config.write_text("no such thing = 1")
                process.process.send_signal(signal.SIGHUP)
                await until(lambda: "reload_failed" in log.read_text(), "the bad file is refused")
                assert await process.post() == 401, "a bad file changes nothing"

    run(main)


def test_a_taken_port_is_said_plainly() -> None:
    async def main() -> None:
        async with engine(plain) as vllm, joulegate("up", "--engine", vllm.url) as one:
            await one.line("in front of")
            command = [sys.executable, "-m", "proxy.cli", "up", "--engine", vllm.url, "--port", str(one.port)]
            process = await asyncio.create_subprocess_exec(
                *command, "--control-port", "0", stderr=asyncio.subprocess.PIPE
            )
            _, errors = await process.communicate()
            assert process.returncode == 1
            assert b"address already in use" in errors.lower()
            assert b"Traceback" not in errors

    run(main)


def test_an_event_log_of_real_traffic_replays(tmp_path: Path) -> None:
    async def main() -> None:
        async with engine(plain) as vllm:
            log = tmp_path / "events.jsonl"
            config = tmp_path / "joulegate.toml"
            config.write_text(f'event_log.path = "{log}"\n[[engines]]\nurl = "{vllm.url}"\n')
            async with joulegate("serve", "--config", str(config)) as process:
                await process.line("in front of")
                for _ in range(5):
                    assert await process.post() == 200
                process.process.send_signal(signal.SIGTERM)
                assert await process.exit_code() == 0
            async with joulegate("replay", str(log)) as replay:
                output, _ = await replay.process.communicate()
                assert replay.process.returncode == 0
                assert b" 0 with other actions" in output
            log.write_text(log.read_text().replace('"Dispatch"', '"Reject"'))
            async with joulegate("replay", str(log)) as replay:
                await replay.process.communicate()
                assert replay.process.returncode == 1

    run(main)


def test_token_budgets_outlive_a_restart(tmp_path: Path) -> None:
    async def main() -> None:
        async def respond(request: EngineRequest) -> None:
            await request.answer(b'{"usage":{"prompt_tokens":600,"completion_tokens":300}}')

        import hashlib

        digest = hashlib.sha256(b"secret").hexdigest()
        async with engine(respond) as vllm:
            config = tmp_path / "joulegate.toml"
            config.write_text(
                f'state_dir = "{tmp_path / "state"}"\n[[engines]]\nurl = "{vllm.url}"\n'
                f'[[keys]]\nname = "k"\nsha256 = "{digest}"\ntoken_budget = 1000\n'
            )
            statuses = []
            for _ in range(2):
                async with joulegate("serve", "--config", str(config)) as process:
                    await process.line("in front of")
                    statuses += [await process.post("authorization: Bearer secret\r\nx-max: 1\r\n") for _ in range(1)]
                    process.process.send_signal(signal.SIGTERM)
                    assert await process.exit_code() == 0
            async with joulegate("serve", "--config", str(config)) as process:
                await process.line("in front of")
                statuses.append(await process.post("authorization: Bearer secret\r\n"))
            assert statuses == [200, 200, 429]
            (tmp_path / "state" / "budgets.json").write_text("{broken")
            async with joulegate("serve", "--config", str(config)) as process:
                await process.line("budgets.json cannot be read")
                assert await process.exit_code() == 1

    run(main)
