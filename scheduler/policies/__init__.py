"""The policies: each says which held call runs now, and where. One file a policy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scheduler.policies.fifo import Fifo
from scheduler.policies.joule import Joule
from scheduler.policies.passthrough import Passthrough

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scheduler.policies.base import Policy

POLICIES: dict[str, type[Policy]] = {policy.name: policy for policy in (Passthrough, Fifo, Joule)}


def make_policy(name: str, options: Mapping[str, object]) -> Policy:
    """The policy of that name. KeyError for an unknown name, ValueError for options it does not take."""
    kind = POLICIES[name]
    if problems := kind.options_errors(options):
        raise ValueError("; ".join(f"{option}: {message}" for option, message in problems))
    return kind(options)
