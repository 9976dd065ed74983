"""Starts a program such that none of its processes outlives the one that started it. Run as a script, imports only os.

    python -I -S keeper.py GRACE_SECONDS PROGRAM [ARGUMENT …]        with a pipe as standard input

vLLM is a family of processes (API server, EngineCore, workers) that hold a GPU's memory. Nobody could end them after
a `kill -9` of the gateway, and PR_SET_PDEATHSIG reaches the direct child alone. So this script leaves a *keeper* behind
and then becomes PROGRAM. The keeper reads the pipe whose other end only the gateway holds: however the gateway ends,
the kernel closes that end, the read returns nothing, and the keeper ends PROGRAM's whole process group, by SIGTERM to
its leader and by SIGKILL to all after GRACE_SECONDS. A byte in the pipe says that PROGRAM has ended: it just goes.

The keeper is forked twice and has a session of its own: it is no child of PROGRAM (vLLM kills its own children when it
ends) and no signal to PROGRAM's group reaches it. It is there before PROGRAM begins, so no moment is unguarded.
"""

from __future__ import annotations

import os
import signal
import sys
import time

POLL_SECONDS = 0.05
FAREWELL = b"."


def main() -> None:
    """Leave the keeper behind and become the program."""
    grace_seconds, command = float(sys.argv[1]), sys.argv[2:]
    group = os.getpid()
    assert os.getpgid(0) == group, "must be started as the leader of a process group of its own"
    if (child := os.fork()) == 0:
        os.setsid()
        if os.fork() == 0:
            keep(group, grace_seconds)
        os._exit(0)
    os.waitpid(child, 0)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # the event loop that started us may have let some through
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    try:
        os.execvp(command[0], command)  # noqa: S606
    except OSError as error:
        os.write(2, f"{command[0]}: {error.strerror}\n".encode())
        os._exit(127)


def keep(group: int, grace_seconds: float) -> None:
    """Wait for the pipe's end, then end the group. Does not return."""
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 1)  # else the gateway never sees the end of PROGRAM's output
    os.dup2(nothing, 2)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.chdir("/")
    if not os.read(0, 1):
        signal_quietly(os.kill, group, signal.SIGTERM)
        until = time.monotonic() + grace_seconds
        while signal_quietly(os.killpg, group, 0) and time.monotonic() < until:
            time.sleep(POLL_SECONDS)
        signal_quietly(os.killpg, group, signal.SIGKILL)
    os._exit(0)


def signal_quietly(send: object, group: int, number: int) -> bool:
    """Whether there was someone to send it to."""
    assert callable(send)
    try:
        send(group, number)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main()
