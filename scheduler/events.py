"""What can happen: the scheduler's only input. Times are given beside the event as `now`.

Named tuples, because every call makes several: a frozen dataclass of this size costs five times as much to make.
"""

from __future__ import annotations

from typing import NamedTuple


class EngineSpec(NamedTuple):
    """An engine as configured. `max_in_flight` bounds the calls it is given at once, whatever the policy."""

    name: str
    max_in_flight: int


class KeyQuota(NamedTuple):
    """What one API key may use; None = unlimited. Rates are per minute, the budget per `budget_seconds`."""

    name: str
    max_concurrency: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    token_budget: int | None = None
    budget_seconds: float = 86_400.0


class CallArrived(NamedTuple):
    """A request was read whole, its key and workflow are known. Token counts are estimates or None."""

    call_id: str
    key: str
    model: str | None
    workflow_id: str
    prompt_tokens_estimate: int
    max_output_tokens: int | None = None
    node: str | None = None
    after: tuple[str, ...] = ()
    deadline_ms: float | None = None
    workflow_class: str | None = None
    expected_output_tokens: int | None = None
    priority_hint: int | None = None
    final: bool = False


class FirstToken(NamedTuple):
    """The first byte of an answer's body arrived: for a stream its first event. The engine lives."""

    call_id: str


class CallFinished(NamedTuple):
    """The engine's answer ended as HTTP says it should. Token counts as the engine reported them, else None."""

    call_id: str
    prompt_tokens: int | None
    cached_tokens: int | None
    output_tokens: int | None


class CallFailed(NamedTuple):
    """An attempt failed. `retryable`: nothing of an answer was seen and the fault was a connect error or a reset.

    `engine_fault`: counts against the engine's health (a reset or a timeout does, a stalled client does not).
    """

    call_id: str
    reason: str
    retryable: bool
    engine_fault: bool


class ClientGone(NamedTuple):
    """The client closed its connection before its answer was complete."""

    call_id: str


class EngineStatus(NamedTuple):
    """One probe of an engine. `models` None = not asked this time or not known."""

    engine: str
    healthy: bool
    models: tuple[str, ...] | None = None


class EngineLoad(NamedTuple):
    """What the engine's own /metrics says; None = not reported."""

    engine: str
    running: int | None
    waiting: int | None
    kv_cache_usage: float | None


class EnginesChanged(NamedTuple):
    """The configuration was reloaded: engines missing here get no new calls and are forgotten once empty."""

    engines: tuple[EngineSpec, ...]


class QuotasChanged(NamedTuple):
    """The configuration was reloaded: new quotas; what a key has used already stays used."""

    quotas: tuple[KeyQuota, ...]


class BudgetsRestored(NamedTuple):
    """What an earlier process's keys had used: (key, used tokens, seconds until the period ends) each."""

    budgets: tuple[tuple[str, int, float], ...]


class LimitsChanged(NamedTuple):
    """The configuration was reloaded: new bounds of the queue and of the table of workflows."""

    queue_calls: int
    queue_seconds: float
    workflows: int


class PolicyChanged(NamedTuple):
    """Another policy decides from now on; no call is lost. `options` are the policy's own, already checked."""

    name: str
    options: tuple[tuple[str, object], ...] = ()


class Draining(NamedTuple):
    """The process is going down: no new calls; those that are held are refused, those that run may finish."""


class Tick(NamedTuple):
    """The time asked for by `WakeAt` has come (or any other time: a tick is always allowed)."""


Event = (
    CallArrived
    | FirstToken
    | CallFinished
    | CallFailed
    | ClientGone
    | EngineStatus
    | EngineLoad
    | EnginesChanged
    | QuotasChanged
    | BudgetsRestored
    | LimitsChanged
    | PolicyChanged
    | Draining
    | Tick
)
