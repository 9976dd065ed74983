"""Submitted workflows at work: ready nodes go through the gateway, some failures are tried again, limits are kept."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, Any

import orjson

from proxy.energy.answer import UNAVAILABLE, usage_members
from proxy.errors import RequestFault
from proxy.identity import Identity
from proxy.jsonedit import edit_members
from proxy.workflows.run import LINKED_A_TURN
from proxy.workflows.texts import DeltaReader, whole_text
from proxy.workflows.turns import Turns

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.gateway import Gateway
    from proxy.inner import InnerAnswer
    from proxy.workflows.config import WorkflowsConfig
    from proxy.workflows.run import NodeRun, WorkflowRun

STARTS_A_TURN = 8
"""Calls started in one turn of the loop: other people's streams go on between."""
BACKOFF_SECONDS = (0.25, 10.0)
RETRY_AFTER_MAX = 60.0
"""However long an engine says that one should wait."""
MESSAGE_CHARACTERS = 2_000
BAD_GATEWAY = 502
_STREAM = {"stream": b"true"}
_STREAM_WITH_USAGE = {**_STREAM, "stream_options": b'{"include_usage":true}'}
_KEY_FULL = frozenset(("key_concurrency", "key_request_rate", "key_token_rate"))
_TURNED_AWAY = _KEY_FULL | {"queue_full", "queue_timeout", "buffers_full"}
"""The gateway is full, or the key has all it may have at once: the node waits for its turn and has not failed. What
else is ready waits as well, or thousands of nodes would ask again and again."""
_FINAL = frozenset(("draining", "workflow_joule_budget", "energy_unavailable"))
"""Trying again does not help."""
_ALL = ""
"""In place of a key's name: the gateway is full."""


