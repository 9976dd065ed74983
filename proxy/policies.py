"""Which policies are there, which one decides, and how is it changed while calls run?"""

from __future__ import annotations

import logging
import sys
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from scheduler.policies import register

if TYPE_CHECKING:
    from proxy.gateway import Gateway
    from scheduler.actions import PolicyFailed

GROUP = "joulegate.policies"
"""The entry points by which other packages bring policies."""
_log = logging.getLogger("joulegate")
_loaded: dict[str, str] = {}
"""Entry points that were looked at → what was wrong, "" for nothing."""


def load_plugins() -> dict[str, str]:
    """Make the policies of installed packages known, once a process. Returns what could not be loaded, and why: a bad
    package must not keep a gateway that does not use it from starting, so it is said on standard error, and the policy
    is unknown."""
    for point in entry_points(group=GROUP):
        if point.value in _loaded:
            continue
        try:
            register(point.load())
            _loaded[point.value] = ""
        except Exception as error:  # noqa: BLE001  (said; it is other people's code)
            _loaded[point.value] = f"{type(error).__name__}: {error}"
            sys.stderr.write(f"joulegate: the policy {point.name} ({point.value}) cannot be used: {error}\n")
    return {value: why for value, why in _loaded.items() if why}


def report_failed(gateway: Gateway, failed: PolicyFailed) -> None:
    """A policy was relieved: said in the log and on standard error; metrics and /ready read it off the scheduler."""
    gateway.log.event(
        "policy_failed",
        policy=failed.policy,
        where=failed.hook,
        detail=failed.error,
        decides=gateway.scheduler.policy.name,
    )
    _log.error("the policy %s failed in %s", failed.policy, failed.hook, exc_info=gateway.scheduler.deciding.error)
