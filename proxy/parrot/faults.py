"""How are requests in Parrot's API refused?"""

from __future__ import annotations

from proxy.errors import RequestFault


def wrong(path: str, what: str, status: int = 400, reason: str = "invalid_request") -> RequestFault:
    """What a field holds cannot be taken; the message begins with where it stands."""
    return RequestFault(status, reason, f"{path}: {what}", param=path)


def unknown_session() -> RequestFault:
    """The same words whether it never was, was deleted, or belongs to another key."""
    return RequestFault(404, "unknown_session", "session_id: there is no such session", param="session_id")


def unknown_variable(path: str) -> RequestFault:
    """The same words whether it never was or belongs to another session."""
    return wrong(path, "there is no such variable in this session", 404, "unknown_variable")
