"""One session at work: sends what is ready through the gateway and takes back what it says."""

from __future__ import annotations

import asyncio
from heapq import heappop, heappush
from time import monotonic
from typing import TYPE_CHECKING, Any

import orjson

from proxy.errors import RequestFault
from proxy.identity import Identity
from proxy.parrot.announce import announce, announce_end
from proxy.parrot.models import CHAT
from proxy.workflows.texts import whole_text
from scheduler.workflow.spec import NodeSpec

if TYPE_CHECKING:
    from proxy.gateway import Gateway
    from proxy.inner import InnerAnswer, InnerCall
    from proxy.parrot.config import ParrotConfig
    from proxy.parrot.forms import Objective
    from proxy.parrot.graph import Generation, Variable
    from proxy.parrot.models import Models
    from proxy.parrot.sessions import Session

STARTS_A_TURN = 32
"""Calls started in one turn of the loop: other people's streams go on between."""
PAUSE_SECONDS_MAX = 60.0
WORDS_MAX = 2_000
AFTER_MAX = 256
"""Producers named with a call; the scheduler has been told of all of them before."""
SOURCE = "parrot"
_TURNED_AWAY = frozenset(
    ("queue_full", "queue_timeout", "buffers_full", "key_concurrency", "key_request_rate", "key_token_rate")
)
"""The gateway is full, or the key has all it may have at once: the call waits for its turn and has not failed."""
_PASSED_ON = frozenset((400, 408, 413, 422, 429, 502, 503, 504))
"""An engine's status that a client is told as it is; others would be taken for words about the session."""


