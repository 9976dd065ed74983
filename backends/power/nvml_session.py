"""How is NVML reached, and reached again after its driver was reloaded or a card was lost?

One session a process. All calls block: they are made from threads. A driver that is gone is tried again after waits
that double up to half a minute; between them everything fails at once, with the reason. A lost card is no reason to
stop reading the others: it alone waits, and then the session is begun anew for all (`restart`).
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any, TypeVar

import pynvml

from backends.power.device import Unavailable, Why

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 30.0
HOW_TO_BE_ALLOWED = (
    "limits are set by root or CAP_SYS_ADMIN only: run as root, or run `joulegate agent --actuate` or zeusd as root"
    " on the GPU's host"
)
_WHY: dict[int, Why] = {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "absent",
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "absent",
    pynvml.NVML_ERROR_NOT_FOUND: "absent",
    pynvml.NVML_ERROR_NOT_SUPPORTED: "not_supported",
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: "not_supported",
    pynvml.NVML_ERROR_NO_PERMISSION: "no_permission",
    pynvml.NVML_ERROR_UNINITIALIZED: "reset",
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "reset",
    pynvml.NVML_ERROR_GPU_IS_LOST: "lost",
    pynvml.NVML_ERROR_RESET_REQUIRED: "lost",
    pynvml.NVML_ERROR_IRQ_ISSUE: "lost",
    pynvml.NVML_ERROR_UNKNOWN: "lost",
}
_GONE = (
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
    pynvml.NVML_ERROR_UNINITIALIZED,
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
)
"""After these no card can be read: the session is begun anew."""


class Backoff:
    """When to try again: waits that double."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._wait_seconds = FIRST_WAIT_SECONDS
        self._not_before = 0.0

    def failed(self) -> None:
        """Wait, longer than the last time."""
        self._not_before = self._clock() + self._wait_seconds
        self._wait_seconds = min(2 * self._wait_seconds, LONGEST_WAIT_SECONDS)

    def waiting(self) -> bool:
        """Not yet."""
        return self._clock() < self._not_before

    def succeeded(self) -> None:
        """The next fault waits briefly again."""
        self._wait_seconds = FIRST_WAIT_SECONDS


def unavailable(reading: str, error: Any) -> Unavailable:
    """What an error of NVML means."""
    detail = str(error)
    if error.value == pynvml.NVML_ERROR_NO_PERMISSION:
        detail += f"; {HOW_TO_BE_ALLOWED}"
    return Unavailable(reading, _WHY.get(error.value, "no_data"), detail)


class NvmlSession:
    """The library, initialised, or the reason why it is not."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._lock = threading.Lock()
        self._again = Backoff(clock)
        self._open = False
        self._loaded = False
        """nvmlInit has succeeded, and nvmlShutdown is due before the next one"""
        self._fault: Any = None
        self.generation = 0
        """Counts the times it was initialised: handles of an older one are void."""

    def call(self, reading: str, function: Callable[[], T]) -> T:
        """What the function of pynvml's returns. Unavailable."""
        generation = self.ensure(reading)
        try:
            answer = function()
        except pynvml.NVMLError as error:
            if error.value in _GONE:
                self._broke(generation, error)
            raise self._said(reading, error) from None
        self._again.succeeded()
        return answer

    def ensure(self, reading: str) -> int:
        """Have it initialised; returns the generation. Unavailable: at once, while a wait is running."""
        if self._is_open():
            return self.generation
        with self._lock:
            if self._is_open():
                return self.generation
            if self._again.waiting():
                raise self._said(reading, self._fault)
            if self._loaded:
                self._loaded = False
                with contextlib.suppress(pynvml.NVMLError):  # as broken as the rest of it
                    pynvml.nvmlShutdown()
            try:
                pynvml.nvmlInit()
            except pynvml.NVMLError as error:
                self._fault = error
                self._again.failed()
                raise self._said(reading, error) from None
            self._open = self._loaded = True
            self.generation += 1
            return self.generation

    def restart(self, generation: int) -> None:
        """Begin anew for a card that is lost, unless that has happened since this generation."""
        with self._lock:
            if generation == self.generation:
                self._open = False

    def _is_open(self) -> bool:
        return self._open

    def _broke(self, generation: int, error: Any) -> None:
        with self._lock:
            if self._open and generation == self.generation:  # (not begun anew by another thread meanwhile)
                self._open = False
                self._fault = error
                self._again.failed()

    def _said(self, reading: str, error: Any) -> Unavailable:
        found = unavailable(reading, error)
        if self.generation and error.value == pynvml.NVML_ERROR_DRIVER_NOT_LOADED:
            return Unavailable(reading, "reset", f"{found.detail}: it was there, and may be on its way back")
        return found


session = NvmlSession()
"""This process's."""
