"""A vLLM of our own: started, waited for, restarted when it dies, ended with all its processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import shutil
import signal
import socket
import sys
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from backends.vllm import keeper
from backends.vllm.arguments import BadArguments, serve_arguments
from backends.vllm.fetch import FetchFailed, fetch
from backends.vllm.pool import EnginePool

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

LOG_BYTES = 65_536
LOG_LINES_SHOWN = 40
POLL_SECONDS = 0.1
PROBE_SECONDS = 5.0
LEFTOVER_SECONDS = 2.0
"""What vLLM's other processes get to notice that its first one has ended; then they are killed."""


class VllmFailed(Exception):
    """vLLM does not run. The message says why, with the last lines of its log. `exit_code` None = it has not ended."""

    def __init__(self, reason: str, log_lines: Sequence[str] = (), exit_code: int | None = None) -> None:
        log = "".join(f"\n  {line}" for line in log_lines)
        super().__init__(f"{reason}\nthe last lines of its log:{log}" if log_lines else reason)
        self.reason = reason
        self.log_lines = tuple(log_lines)
        self.exit_code = exit_code


class RestartRule(NamedTuple):
    """A vLLM that was ready and died is started again after a wait that doubles; not for ever."""

    restarts: int = 5
    """within the window; then it is given up"""
    window_seconds: float = 3600.0
    first_wait_seconds: float = 1.0
    longest_wait_seconds: float = 60.0

    def wait_seconds(self, restarts_before: int) -> float:
        """Before the next restart, after so many within the window."""
        return min(self.longest_wait_seconds, self.first_wait_seconds * 2.0**restarts_before)


