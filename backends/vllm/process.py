"""Starts `vllm serve`, waits until it answers, starts it again when it dies, shows its last words, and ends it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING

from backends.vllm.fetch import FetchFailed, fetch
from backends.vllm.pool import EnginePool

if TYPE_CHECKING:
    from collections.abc import Sequence

FLAGS = (
    ("--scheduling-policy", "priority"),
    ("--enable-prefix-caching",),
    ("--enable-prompt-tokens-details",),
    ("--enable-request-id-headers",),
    ("--enable-server-load-tracking",),
)
"""What the gateway makes use of. A flag that the user gives is not given again: the user's word holds."""
LOG_LINES = 40
LOG_LINE_BYTES = 4096
POLL_SECONDS = 0.5
STOP_SECONDS = 20.0
RESTARTS_MAX = 3
"""Within RESTART_WINDOW_SECONDS; then it is given up."""
RESTART_WINDOW_SECONDS = 600.0
RESTART_WAIT_SECONDS = 2.0


class VllmFailed(Exception):
    """vLLM could not be started or has died for good; the message ends with its last lines."""


def free_port() -> int:
    """A port of the loopback that nobody uses at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class VllmProcess:
    """One `vllm serve`. `command` is how vLLM is called; `extra_args` are the user's own. Start it once, stop it once."""

    def __init__(
        self, model: str, *, port: int, command: Sequence[str] = ("vllm",), extra_args: Sequence[str] = ()
    ) -> None:
        self.port = port
        given = {argument.partition("=")[0] for argument in extra_args}
        flags = [word for flag in FLAGS if not given & {flag[0], flag[0].replace("--", "--no-", 1)} for word in flag]
        self.command = [
            *command, "serve", model, "--host", "127.0.0.1", "--port", str(port), *flags, *extra_args
        ]  # fmt: skip
        self._process: asyncio.subprocess.Process | None = None
        self._lines: deque[str] = deque(maxlen=LOG_LINES)
        self._reader: asyncio.Task[None] | None = None
        self._restarts: deque[float] = deque(maxlen=RESTARTS_MAX)

    def __str__(self) -> str:
        return " ".join(self.command)

    async def start(self) -> None:
        """Start it. VllmFailed if there is no such command."""
        if shutil.which(self.command[0]) is None:
            raise VllmFailed(
                f"no command {self.command[0]!r}; install it (pip install 'joulegate[vllm]'), or name it in --vllm-command"
            )
        launcher = [sys.executable, "-m", "backends.vllm.launch", str(os.getpid())]
        self._process = await asyncio.create_subprocess_exec(
            *launcher,
            *self.command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,  # vLLM has child processes: a session of its own is ended as a whole
            limit=1 << 20,
        )
        self._reader = asyncio.ensure_future(self._read(self._process))

    async def ready(self) -> None:
        """Wait until it answers /health. VllmFailed if it ends before. Loading a large model takes as long as it takes."""
        pool = EnginePool(f"http://127.0.0.1:{self.port}", connect_seconds=2.0, idle_seconds=2.0)
        try:
            while True:
                assert self._process is not None
                if self._process.returncode is not None:
                    raise await self._failed("ended before it answered")
                with contextlib.suppress(FetchFailed):
                    status, _ = await fetch(pool, "/health", b"", 2.0)
                    if status == 200:
                        return
                await asyncio.sleep(POLL_SECONDS)
        finally:
            pool.close()

    async def keep(self) -> None:
        """Start it again whenever it dies; returns never, and raises VllmFailed when it has died too often."""
        while True:
            assert self._process is not None
            await self._process.wait()
            now = monotonic()
            if len(self._restarts) == RESTARTS_MAX and now - self._restarts[0] < RESTART_WINDOW_SECONDS:
                raise await self._failed(f"died again, after {RESTARTS_MAX} restarts")
            failed = await self._failed("died and is started again")
            sys.stderr.write(f"joulegate: {failed}\n")
            self._restarts.append(now)
            self._end_group(signal.SIGKILL)  # what may be left of its children holds the GPU's memory
            await asyncio.sleep(RESTART_WAIT_SECONDS * 2 ** (len(self._restarts) - 1))
            await self.start()

    async def stop(self) -> None:
        """End it and its children: SIGTERM, and SIGKILL for what is left after STOP_SECONDS."""
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            self._end_group(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_SECONDS):
                    await process.wait()
        self._end_group(signal.SIGKILL)
        await process.wait()
        if self._reader is not None:
            self._reader.cancel()

    def _end_group(self, number: signal.Signals) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    async def _failed(self, what: str) -> VllmFailed:
        assert self._process is not None
        if self._reader is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(2.0):  # its last lines; a child that keeps the pipe open is not waited for
                    await asyncio.shield(self._reader)
        last = "\n".join(f"  | {line}" for line in self._lines)
        return VllmFailed(f"vLLM {what} (exit status {self._process.returncode}): {self}\nits last lines:\n{last}")

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        """Keep the last lines of its log."""
        assert process.stdout is not None
        while True:
            try:
                line = await process.stdout.readline()
            except ValueError:  # a line over the stream's limit: its end comes next
                continue
            if not line:
                return
            self._lines.append(line[:LOG_LINE_BYTES].decode("utf-8", "replace").rstrip())
