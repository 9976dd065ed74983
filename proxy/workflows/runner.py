"""Submitted workflows at work: ready nodes go through the gateway, some failures are tried again, limits are kept."""

from __future__ import annotations

import asyncio
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any

import orjson

from proxy.errors import RequestFault
from proxy.identity import Identity
from proxy.jsonedit import edit_members
from proxy.workflows.texts import DeltaReader, whole_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.gateway import Gateway
    from proxy.inner import InnerAnswer
    from proxy.workflows.config import WorkflowsConfig
    from proxy.workflows.run import NodeRun, WorkflowRun

STARTS_A_TURN = 32
"""Calls started in one turn of the loop: other people's streams go on between."""
BACKOFF_SECONDS = (0.25, 10.0)
MESSAGE_CHARACTERS = 2_000
_STREAM = {"stream": b"true"}
_STREAM_WITH_USAGE = {**_STREAM, "stream_options": b'{"include_usage":true}'}
_TURNED_AWAY = frozenset(
    ("queue_full", "queue_timeout", "buffers_full", "key_concurrency", "key_request_rate", "key_token_rate")
)
"""The gateway is full, or the key has all it may have at once: the node waits for its turn and has not failed."""


class Runner:
    """`on_over` hears of each run that ends."""

    def __init__(self, gateway: Gateway, config: WorkflowsConfig, on_over: Callable[[WorkflowRun], None]) -> None:
        self._gateway = gateway
        self.config = config
        self._on_over = on_over
        self._loop = asyncio.get_running_loop()
        self._turns: deque[WorkflowRun] = deque()
        """Runs with ready nodes, each in its turn, so that a wide one does not keep the others waiting."""
        self._pumping = False
        self._timers: set[asyncio.TimerHandle] = set()
        self.running = 0
        """Calls under way."""
        self._running_of_key: dict[str, int] = {}

    def begin(self, run: WorkflowRun) -> None:
        """Start working on it."""
        run.begin(monotonic())
        self.go_on(run)

    def go_on(self, run: WorkflowRun) -> None:
        """Something of this run may have become ready, or it is over."""
        if run.over:
            self._on_over(run)
        elif run.ready and run not in self._turns:
            self._turns.append(run)
            self._pump_soon()

    def cancel(self, run: WorkflowRun) -> None:
        """End a run: its calls leave their engines now."""
        if run.over:
            return
        calls = run.cancel(monotonic())
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
        passed_over = 0
        for _ in range(STARTS_A_TURN):
            if not self._turns or self.running >= self.config.running_calls or passed_over >= len(self._turns):
                break
            run = self._turns.popleft()
            if self._running_of_key.get(run.key_name, 0) >= self._key_limit(run.key_name):
                self._turns.append(run)
                passed_over += 1
                continue
            passed_over = 0
            if run.ready:
                self._start(run, run.ready.popleft())
            if run.ready:
                self._turns.append(run)
        else:
            self._pump_soon()

    def _key_limit(self, key_name: str) -> int:
        use = self._gateway.scheduler.quotas.by_key.get(key_name)
        limit = use.quota.max_concurrency if use is not None else None
        return limit if limit is not None else self.config.running_calls

    def _start(self, run: WorkflowRun, node: NodeRun) -> None:
        plan, submission = node.plan, run.submission
        assert plan.request is not None
        body = plan.request.fill(run.outputs_of(plan))
        endpoint = plan.endpoint
        reader = None
        if submission.stream:
            reader = DeltaReader(endpoint)
            body = edit_members(body, (), _STREAM if endpoint == "/v1/responses" else _STREAM_WITH_USAGE)
        identity = Identity(run.id, "joulegate-workflow", plan.id, workflow_class=submission.workflow_class)
        node.attempts += 1
        self.running += 1
        self._running_of_key[run.key_name] = self._running_of_key.get(run.key_name, 0) + 1
        try:
            node.inner = self._gateway.inner.start(
                run.key_name,
                endpoint,
                body,
                identity,
                on_done=lambda answer: self._safely(run, lambda: self._done(run, node, reader, answer)),
                on_body=None
                if reader is None
                else lambda events: self._safely(run, lambda: self._events(run, node, reader, events)),
                on_sent=lambda: self._safely(run, lambda: run.sent(node)),
                fields=run.trace_fields,
            )
        except RequestFault as fault:
            self._ended(run.key_name)
            self._failed(run, node, fault.status, fault.reason, fault.message, fault.retry_after_seconds)

    # --- what comes back ---

    def _events(self, run: WorkflowRun, node: NodeRun, reader: DeltaReader, events: bytes) -> None:
        if text := reader.feed(events):
            run.delta(node, text)
        if sum(map(len, node.pieces)) > self._gateway.inner.answer_bytes_max and node.inner is not None:
            node.inner.cancel()
            self._ended(run.key_name)
            limit = self._gateway.inner.answer_bytes_max
            self._failed(run, node, 502, "answer_too_large", f"over {limit} bytes (limits.inner_answer_bytes)", None)

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
            text = whole_text(node.plan.endpoint, answer.body)
        elif reader.error is not None:
            self._failed(run, node, answer.status, *_engine_words(reader.error, "engine_error"), None)
            return
        else:
            text = "".join(node.pieces) or reader.rest()
        if text is None:
            self._failed(run, node, answer.status, "no_text", "the engine's answer has no text in it", None)
            return
        call = answer.call
        usage = None
        if call is not None:
            names = ("prompt_tokens", "cached_tokens", "output_tokens")
            usage = {name: getattr(call, name) for name in names}
        run.finished(node, text, usage, monotonic())
        self.go_on(run)

    def _safely(self, run: WorkflowRun, what: Callable[[], None]) -> None:
        """A fault of ours ends this run, whose client would wait for ever, and nothing else."""
        try:
            what()
        except Exception as error:  # noqa: BLE001  (reported; the run is cancelled)
            self._gateway.faults.report(f"workflow {run.id}", error)
            self.cancel(run)

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
        own_fault = 400 <= status < 500 and status not in (408, 429) and not turned_away
        if turned_away:
            node.attempts -= 1
        if not turned_away and (own_fault or node.attempts > node.plan.retry):
            run.failed(node, {"status": status or None, "code": reason, "message": message}, now)
            self.go_on(run)
            return
        run.retrying(node)
        shortest, longest = BACKOFF_SECONDS
        pause = max(retry_after or 0.0, min(longest, shortest * 2 ** min(node.attempts, 8)))
        timer: asyncio.TimerHandle | None = None

        def again() -> None:
            assert timer is not None
            self._timers.discard(timer)
            if not run.over:
                run.ready.append(node)
                self.go_on(run)

        timer = self._loop.call_later(pause, again)
        self._timers.add(timer)


def _words_of(answer: InnerAnswer) -> tuple[int, str, str]:
    """Status, machine-readable word and message of a failure: the engine's own words, where it has any."""
    reason = answer.fault_reason or "engine_lost"
    try:
        error = orjson.loads(answer.body)["error"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        message = answer.body[:MESSAGE_CHARACTERS].decode("utf-8", "replace").strip()
        return answer.status, reason, message or f"the call ended without an answer ({reason})"
    return (answer.status, *_engine_words(error, reason))


def _engine_words(error: Any, reason: str) -> tuple[str, str]:
    message = error.get("message") if isinstance(error, dict) else error
    return reason, str(message)[:MESSAGE_CHARACTERS]
