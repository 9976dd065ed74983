"""The policies: each says which held call runs now, and where. One file a policy."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import TYPE_CHECKING

from scheduler.policies.base import Policy
from scheduler.policies.fifo import Fifo
from scheduler.policies.joule import Joule
from scheduler.policies.las import Las
from scheduler.policies.options import Option, completed, problems
from scheduler.policies.parrot import Parrot
from scheduler.policies.passthrough import Passthrough

if TYPE_CHECKING:
    from collections.abc import Mapping

POLICIES: dict[str, type[Policy]] = {policy.name: policy for policy in (Passthrough, Fifo, Parrot, Las, Joule)}
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")


def unknown_policy(name: str) -> str:
    """What to say of a name that no policy has."""
    near = get_close_matches(name, POLICIES, n=1)
    hint = f'did you mean "{near[0]}"? ' if near else ""
    return f"unknown policy {name[:64]!r}; {hint}there are {', '.join(POLICIES)}"


def option_problems(name: str, options: Mapping[str, object]) -> list[tuple[str, str]]:
    """(option, what is wrong with it and the way out) for each option that this policy does not take."""
    return problems(name, POLICIES[name].options, options)


def make_policy(name: str, options: Mapping[str, object]) -> Policy:
    """The policy of that name. KeyError for an unknown name, ValueError for options it does not take."""
    kind = POLICIES[name]
    if found := problems(name, kind.options, options):
        raise ValueError("; ".join(f"{option}: {message}" for option, message in found))
    return kind(completed(kind.options, options))


def register(kind: object) -> type[Policy]:
    """Make a policy of somebody else's known by its name. Raises ValueError if it is none, or its name is taken."""
    if not (isinstance(kind, type) and issubclass(kind, Policy)):
        raise ValueError(f"{kind!r} is no class derived from scheduler.policies.base.Policy")
    name = getattr(kind, "name", None)
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise ValueError(f"its name must be up to 64 lower-case letters, digits, _ and -, not {name!r}")
    if POLICIES.get(name, kind) is not kind:
        raise ValueError(f"there is a policy {name!r} already; give it another name")
    options: Mapping[str, object] = kind.options
    for option, is_what in options.items():
        if option == "name" or not (isinstance(is_what, Option) and is_what.takes(is_what.default)):
            raise ValueError(f"option {option!r} must be an Option that takes its own default, and not be called name")
    if missing := sorted(kind.__abstractmethods__):
        raise ValueError(f"it lacks {', '.join(missing)}")
    POLICIES[name] = kind
    return kind
