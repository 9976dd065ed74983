"""What can happen: the scheduler's only input. Times are given beside the event as `now`.

Named tuples, because every call makes several: a frozen dataclass of this size costs five times as much to make.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from scheduler.parking_events import EngineAsleep, EngineParked, EngineWoken

if TYPE_CHECKING:
    from typing import Any, Literal

    from scheduler.energy.caps.view import CardLimits
    from scheduler.energy.model.prior import Prior
    from scheduler.energy.window import Counters, MeterSample
    from scheduler.workflow.spec import NodeSpec, WorkflowSpec


class EngineSpec(NamedTuple):
    """An engine as configured. `max_in_flight` bounds the calls it is given at once, whatever the policy."""

    name: str
    max_in_flight: int
    park: bool = False
    """It may be put to sleep while there is nothing for it to do."""
    park_idle_seconds: float = 300.0
    wake_seconds: float = 10.0
    """Expected of waking it, until it was seen."""


class KeyQuota(NamedTuple):
    """What one API key may use; None = unlimited. Rates are per minute, the budget per `budget_seconds`."""

    name: str
    max_concurrency: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    token_budget: int | None = None
    budget_seconds: float = 86_400.0
    weight: float = 1.0
    """Of its work, where calls of several keys wait for an engine."""


class CallArrived(NamedTuple):
    """A request was read whole, its key and workflow are known. Token counts are estimates or None.

    From `node` on all is what the client said, in one scheme (`identity_source`); absent fields have their defaults.
    """

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
    identity_source: str = "none"
    parent_id: str | None = None
    """The agent that started this one: another node, or the workflow's id for its main agent."""
    energy_budget_joules: float | None = None
    strict_priority: int | None = None
    """A tier of the queue, higher first, before any other order."""
    speculative_prefill: bool = False
    """The workflow's next turn may be prefilled ahead of its coming."""
    watched: bool = False
    """It says nothing of a workflow; its content will be looked at, and `CallPlaced` follows."""
    streamed: bool = False
    """Its answer comes token by token."""


class AnsweredHere(NamedTuple):
    """A request that the gateway answers itself, at once. It counts against its key as a call does, and is refused
    (`Reject`) where a call would be; else it is over with this event."""

    call_id: str
    key: str


class FirstToken(NamedTuple):
    """The first byte of an answer's body arrived: for a stream its first event. The engine lives."""

    call_id: str


class CallFinished(NamedTuple):
    """The engine's answer ended as HTTP says it should. Token counts as the engine reported them, else None.

    `output_tokens_seen`: where it reported none, so many events of a stream were seen. The key's account takes each for
    a token at least: an estimate, which the ledger does not book. `status`: of the answer; an error's is whole, too.
    `has_error`: a stream of status 200 in which the engine said that it failed.
    """

    call_id: str
    prompt_tokens: int | None
    cached_tokens: int | None
    output_tokens: int | None
    output_tokens_seen: int = 0
    status: int = 200
    has_error: bool = False


class CallFailed(NamedTuple):
    """An attempt failed, or the time of a call is up, wherever it stands: held calls too.

    `retryable`: nothing of an answer was seen and the fault was a connect error or a reset, or probes have given
    the engine up. `engine_fault`: counts against the engine's health. Faults of the connection do (refused, reset,
    no HTTP); timeouts do not, since a long answer says nothing about the engine, and neither does a client that
    stalls. `output_tokens_seen`: see CallFinished.
    """

    call_id: str
    reason: str
    retryable: bool
    engine_fault: bool
    output_tokens_seen: int = 0


class ClientGone(NamedTuple):
    """The client closed its connection before its answer was complete. `output_tokens_seen` as in CallFinished."""

    call_id: str
    output_tokens_seen: int = 0


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


class BreakersChanged(NamedTuple):
    """The configuration was reloaded: new rule for the engines' breakers, those that exist and those to come."""

    failures_to_open: int
    open_seconds: float


class PolicyChanged(NamedTuple):
    """Another policy decides from now on; no call is lost. `options` are the policy's own, already checked."""

    name: str
    options: tuple[tuple[str, object], ...] = ()


class WorkflowDeclared(NamedTuple):
    """A client says beforehand what a workflow consists of. `call_id` names the request that said so: it is refused
    (`Reject`) if the graph is not possible, or over the limits; then nothing of it is kept."""

    call_id: str
    spec: WorkflowSpec


class NodesAdded(NamedTuple):
    """A workflow that runs here grows by nodes that come behind those that are there. What cannot be added is left out
    as a whole: their calls are then placed as they come."""

    key: str
    workflow_id: str
    nodes: tuple[NodeSpec, ...]


class NodeEnded(NamedTuple):
    """What no call's end says: a tool has ended, or (`failed`) a node will not be tried again, with the reason."""

    key: str
    workflow_id: str
    node: str
    failed: bool
    reason: str | None = None


