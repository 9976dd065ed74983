"""What is a client told of an attempt at an engine that failed?"""

from __future__ import annotations

from backends.vllm.pool import GATEWAY_FAULT, NO_DESCRIPTORS
from proxy.errors import RequestFault

_LOST = {
    "engine_reset": "the engine closed the connection before its answer was complete",
    "engine_protocol": "the engine sent something that is not an HTTP answer",
}
_OURS = {
    NO_DESCRIPTORS: (503, "the gateway may open no more connections (ulimit -n); try again later"),
    GATEWAY_FAULT: (500, "a fault of the gateway's; its log says more"),
}


def our_fault(reason: str) -> RequestFault | None:
    """Of an attempt that failed for want of something here: no engine is to blame, and another would not help."""
    if reason not in _OURS:
        return None
    status, message = _OURS[reason]
    return RequestFault(status, reason, message)


def lost(reason: str) -> RequestFault:
    """Of an answer that an engine began and did not end."""
    return RequestFault(502, reason, _LOST[reason])
