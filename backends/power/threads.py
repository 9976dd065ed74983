"""How is a blocking device asked from an event loop? One thread for one device, which may hang without harm."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import Future
from queue import Full, Queue
from typing import TYPE_CHECKING, Any, TypeVar

from backends.power.device import Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
WAITING_MAX = 16


class DeviceThread:
    """Runs what it is given, one after another. A daemon: a call into a driver that hangs does not keep us from ending.

    (The pools of the standard library wait for their threads at the interpreter's end.)
    """

    def __init__(self, name: str) -> None:
        self._queue: Queue[tuple[Callable[[], Any], Future[Any]] | None] = Queue(WAITING_MAX)
        self._busy_since: float | None = None
        self.name = name
        self._thread = threading.Thread(target=self._run, name=f"power {name}", daemon=True)
        self._thread.start()

    async def call(self, what: str, function: Callable[[], T], seconds: float) -> T:
        """What the function returns. Unavailable, `hanging`, if that takes too long, or something before it does."""
        since = self._busy_since
        if since is not None and time.monotonic() - since > seconds:
            raise Unavailable(what, "hanging", f"a call to {self.name} has not come back for {self.busy_seconds:.0f} s")
        future: Future[T] = Future()
        try:
            self._queue.put_nowait((function, future))
        except Full:
            raise Unavailable(what, "hanging", f"{WAITING_MAX} calls wait for {self.name}") from None
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), seconds)
        except TimeoutError:
            if future.done() and not future.cancelled():  # its own, not ours
                raise
            raise Unavailable(what, "hanging", f"{self.name} has not answered within {seconds:g} s") from None

    @property
    def busy_seconds(self) -> float:
        """How long the call that runs has run."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def close(self) -> None:
        """End it after what waits. One that hangs is left."""
        try:
            self._queue.put_nowait(None)
        except Full:
            return

    def _run(self) -> None:
        while (job := self._queue.get()) is not None:
            function, future = job
            if not future.set_running_or_notify_cancel():
                continue
            self._busy_since = time.monotonic()
            try:
                future.set_result(function())
            except BaseException as error:  # noqa: BLE001  (it is the caller's)
                future.set_exception(error)
            self._busy_since = None
            del job, function, future
