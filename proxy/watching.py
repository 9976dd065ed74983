"""Looks at the content of calls that say nothing of a workflow, behind their backs: nobody's answer waits for it."""

from __future__ import annotations

import asyncio
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any

from proxy.answers import ANSWER_BYTES_MAX, answer_texts
from proxy.call import Outcome
from proxy.prompts import segments
from scheduler.events import CallPlaced
from scheduler.workflow.inference import ContentInference

if TYPE_CHECKING:
    from proxy.call import Call
    from proxy.gateway import Gateway

WAITING_MAX = 4_096
"""Prompts and answers that wait to be looked at; further ones are passed over, and counted."""
A_TURN = 8
"""Looked at in one turn of the loop."""


class ContentWatch:
    """The event loop's side of `ContentInference`: what arrives and what is answered waits in one queue, in order."""

    def __init__(self, gateway: Gateway, max_bytes: int) -> None:
        self.inference = ContentInference(max_bytes)
        self.passed_over = 0
        self._gateway = gateway
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[Call, dict[str, Any] | None, list[bytes]]] = deque()

    def arrived(self, call: Call, document: dict[str, Any]) -> bool:
        """A call with its body, read as JSON. False: it is over already, or there is no room and it is passed over."""
        if call.outcome is not None:
            return False
        if len(self._waiting) >= WAITING_MAX:
            self.passed_over += 1
            return False
        self._put(call, document, [])
        return True

    def answered(self, call: Call, body: list[bytes]) -> None:
        """The call has ended; its outcome is set, these are the answer's bytes."""
        self._put(call, None, body)

    def _put(self, call: Call, document: dict[str, Any] | None, body: list[bytes]) -> None:
        if not self._waiting:
            self._loop.call_soon(self._work)
        self._waiting.append((call, document, body))

    def _work(self) -> None:
        waiting = self._waiting
        for _ in range(min(A_TURN, len(waiting))):
            call, document, body = waiting.popleft()
            try:
                if document is not None:
                    self._place(call, document)
                elif call.outcome is Outcome.OK:
                    known = call.response_bytes <= ANSWER_BYTES_MAX
                    texts = answer_texts(b"".join(body), stream=call.stream) if known else ()
                    self.inference.answered(call.id, texts, monotonic())
                else:
                    self.inference.forget(call.id)
            except Exception as error:  # noqa: BLE001  (reported; a forecast is missing, no call is)
                self._gateway.faults.report("content inference", error, request_id=call.request_id)
        if waiting:
            self._loop.call_soon(self._work)

    def _place(self, call: Call, document: dict[str, Any]) -> None:
        said = segments(call.route, document)
        if said:
            placement = self.inference.arrived(call.id, call.key_name, call.model, said, monotonic())
            self._gateway.tell(CallPlaced(call.id, call.key_name, *placement))
