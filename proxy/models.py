"""GET /v1/models of several engines: each model once, its entry as its engine wrote it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from proxy.call import Outcome
from scheduler.events import AnsweredHere

if TYPE_CHECKING:
    from proxy.call import Call
    from proxy.gateway import Gateway
    from proxy.http.peers import Client
    from proxy.http.request import Request


def answer_models(gateway: Gateway, client: Client, request: Request, call: Call) -> None:
    """The scheduler is asked as for a call: keys' limits hold, and without any engine it is refused as calls are."""
    if (refusal := gateway.ask(AnsweredHere(call.id, call.key_name), call.id)) is not None:
        gateway.refuse_unadmitted(client, request, call, refusal)
        return
    entries: dict[str, dict[str, Any]] = {}
    for engine in gateway.engines.values():
        for entry in engine.models or ():
            entries.setdefault(entry["id"], entry)
    body = orjson.dumps({"object": "list", "data": list(entries.values())})
    gateway.finish_unscheduled(request, call, Outcome.OK, 200, None)
    keep_alive = request.keep_alive and not gateway.server.draining
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%b%b\r\n" % (
        len(body),
        b"x-request-id: %b\r\n%b" % (call.request_id.encode("latin-1"), gateway.own_answer_headers(call, None)),
        b"" if keep_alive else b"connection: close\r\n",
    )
    client.write(head if request.method == b"HEAD" else head + body)
    client.answered(keep_alive=keep_alive)