class VllmProcess:
    """`vllm serve MODEL` on 127.0.0.1 with the flags that the scheduler needs.

    Use: `start`, `ready`, then `keep` in the background; `stop` at the end, whatever happened before. `command` is what
    stands before `serve`. `start_seconds` bounds a start (a large model loads for many minutes),
    `stop_seconds` the time from SIGTERM to SIGKILL. `log_path`: vLLM's output is appended to this file as well.
    `say` is told of warnings and restarts.
    """

    def __init__(
        self,
        model: str,
        *,
        port: int,
        command: Sequence[str] = ("vllm",),
        extra_args: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
        start_seconds: float = 1800.0,
        stop_seconds: float = 30.0,
        log_path: Path | None = None,
        restart: RestartRule = RestartRule(),  # noqa: B008 (a tuple: nobody can change it)
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.model = model
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.start_seconds = start_seconds
        self.stop_seconds = stop_seconds
        self.restart = restart
        self.restart_count = 0
        self._command = tuple(command)
        self._extra_args = tuple(extra_args)
        self._environ = {**(os.environ if environ is None else environ), "PYTHONUNBUFFERED": "1"}
        self._say = say or _say
        self._log = _Log(log_path)
        self._family: _Family | None = None
        self._stopped = asyncio.Event()

    def __str__(self) -> str:
        return shlex.join([*self._command, "serve", self.model])

    @property
    def pid(self) -> int | None:
        """The first process, which leads the group; None before `start`."""
        return None if self._family is None else self._family.pid

    def log_lines(self, count: int = LOG_LINES_SHOWN) -> list[str]:
        """The last lines that vLLM has printed, over all its starts."""
        return self._log.lines(count)

    async def start(self) -> None:
        """Start it; returns at once. Raises VllmFailed if that cannot be."""
        assert self._family is None, "started twice"
        try:
            arguments, warnings = serve_arguments(self.model, self.port, self._extra_args)
        except BadArguments as error:
            raise VllmFailed(str(error)) from None
        for warning in warnings:
            self._say(warning)
        await self._launch(arguments)

    async def _launch(self, arguments: Sequence[str]) -> None:
        program = shutil.which(self._command[0], path=self._environ.get("PATH"))
        if program is None:
            raise VllmFailed(
                f"{self._command[0]} is not on PATH: install it (pip install 'joulegate[vllm]'), name another command "
                "with --vllm-command, or start vLLM elsewhere and use `joulegate up --engine URL`"
            )
        if not _is_free(self.port):  # else another server's /health would pass for vLLM's
            raise VllmFailed(f"port {self.port} is taken; choose another for vLLM with --vllm-port")
        self._arguments = tuple(arguments)
        family = _Family(self._log)
        try:
            await family.launch([program, *self._command[1:], *arguments], self._environ, self.stop_seconds)
        except OSError as error:
            raise VllmFailed(f"{program} cannot be started: {error}") from None
        self._family = family
        if self._stopped.is_set():  # meanwhile
            await family.end(0.0)

    async def ready(self) -> None:
        """Wait until it answers /health. Raises VllmFailed if it ends before or takes longer than `start_seconds`."""
        family = self._family
        assert family is not None, "start() comes first"
        loop = asyncio.get_running_loop()
        until = loop.time() + self.start_seconds
        pool = EnginePool(self.url, connect_seconds=PROBE_SECONDS, idle_seconds=POLL_SECONDS)
        detail = "not asked yet"
        try:
            while loop.time() < until:
                await asyncio.wait({family.exited}, timeout=POLL_SECONDS)
                if family.exited.done():
                    await family.end(0.0)
                    raise self._failed(f"{self} {family.how_it_ended} before it was ready")
                try:
                    status, _ = await fetch(pool, "/health", b"", PROBE_SECONDS)
                except FetchFailed as failed:
                    detail = str(failed)
                    continue
                if status == 200 and not family.exited.done():
                    return
                detail = f"GET /health answers {status}"
        finally:
            pool.close()
        await family.end(self.stop_seconds)
        raise self._failed(f"{self} was not ready after {self.start_seconds:g} s ({detail}) and was ended")

    async def keep(self) -> None:
        """Restart it whenever it dies; returns after `stop` only. Raises VllmFailed when it dies too often."""
        loop = asyncio.get_running_loop()
        restarts_at: deque[float] = deque()
        while True:
            assert self._family is not None, "start() comes first"
            await asyncio.wait({self._family.exited})
            if self._stopped.is_set():
                return
            await self._family.end(0.0)  # its other processes: they hold the GPU's memory
            how = self._family.how_it_ended
            while restarts_at and restarts_at[0] < loop.time() - self.restart.window_seconds:
                restarts_at.popleft()
            if len(restarts_at) >= self.restart.restarts:
                raise self._failed(
                    f"{self} {how}; it was restarted {len(restarts_at)} times within {self.restart.window_seconds:g} s "
                    "and is given up"
                )
            wait_seconds = self.restart.wait_seconds(len(restarts_at))
            self._say(f"{self} {how}; restart {len(restarts_at) + 1} of {self.restart.restarts} in {wait_seconds:g} s")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_seconds):
                    await self._stopped.wait()
            if self._stopped.is_set():
                return
            restarts_at.append(loop.time())
            self.restart_count += 1
            await self._restart()

    async def _restart(self) -> None:
        try:
            await self._launch(self._arguments)
            await self.ready()
        except VllmFailed as failed:  # `keep` sees its end and decides
            self._say(failed.reason)
        else:
            self._say(f"{self} is ready again")

    async def stop(self) -> None:
        """End all its processes: SIGTERM, after `stop_seconds` SIGKILL. May be called at any time, and again."""
        self._stopped.set()
        if self._family is not None:
            await self._family.end(self.stop_seconds)
        self._log.close()

    def _failed(self, reason: str) -> VllmFailed:
        assert self._family is not None
        return VllmFailed(reason, self.log_lines(), self._family.exit_code)


