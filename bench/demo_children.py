"""How does the demo start, watch and end its twin and its gateway, such that none of them outlives it?"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import sys
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import re
    from collections.abc import Coroutine, Sequence

T = TypeVar("T")

HOST = "127.0.0.1"
READY_SECONDS = 60.0
PATIENCE_SECONDS = 1.0
"""How long calls under way may take to end before the gateway is told again, which cuts them off; and how long a
process may be gone before it is known."""
KILL_SECONDS = 5.0
_LOG_LINES = 12
_LOG_LINE_CHARACTERS = 160
_LINE_BYTES_MAX = 1_048_576
_PR_SET_PDEATHSIG = 1
# Loaded here and not between fork and exec, where nothing should be imported any more.
_LIBC = ctypes.CDLL(None, use_errno=True)


class ChildDiedError(Exception):
    """A child ended by itself or never got ready; the message holds the end of its log."""


def is_free(port: int) -> bool:
    """Can somebody listen on this port of the loopback address now?"""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: old connections are no obstacle
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _die_with(parent: int) -> None:
    """Between fork and exec: a demo that is killed ends nothing itself, so the kernel does."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was killed before that line
        os._exit(1)


async def alongside(work: Coroutine[Any, Any, T], children: Sequence[Child]) -> T:
    """The work's result. ChildDiedError as soon as a child ends meanwhile; the work is cancelled then."""
    task = asyncio.create_task(work)
    deaths = [asyncio.create_task(child.died()) for child in children]
    try:
        await asyncio.wait((task, *deaths), return_when=asyncio.FIRST_COMPLETED)
        if task.done() and task.exception() is not None:  # because of a death that is not known yet?
            await asyncio.wait(deaths, timeout=PATIENCE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        for death in deaths:
            if death.done():
                death.result()
        return await task
    finally:
        for each in (task, *deaths):
            each.cancel()
        await asyncio.gather(task, *deaths, return_exceptions=True)


class Child:
    """A `joulegate` command as a process of a session of its own: the terminal's Ctrl-C reaches the demo alone."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, ready: re.Pattern[str]) -> None:
        self.name = name
        self._process = process
        self._log: deque[str] = deque(maxlen=_LOG_LINES)
        loop = asyncio.get_running_loop()
        self._said: asyncio.Future[re.Match[str]] = loop.create_future()
        self._reading = loop.create_task(self._read(ready))

    @classmethod
    async def start(cls, name: str, arguments: Sequence[str], ready: re.Pattern[str]) -> Child:
        """Start `joulegate ARGUMENTS`; the first line that `ready` is found in says that it serves."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "proxy.cli", *arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            # What the surroundings say to a gateway is not meant for this one, nor is a folder that is called `proxy`.
            env={name: value for name, value in os.environ.items() if not name.startswith("JOULEGATE_")}
            | {"PYTHONSAFEPATH": "1"},
            limit=_LINE_BYTES_MAX,
            start_new_session=True,
            preexec_fn=partial(_die_with, os.getpid()),
        )
        return cls(name, process, ready)

    async def _read(self, ready: re.Pattern[str]) -> None:
        assert self._process.stdout is not None
        while True:
            try:
                line = (await self._process.stdout.readline()).decode(errors="replace")
            except ValueError:  # a line over the limit; the next one is read again
                continue
            if not line:
                return
            self._log.append(line.rstrip()[:_LOG_LINE_CHARACTERS])
            if not self._said.done() and (found := ready.search(line)):
                self._said.set_result(found)

    async def ready(self) -> re.Match[str]:
        """What it says when it serves. ChildDiedError if it ends or says nothing for a minute."""
        died = asyncio.ensure_future(self.died())
        try:
            done, _ = await asyncio.wait((self._said, died), timeout=READY_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if self._said in done:
                return self._said.result()
            if died in done:
                died.result()
            raise ChildDiedError(f"the {self.name} did not get ready within {READY_SECONDS:g} s{self._last_words()}")
        finally:
            died.cancel()

    async def died(self) -> None:
        """Waits for its end and raises it as ChildDiedError: while it is needed, that is a fault."""
        code = await self._process.wait()
        await asyncio.wait((self._reading,))
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit {code}"
        raise ChildDiedError(f"the {self.name} {how}{self._last_words()}")

    def _last_words(self) -> str:
        return "; the end of its log:\n" + "\n".join(f"  {line}" for line in self._log or ("(nothing)",))

    async def end(self) -> None:
        """SIGTERM, again for calls that take their time, then SIGKILL. Returns when it is gone."""
        for number, seconds in (
            (signal.SIGTERM, PATIENCE_SECONDS),
            (signal.SIGTERM, KILL_SECONDS),
            (signal.SIGKILL, KILL_SECONDS),
        ):
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), seconds)
                break
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