class WorkflowEnded(NamedTuple):
    """Nothing more of it will come. `outcome`: completed, failed or cancelled. Its running calls have ends of their
    own."""

    key: str
    workflow_id: str
    outcome: str


class CallPlaced(NamedTuple):
    """What the content of a call that says nothing of a workflow tells of its place. It comes behind CallArrived, at
    times behind the call's end. Other fields: see scheduler.workflow.inference.Placement."""

    call_id: str
    key: str
    turn_of: str | None
    turn_confidence: float
    data_from: tuple[tuple[str, float], ...]
    fingerprint: str
    prefix: tuple[int, ...]


class MeterRead(NamedTuple):
    """The meters of an engine's devices, all together, were read."""

    engine: str
    sample: MeterSample


class EngineCounted(NamedTuple):
    """The engine's own counters, and beside them how many tokens each stream from it has shown so far."""

    engine: str
    counters: Counters
    progress: tuple[tuple[str, int], ...] = ()


class EnergyPrior(NamedTuple):
    """What is believed of an engine's time and energy before it is seen at work; `state`: what an earlier process had
    learned. `simulated`: the engine or its meter is the twin's."""

    engine: str
    prior: Prior
    state: dict[str, Any] | None = None
    simulated: bool = False


class JouleQuotasChanged(NamedTuple):
    """The configuration was reloaded: new budgets of joules, (key, joules, seconds of a period) each."""

    quotas: tuple[tuple[str, float, float], ...]


class JouleBudgetsRestored(NamedTuple):
    """What an earlier process's keys had used: (key, used joules, seconds until the period ends) each."""

    budgets: tuple[tuple[str, float, float], ...]


class CardsRead(NamedTuple):
    """The limits of an engine's GPUs are these now: told when they are first read and whenever they have changed.

    In between each `MeterRead` says as much as that they have not.
    """

    engine: str
    gpus: int
    limits: CardLimits | None
    """None: they cannot be read (any more)."""
    at: float
    """When they were read, in the core's seconds."""
    may_set: bool = False
    """The operator has named them, and they can be set."""
    settle_seconds: float = 1.0
    """Until a new limit is in force."""
    sm_clock_max_mhz: float | None = None


class CapApplied(NamedTuple):
    """What became of a `SetCap` or `SetClock`, or (`by` other) what somebody else did. Watts of each GPU; of several,
    the strictest.

    The two watts and what was asked for are three numbers: a limit is clamped to what the card allows, and the driver
    may still say something else.
    """

    engine: str
    requested: float | None
    """As the action had it; None where it was not ours."""
    clamped: float | None
    applied: float | None
    """Read back from the driver; None: it failed, and the limit is what it was."""
    at: float
    by: Literal["us", "other"] = "us"
    detail: str = ""


class CapResumed(NamedTuple):
    """An operator says that we may set the limits of this engine's GPUs again, after a yield or too many failures."""

    engine: str


class ExperimentStarted(NamedTuple):
    """An experiment takes the policy's place. `definition` as its `as_json` has it, checked; `state`: what an earlier
    process had saved of it: it goes on in the block that is due now."""

    definition: dict[str, Any]
    wall_seconds: float
    """Unix seconds, times `pace`."""
    state: dict[str, Any] | None = None
    pace: float = 1.0
    """Seconds of the experiment in one of the events' clock: above 1 before a twin that is as much faster."""


class ExperimentStopped(NamedTuple):
    """An operator, or the gateway, ends it: back to the control at once. Of no effect on one that does not run."""

    experiment: str
    why: str


class ExperimentTick(NamedTuple):
    """To be told once a second and at each edge of the running experiment's blocks."""

    wall_seconds: float
    """Unix seconds, times the pace: where they move against the events' clock, a block does not count."""


class PrefixCacheReset(NamedTuple):
    """What became of a `ResetPrefixCache`."""

    engine: str
    done: bool
    detail: str = ""
    """Why not."""


class Draining(NamedTuple):
    """The process is going down: no new calls; those that are held are refused, those that run may finish."""


class Tick(NamedTuple):
    """The time asked for by `WakeAt` has come (or any other time: a tick is always allowed)."""


Event = (
    CallArrived
    | AnsweredHere
    | FirstToken
    | CallFinished
    | CallFailed
    | ClientGone
    | EngineStatus
    | EngineLoad
    | EngineAsleep
    | EngineParked
    | EngineWoken
    | EnginesChanged
    | QuotasChanged
    | BudgetsRestored
    | LimitsChanged
    | BreakersChanged
    | PolicyChanged
    | WorkflowDeclared
    | NodesAdded
    | NodeEnded
    | WorkflowEnded
    | CallPlaced
    | MeterRead
    | EngineCounted
    | EnergyPrior
    | JouleQuotasChanged
    | JouleBudgetsRestored
    | CardsRead
    | CapApplied
    | CapResumed
    | ExperimentStarted
    | ExperimentStopped
    | ExperimentTick
    | PrefixCacheReset
    | Draining
    | Tick
)
