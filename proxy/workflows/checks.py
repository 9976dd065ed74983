"""Is a member of a submission what it must be? If not, the refusal has its path."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from proxy.errors import RequestFault

if TYPE_CHECKING:
    from collections.abc import Mapping

TEXT_MAX = 256
NUMBER_MAX = 1e12


def only(given: Mapping[str, Any], members: frozenset[str], place: str) -> None:
    if not members.issuperset(given):
        name = next(name for name in given if name not in members)
        refuse(f"{place}{name[:64]}", f"is not known here; known are {', '.join(sorted(members))}", "unknown_member")


def switch(given: Mapping[str, Any], name: str, place: str, *, default: bool = False) -> bool:
    value = given.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        refuse(f"{place}{name}", "must be true or false")
    return value


def text(given: Mapping[str, Any], name: str) -> str | None:
    value = given.get(name)
    if value is not None and not (isinstance(value, str) and 0 < len(value) <= TEXT_MAX and value.isprintable()):
        refuse(name, f"must be 1 to {TEXT_MAX} printable characters")
    return value


def number(given: Mapping[str, Any], name: str, place: str = "") -> float | None:
    value = given.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= NUMBER_MAX:
        refuse(f"{place}{name}", f"must be a number from 0 to {NUMBER_MAX:.0f}")
    return value


def refuse(param: str, what: str, reason: str = "invalid_workflow") -> NoReturn:
    raise RequestFault(400, reason, f"{param} {what}", param=param)