class Runner:
    """`on_over` hears of each run that ends."""

    def __init__(self, gateway: Gateway, config: WorkflowsConfig, on_over: Callable[[WorkflowRun], None]) -> None:
        self._gateway = gateway
        self.config = config
        self._on_over = on_over
        self._loop = asyncio.get_running_loop()
        self._turns = Turns()
        self._pausing: set[str] = set()
        """Keys (or `_ALL`) that were turned away a moment ago."""
        self._pumping = False
        self._timers: set[asyncio.TimerHandle] = set()
        self.running = 0
        """Calls under way."""
        self._running_of_key: dict[str, int] = {}

    def begin(self, run: WorkflowRun) -> None:
        """Start working on it: at once if it is small, else in later turns of the loop."""
        if run.unfinished > LINKED_A_TURN:
            self._loop.call_soon(self._safely, run, self._begin, run)
        else:
            self._begin(run)

    def begin_now(self, run: WorkflowRun) -> None:
        """Somebody asks for more of it than that it was taken."""
        if not run.begun:
            run.begin(monotonic())
            self.go_on(run)

    def _begin(self, run: WorkflowRun) -> None:
        if run.begun:  # or over
            return
        if run.linked():
            self.begin_now(run)
        else:
            self._loop.call_soon(self._safely, run, self._begin, run)

    def go_on(self, run: WorkflowRun) -> None:
        """Something of this run may have become ready, or it is over."""
        if run.over:
            self._on_over(run)
            return
        if run.untold and not run.telling:
            run.telling = True
            self._loop.call_soon(self._safely, run, self._tell_on, run)
        if run.ready:
            self._turns.add(run)
            self._pump_soon()

    def _tell_on(self, run: WorkflowRun) -> None:
        run.telling = False
        if not run.over:
            run.tell_on(monotonic())
            self.go_on(run)

    def cancel(self, run: WorkflowRun) -> None:
        """End a run: its calls leave their engines now."""
        if run.over:
            return
        calls = run.calls
        try:
            run.cancel(monotonic())
        finally:
            self._turns.drop(run)
            for inner in calls:
                inner.cancel()
                self._ended(run.key_name)
            self._on_over(run)

    def close(self) -> None:
        """No timers are left."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()

    # --- starting ---

    def _pump_soon(self) -> None:
        if not self._pumping:
            self._pumping = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pumping = False
        for _ in range(STARTS_A_TURN):
            if self.running >= self.config.running_calls or _ALL in self._pausing:
                break
            run = self._turns.take(self._may_start)
            if run is None:
                break
            if run.ready:
                self._safely(run, self._start, run, run.ready.popleft())
            if run.ready:
                self._turns.add(run)
        else:
            self._pump_soon()

    def _may_start(self, key_name: str) -> bool:
        if key_name in self._pausing:
            return False
        use = self._gateway.scheduler.quotas.by_key.get(key_name)
        limit = use.quota.max_concurrency if use is not None else None
        return limit is None or self._running_of_key.get(key_name, 0) < limit

    def _start(self, run: WorkflowRun, node: NodeRun) -> None:
        request, endpoint, submission = node.request, node.endpoint, run.submission
        assert request is not None
        try:
            if isinstance(request, bytes):
                body = request
            else:
                body = request.fill(run.outputs_of(node), self._gateway.server.limits.body_bytes)
        except RequestFault as fault:
            node.attempts += 1
            self._failed(run, node, fault.status, fault.reason, fault.message, None)
            return
        reader = None
        if submission.stream:
            reader = DeltaReader(endpoint)
            body = edit_members(body, (), _STREAM if endpoint == "/v1/responses" else _STREAM_WITH_USAGE)
        identity = Identity(run.id, "joulegate-workflow", node.spec.id, workflow_class=submission.workflow_class)
        node.attempts += 1
        self.running += 1
        self._running_of_key[run.key_name] = self._running_of_key.get(run.key_name, 0) + 1
        try:
            node.inner = self._gateway.inner.start(
                run.key_name,
                endpoint,
                body,
                identity,
                on_done=lambda answer: self._safely(run, self._done, run, node, reader, answer),
                on_body=None
                if reader is None
                else lambda data: self._safely(run, self._events, run, node, reader, data),
                on_sent=lambda: self._safely(run, run.sent, node),
                fields=run.trace_fields,
            )
        except RequestFault as fault:
            self._ended(run.key_name)
            self._failed(run, node, fault.status, fault.reason, fault.message, fault.retry_after_seconds)
        except BaseException:
            self._ended(run.key_name)
            raise
        if run.over and node.inner is not None:  # cancelled by what it was told meanwhile
            inner, node.inner = node.inner, None
            inner.cancel()
            self._ended(run.key_name)

    # --- what comes back ---

    def _events(self, run: WorkflowRun, node: NodeRun, reader: DeltaReader, events: bytes) -> None:
        if text := reader.feed(events):
            run.delta(node, text)
        if node.said > self._gateway.inner.answer_bytes_max and node.inner is not None:
            node.inner.cancel()
            self._ended(run.key_name)
            limit = self._gateway.inner.answer_bytes_max
            message = f"over {limit} bytes (limits.inner_answer_bytes)"
            self._failed(run, node, BAD_GATEWAY, "answer_too_large", message, None)

    def _done(self, run: WorkflowRun, node: NodeRun, reader: DeltaReader | None, answer: InnerAnswer) -> None:
        self._ended(run.key_name)
        if run.over:
            return
        if not answer.ok:
            status, reason, message = _words_of(answer)
            after = answer.headers.get(b"retry-after", b"")
            self._failed(run, node, status, reason, message, float(after) if after.isdigit() else None)
            return
        if reader is None:
            text = whole_text(node.endpoint, answer.body)
        elif reader.error is not None:
            reason = (answer.call.reason if answer.call is not None else None) or "engine_error"
            self._failed(run, node, BAD_GATEWAY, *_engine_words(reader.error, reason), None)
            return
        else:
            text = "".join(node.pieces) or reader.rest()
        if text is None:
            self._failed(run, node, BAD_GATEWAY, "no_text", "the engine's answer has no text in it", None)
            return
        call = answer.call
        usage = None
        if call is not None:
            names = ("prompt_tokens", "cached_tokens", "output_tokens")
            usage = {name: getattr(call, name) for name in names}
            told = usage_members(self._gateway.scheduler.energy.bill.preliminary(call.id))
            node.energy = told or dict(UNAVAILABLE)
        run.finished(node, text, usage, monotonic())
        self.go_on(run)

    def _safely(self, run: WorkflowRun, what: Callable[..., None], *of: Any) -> None:
        """A fault of ours ends this run, whose client would wait for ever, and nothing else."""
        try:
            what(*of)
        except Exception as error:  # noqa: BLE001  (reported; the run is cancelled)
            self._gateway.faults.report(f"workflow {run.id}", error)
            try:
                self._on_over(run) if run.over else self.cancel(run)
            except Exception as again:  # noqa: BLE001  (reported; all is ended by now)
                self._gateway.faults.report(f"cancelling workflow {run.id}", again)

    def _ended(self, key_name: str) -> None:
        self.running -= 1
        left = self._running_of_key[key_name] - 1
        if left:
            self._running_of_key[key_name] = left
        else:
            del self._running_of_key[key_name]
        if self._turns:
            self._pump_soon()

    # --- trying again ---

    def _failed(
        self, run: WorkflowRun, node: NodeRun, status: int, reason: str, message: str, retry_after: float | None
    ) -> None:
        if run.over:
            return
        now = monotonic()
        assert node.ready_at is not None
        turned_away = reason in _TURNED_AWAY and now - node.ready_at < self.config.turn_seconds
        own_fault = (400 <= status < 500 and status not in (408, 429)) or reason in _FINAL
        if not turned_away and (own_fault or node.attempts > node.retry):
            run.failed(node, {"status": status or None, "code": reason, "message": message}, now)
            self.go_on(run)
            return
        shortest, longest = BACKOFF_SECONDS
        asked = min(retry_after or 0.0, RETRY_AFTER_MAX)
        if turned_away:
            node.attempts -= 1
            run.held_back(node)
            run.ready.appendleft(node)
            self.go_on(run)
            self._pause(run.key_name if reason in _KEY_FULL else _ALL, max(asked, shortest))
            return
        run.retrying(node)

        def again() -> None:
            if not run.over:
                run.ready.append(node)
                self.go_on(run)

        self._later(max(asked, min(longest, shortest * 2 ** min(node.attempts, 8))), again)

    def _pause(self, whose: str, seconds: float) -> None:
        """Start nothing of this key, or of all, for a moment."""
        if whose in self._pausing:
            return
        self._pausing.add(whose)

        def over() -> None:
            self._pausing.discard(whose)
            self._pump_soon()

        self._later(seconds, over)

    def _later(self, seconds: float, what: Callable[[], None]) -> None:
        def now() -> None:
            self._timers.discard(timer)
            what()

        timer = self._loop.call_later(seconds, now)
        self._timers.add(timer)


def _words_of(answer: InnerAnswer) -> tuple[int, str, str]:
    """Status, machine-readable word and message of a failure: the engine's own words, where it has any."""
    reason = answer.fault_reason or "engine_lost"
    status = answer.status if not 0 < answer.status < 400 else BAD_GATEWAY  # it began well and was no answer after all
    try:
        error = orjson.loads(answer.body)["error"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        message = answer.body[:MESSAGE_CHARACTERS].decode("utf-8", "replace").strip()
        return status, reason, message or f"the call ended without a whole answer ({reason})"
    return (status, *_engine_words(error, reason))


def _engine_words(error: Any, reason: str) -> tuple[str, str]:
    message = error.get("message") if isinstance(error, dict) else error
    return reason, str(message)[:MESSAGE_CHARACTERS]
