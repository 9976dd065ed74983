"""Becomes the given command, which then ends when its parent does: `-m backends.vllm.launch PARENT_PID COMMAND…`.

Linux' PR_SET_PDEATHSIG sends SIGTERM when the parent dies in whatever way, `kill -9` included, and stays set over exec.
A step of its own, because between fork and exec of a process with threads nothing of this may be done.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Set the signal, see that the parent still lives, and exec."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it died before the signal was set
        raise SystemExit(1)
    try:
        os.execvp(command[0], command)  # noqa: S606  # no shell is what is wanted
    except OSError as error:
        raise SystemExit(f"{command[0]}: {error.strerror}") from None


if __name__ == "__main__":
    main()