class Work:
    """A session's calls. Its window is like TCP's: it closes where calls are turned away, and opens as others end."""

    def __init__(self, gateway: Gateway, config: ParrotConfig, models: Models, session: Session) -> None:
        self._gateway = gateway
        self._config = config
        self._models = models
        self._session = session
        self._ready: list[tuple[int, float, Generation]] = []
        """A heap by the order of submission; with each since when it has been ready."""
        self._running: dict[Generation, InnerCall] = {}
        self._window = float(config.running_calls)
        self._pause: asyncio.TimerHandle | None = None
        self._pump_planned = False
        self._announced = False
        self._over = False

    def configure(self, config: ParrotConfig) -> None:
        """Other limits after a reload."""
        self._config = config
        self._window = min(self._window, float(config.running_calls))

    def busy(self) -> bool:
        """Something runs, or will."""
        return bool(self._running or self._ready)

    def ask(self, variable: Variable, objective: Objective) -> None:
        """Somebody wants a variable: whatever it needs will run."""
        asked = self._session.graph.ask(variable, objective)
        if asked:
            announce(self._gateway, self._session, tuple(map(_spec, asked)), first=not self._announced)
            self._announced = True
            self.run(self._session.graph.ready_of(asked))

    def run(self, ready: list[Generation]) -> None:
        """These may run now."""
        now = monotonic()
        for generation in ready:
            heappush(self._ready, (generation.number, now, generation))
        self._pump_soon()

    def close(self) -> None:
        """The session is over: its calls leave their engines now."""
        self._over = True
        if self._pause is not None:
            self._pause.cancel()
        running = list(self._running.values())
        self._running.clear()
        self._ready.clear()
        for inner in running:
            inner.cancel()
        if self._announced:
            announce_end(self._gateway, self._session)

    # --- starting ---

    def _pump_soon(self) -> None:
        if self._ready and not self._pump_planned and self._pause is None:
            self._pump_planned = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._pump_planned = False
        for _ in range(STARTS_A_TURN):
            if self._pause is not None or not self._ready or len(self._running) >= int(self._window):
                return
            _, since, generation = heappop(self._ready)
            try:
                self._start(generation, since)
            except RequestFault as fault:
                self._refused(generation, since, fault, fault.retry_after_seconds)
            except Exception as error:  # noqa: BLE001  (reported; whoever waits for the variable is told)
                self._broke(generation, error)
        self._pump_soon()

    def _start(self, generation: Generation, since: float) -> None:
        keys = self._gateway.admission.keys
        if keys.configured and self._session.key_name not in keys.names:
            raise RequestFault(401, "invalid_api_key", "the API key of this session does not exist any more")
        limit = self._gateway.server.limits.body_bytes
        if generation.text_length() > limit:  # before it is made: a template may name a large variable many times
            raise RequestFault(413, "body_too_large", f"the text is over {limit} bytes (limits.body_bytes)")
        model = self._models.choose(generation.models)
        endpoint = self._models.endpoint(model)
        text = generation.text()
        body: dict[str, Any] = {} if model is None else {"model": model}
        if endpoint == CHAT:
            body["messages"] = [{"role": "user", "content": text}]
        else:
            body["prompt"] = text
        body.update(generation.members)
        identity = Identity(
            self._session.workflow_id, SOURCE, generation.name, after=_producers(generation)[:AFTER_MAX]
        )
        self._running[generation] = self._gateway.inner.start(
            self._session.key_name,
            endpoint,
            orjson.dumps(body),
            identity,
            on_done=lambda answer: self._done(generation, since, model, endpoint, answer),
        )

    # --- what comes back ---

    def _done(
        self, generation: Generation, since: float, model: str | None, endpoint: str, answer: InnerAnswer
    ) -> None:
        if self._over:
            return
        del self._running[generation]
        try:
            if answer.ok:
                text = whole_text(endpoint, answer.body)
                if text is None:
                    raise RequestFault(502, "no_text", "the engine's answer has no text in it")
                self._window = min(self._window + 1 / self._window, float(self._config.running_calls))
                self.run(self._session.keep(generation.output, text))
            elif endpoint == CHAT and self._models.learn(model, answer):
                self.run([generation])
            else:
                after = answer.headers.get(b"retry-after", b"")
                self._refused(generation, since, _fault(answer), float(after) if after.isdigit() else None)
        except RequestFault as fault:
            self._fail(generation, fault)
        except Exception as error:  # noqa: BLE001  (reported; whoever waits for the variable is told)
            self._broke(generation, error)
        self._pump_soon()

    def _refused(self, generation: Generation, since: float, fault: RequestFault, retry_after: float | None) -> None:
        """Not now, or never."""
        if fault.reason not in _TURNED_AWAY or monotonic() - since > self._config.turn_seconds:
            self._fail(generation, fault)
            return
        heappush(self._ready, (generation.number, since, generation))
        self._window = float(max(1, len(self._running)))
        if not self._running and self._pause is None:  # else the end of one that runs is the sign to go on
            seconds = min(max(1.0, retry_after or 0.0), PAUSE_SECONDS_MAX)
            self._pause = asyncio.get_running_loop().call_later(seconds, self._go_on)

    def _go_on(self) -> None:
        self._pause = None
        self._pump_soon()

    def _fail(self, generation: Generation, fault: RequestFault) -> None:
        message = f"{generation.name}: {fault.message}"
        self._session.graph.fail(generation.output, RequestFault(fault.status, fault.reason, message))

    def _broke(self, generation: Generation, error: Exception) -> None:
        self._gateway.faults.report("a call of Parrot's API", error)
        self._running.pop(generation, None)
        self._fail(generation, RequestFault(500, "internal", "a fault of the gateway's; its log says more"))


def _producers(generation: Generation) -> tuple[str, ...]:
    names = (source.producer.name for source in generation.sources if source.producer is not None)
    return tuple(dict.fromkeys(names))


def _spec(generation: Generation) -> NodeSpec:
    return NodeSpec(
        generation.name,
        data_from=_producers(generation),
        max_output_tokens=generation.members["max_tokens"],
        prompt_tokens_estimate=generation.text_length() // 4,
        model=generation.models[0] if generation.models else None,
        criterion=generation.objective,
    )


def _fault(answer: InnerAnswer) -> RequestFault:
    """What a variable fails with: the engine's own words, where it has any."""
    reason = answer.fault_reason or "engine_lost"
    status = answer.status if answer.status in _PASSED_ON else 502
    try:
        error = orjson.loads(answer.body)["error"]
        words = error["message"] if isinstance(error, dict) else error
    except (orjson.JSONDecodeError, KeyError, TypeError):
        words = answer.body.decode("utf-8", "replace").strip()
    return RequestFault(status, reason, str(words)[:WORDS_MAX] or f"the call ended without an answer ({reason})")