class _Log:
    """The end of what vLLM prints, and all of it in a file if one is named."""

    def __init__(self, path: Path | None) -> None:
        self._end = bytearray()
        self._file = None if path is None else path.open("ab", buffering=0)

    def write(self, data: bytes) -> None:
        self._end += data
        if len(self._end) > 2 * LOG_BYTES:
            del self._end[:-LOG_BYTES]
        if self._file is not None:
            with contextlib.suppress(OSError):  # a full disk must not end the service
                self._file.write(data)

    def lines(self, count: int) -> list[str]:
        return bytes(self._end[-LOG_BYTES:]).decode(errors="replace").splitlines()[-count:]

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class _Family(asyncio.SubprocessProtocol):
    """vLLM's processes: one session and process group, whose leader is the process that we start."""

    def __init__(self, log: _Log) -> None:
        self._log = log
        self._transport: asyncio.SubprocessTransport | None = None
        self.exited: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """The leader has ended; others may live on."""
        self._output_ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.pid: int | None = None
        self.exit_code: int | None = None
        self._lifeline: int | None = None
        """The end of the keeper's pipe that only this process holds."""

    async def launch(self, command: Sequence[str], environ: Mapping[str, str], grace_seconds: float) -> None:
        """Start it behind a keeper. Raises OSError."""
        script = [sys.executable, "-I", "-S", str(Path(keeper.__file__)), str(grace_seconds)]
        keepers_end, lifeline = os.pipe()  # (not inherited, unless as somebody's standard input)
        try:
            await asyncio.get_running_loop().subprocess_exec(
                lambda: self,
                *script,
                *command,
                stdin=keepers_end,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env=environ,
                start_new_session=True,
            )
        except BaseException:
            os.close(lifeline)  # whatever has been started is ended
            raise
        finally:
            os.close(keepers_end)
        self._lifeline = lifeline

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.SubprocessTransport, transport)  # (uvloop's is not derived from it)
        self.pid = self._transport.get_pid()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self._log.write(data)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        if fd == 1 and not self._output_ended.done():
            self._output_ended.set_result(None)

    def process_exited(self) -> None:
        assert self._transport is not None
        self.exit_code = self._transport.get_returncode()
        if not self.exited.done():
            self.exited.set_result(None)

    @property
    def how_it_ended(self) -> str:
        """In words."""
        code = self.exit_code
        if code is not None and code < 0:
            return f"was ended by {signal.Signals(-code).name}"
        return f"exited with code {code}"

    async def end(self, grace_seconds: float) -> None:
        """End every process of the group; returns when they are gone. The leader may have ended already."""
        transport, pid = self._transport, self.pid
        if transport is None or pid is None or self._lifeline is None:
            return
        if not self.exited.done():
            # Its leader first: that is vLLM's orderly way out, and it ends the others itself.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            await asyncio.wait({self.exited}, timeout=grace_seconds)
        if self.exited.done():
            await _until_gone(pid, min(LEFTOVER_SECONDS, grace_seconds))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        await asyncio.wait({self.exited})
        await _until_gone(pid, LEFTOVER_SECONDS)
        await asyncio.wait({self._output_ended}, timeout=LEFTOVER_SECONDS)
        if self._lifeline is not None:  # (not ended by another call meanwhile)
            with contextlib.suppress(BrokenPipeError):
                os.write(self._lifeline, keeper.FAREWELL)
            os.close(self._lifeline)
            self._lifeline = None
            transport.close()


async def _until_gone(group: int, seconds: float) -> None:
    until = asyncio.get_running_loop().time() + seconds
    while _lives(group) and asyncio.get_running_loop().time() < until:  # noqa: ASYNC110 (a group's end has no event)
        await asyncio.sleep(POLL_SECONDS / 5)


def _lives(group: int) -> bool:
    """Whether a process of the group runs. Zombies do not: in a container there may be nobody to reap them."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, process_group = entry.read_text(errors="replace").rpartition(")")[2].split()[:3]
            if int(process_group) == group and state not in "ZX":
                return True
    return False


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def free_port() -> int:
    """A port of the loopback that nobody uses at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _say(message: str) -> None:
    sys.stderr.write(f"joulegate: {message}\n")
    sys.stderr.flush()
