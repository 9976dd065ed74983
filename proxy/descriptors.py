"""How many files and sockets may this process have open, and do the limits of the configuration fit in there?"""

from __future__ import annotations

import contextlib
import resource
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.config import Config

BESIDE_CONNECTIONS = 64
"""Log, listening sockets, the control plane, probes, the event loop's own."""


def raise_limit() -> int:
    """Take as many as this process may have without asking anybody; returns how many that is.

    The soft limit is 1024 on most systems, for the sake of old programs that call select(); ours do not.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # (macOS has a limit of its own below "unlimited")
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 40 if soft == resource.RLIM_INFINITY else soft


def needed(config: Config) -> int:
    """What the limits of the configuration can come to."""
    to_engines = sum(engine.max_connections for engine in config.engines)
    return config.limits.client_connections + to_engines + BESIDE_CONNECTIONS


def warn(config: Config, limit: int, log_event: Callable[..., None]) -> None:
    """Say so if the limits of the configuration are more than this process may have open."""
    if (count := needed(config)) > limit:
        log_event(
            "few_file_descriptors",
            limit=limit,
            needed=count,
            detail="limits.client_connections and the engines' max_connections need more open files (ulimit -Hn)",
        )
