"""Who restores the limits after `kill -9`? A process of its own. Run as a module, with the number of its socket.

    python -m backends.power.watchdog FD PARENT

For each card that the parent takes, it is sent the lease's file and a copy of the locked descriptor, so the lock
outlives the parent until the card is restored: nobody comes between. It watches the socket, whose other end only the
parent has, and the parent's pidfd. It has a session of its own and ignores SIGTERM and SIGINT: an orderly parent
restores by itself and says so, and when a whole service is ended it must be the last to go.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from backends.power.lease import Lease, LeaseFault
from backends.power.restore import device_of, restore_lease

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 20.0
ANSWER_SECONDS = 5.0
RETRY_SECONDS, GIVE_UP_SECONDS = 0.25, 120.0
MESSAGE_BYTES = 4096
PARENT_POLL_MS = 200
"""Where the kernel has no pidfd, the parent is looked for so often."""


class Watchdog:
    """The parent's side. One process for all cards, started when the first is taken, and again if it has died."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._held: dict[str, Lease] = {}

    @property
    def pid(self) -> int | None:
        """Of the process, if one was started."""
        return None if self._process is None else self._process.pid

    def hold(self, lease: Lease) -> None:
        """From now on it restores this card when we die. LeaseFault if it does not say that it will."""
        with self._lock:
            self._held[str(lease.file)] = lease
            if not self._lives():
                self._start()
            else:
                self._send("hold", lease)

    def drop(self, lease: Lease) -> None:
        """The card is restored."""
        with self._lock:
            if self._held.pop(str(lease.file), None) is not None and self._lives():
                with contextlib.suppress(LeaseFault):
                    self._send("drop", lease)

    def ensure(self) -> None:
        """That it runs; if it has died, another takes over. LeaseFault."""
        with self._lock:
            if self._held and not self._lives():
                self._start()

    def close(self) -> None:
        """Leave it: what it still holds, it restores now. Waits for its end if it holds nothing."""
        with self._lock:
            if self._socket is not None:
                self._socket.close()
                self._socket = None
            if self._process is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(ANSWER_SECONDS)
                self._process = None

    def _lives(self) -> bool:
        return self._process is not None and self._socket is not None and self._process.poll() is None

    def _start(self) -> None:
        if self._socket is not None:
            self._socket.close()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            number = theirs.fileno()
            command = [sys.executable, "-P", "-m", "backends.power.watchdog", str(number), str(os.getpid())]
            # From where we are, and not from whatever folder we were started in.
            path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
            try:
                self._process = subprocess.Popen(
                    command,
                    pass_fds=(number,),
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                    env={**os.environ, "PYTHONPATH": path},
                )
            except OSError as error:
                ours.close()
                raise LeaseFault(f"the watchdog cannot be started ({error}), so no limit is set") from None
        self._socket = ours
        self._answer(START_SECONDS)
        for lease in self._held.values():
            self._send("hold", lease)

    def _send(self, word: str, lease: Lease) -> None:
        assert self._socket is not None
        try:
            message = f"{word} {lease.file}".encode()
            assert len(message) <= MESSAGE_BYTES
            socket.send_fds(self._socket, [message], [lease.fd] if word == "hold" else [])
        except OSError as error:
            raise LeaseFault(f"the watchdog does not listen ({error}), so no limit is set") from None
        self._answer(ANSWER_SECONDS)

    def _answer(self, seconds: float) -> None:
        assert self._socket is not None
        self._socket.settimeout(seconds)
        try:
            if self._socket.recv(16) == b"ok":
                return
        except OSError:
            pass
        self._socket.close()  # so it ends, and restores what it has: a watchdog that is not sure is none
        self._socket = None
        raise LeaseFault("the watchdog does not answer, so no limit is set")


def main() -> int:
    """The process itself."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    channel, parent = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    held: dict[str, Lease] = {}
    import backends.power.nvml  # noqa: F401  (a restore should not wait for it)

    with channel:
        gone = _parent_gone(parent)
        with contextlib.suppress(OSError):
            channel.send(b"ok")
            while not _wait(channel, gone):
                if not _listen(channel, held):
                    break
    return _restore_all(list(held.values()))


def _parent_gone(parent: int) -> int | Callable[[], bool]:
    """A descriptor that is readable once the parent has ended, or a question to ask."""

    def gone() -> bool:
        return os.getppid() != parent

    try:
        return os.pidfd_open(parent)
    except (OSError, AttributeError):
        return gone


def _wait(channel: socket.socket, gone: int | Callable[[], bool]) -> bool:
    """Wait for a message; True if the parent has ended instead."""
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    if isinstance(gone, int):
        poll.register(gone, select.POLLIN)
        return any(number == gone for number, _ in poll.poll())
    while not gone():
        if poll.poll(PARENT_POLL_MS):
            return False
    return True


def _listen(channel: socket.socket, held: dict[str, Lease]) -> bool:
    """Take one message; False if there will be none."""
    message, fds, _, _ = socket.recv_fds(channel, MESSAGE_BYTES, 1)
    if not message:
        return False
    word, _, file = message.decode().partition(" ")
    if word == "hold" and fds:
        lease = Lease.of_file(Path(file))
        lease.fd = fds[0]
        held[file] = lease
    elif file in held:
        held.pop(file).release()
    channel.send(b"ok")
    return True


def _restore_all(leases: list[Lease]) -> int:
    """Each in a thread of its own: a card that hangs keeps no other from being restored."""
    until = time.monotonic() + GIVE_UP_SECONDS
    left = set(leases)

    def restore(lease: Lease) -> None:
        device = device_of(lease)  # the same one again and again: it knows what it takes to reach a lost card again
        while (done := restore_lease(lease, device)).state == "failed" and time.monotonic() < until:
            time.sleep(RETRY_SECONDS)
        _say(f"{done.device}: {done.state.replace('_', ' ')}: {done.detail}")
        if done.state != "failed":
            left.discard(lease)
        lease.release()

    threads = [threading.Thread(target=restore, args=(lease,), daemon=True) for lease in leases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, until + RETRY_SECONDS - time.monotonic()))
    return 1 if left else 0


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # whoever read it may have died too
        sys.stderr.write(f"joulegate watchdog: {text}\n")
        sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
