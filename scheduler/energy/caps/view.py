"""What is the controller told of an engine? Its cards, its load, what its calls saw; and what a model must answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from scheduler.energy.caps.answers import Answers
    from scheduler.energy.caps.rules import EngineMode
    from scheduler.energy.model.means import Means
    from scheduler.energy.model.results import Interval, WindowCost
    from scheduler.energy.model.steps import StepPrices
    from scheduler.energy.work import Work


class CostModel(Protocol):
    """The live model of one engine, as far as caps need it: `scheduler.energy.model.EnergyModel` is one.

    Watts and joules are of all its GPUs together.
    """

    def means(self, work: Work) -> Means:
        """The same without intervals, for many step counts and limits."""

    def predict_window(self, work: Work, seconds: float, limit_watts: float | None = None) -> WindowCost:
        """Joules and busy time of work within so many seconds under a limit."""

    def prices(self) -> StepPrices:
        """What is believed of single steps."""

    @property
    def idle_watts(self) -> Interval:
        """Power with nothing running."""

    @property
    def drifting(self) -> bool:
        """The engine is lately not what was learned."""


class CardLimits(NamedTuple):
    """Power limits of each GPU of the engine, in watts; of several cards the strictest of each."""

    requested: float
    """What was asked of the driver last, by whomever."""
    enforced: float
    """The strictest of all that bind (VBIOS, host, BMC, driver)."""
    default: float
    """Its TDP, of which shares are taken."""
    lowest: float
    highest: float


class Load(NamedTuple):
    """What the engine did lately. Work is offered from outside: under another cap the same comes in as much time."""

    work: Work
    """Sums over the windows of the last `load_seconds`, corrections included."""
    seconds: float
    busy_seconds: float
    limit_watts: float
    """Mean enforced limit of all GPUs together in that time."""

    @property
    def useful_tokens(self) -> float:
        """Tokens that somebody asked for: output tokens, the first of each call included."""
        return self.work.decode_tokens + self.work.prompts

    @property
    def batch(self) -> float:
        """Mean number of sequences that a step decoded."""
        return self.work.decode_tokens / max(self.work.steps, 1.0)


class Slack(NamedTuple):
    """The tightest of the live workflows: the one that bears the least stretching of what is still to be computed."""

    remaining_seconds: float
    """How long it is predicted to take from now, at the pace of now."""
    slack_seconds: float
    """How much later than that it may end; negative: it is late."""
    free_seconds: float = 0.0
    """How long its calls beside the critical path may wait unnoticed; said in the decision, not used up by caps."""

    @property
    def bears(self) -> float:
        """By what share what remains may be stretched: the workflow of least `bears` is the tightest."""
        return self.slack_seconds / max(self.remaining_seconds, 1e-3)


class EngineView(NamedTuple):
    """One engine at the time of a decision. None = not known, which never makes a cap tighter."""

    engine: str
    gpus: int
    """That share its work: their caps move together."""
    limits: CardLimits | None
    load: Load | None
    ttft: Answers
    """Of the calls of the last `horizon_seconds`: when their first token came, and…"""
    itl: Answers
    """…when they ended, their mean gap between tokens."""
    waiting: float | None
    """In the engine's own queue (vllm:num_requests_waiting); calls that a policy holds back are not among them."""
    telemetry_seconds: float | None
    """Age of the oldest of: the last whole window, the last probe, the last reading of the limit."""
    slack: Slack | None = None
    """None: no live workflow has promised an end."""
    settle_seconds: float = 1.0
    """Until a new limit is in force."""
    sequences_max: int = 256
    """vLLM's max_num_seqs."""
    sm_clock_max_mhz: float | None = None
    limits_at: float | None = None
    """When `limits` were read; None: just now."""
    may_set: bool = True
    """False: these cards are only looked at, whatever the mode."""
    mode: EngineMode = "actuate"
    """Of this engine, where `CapRules.mode` is `actuate`: what an experiment's arm allows."""
    stretch_allowed: float | None = None
    """By how much the policy lets steps grow: so many times as long as under the prior limit. None: it has not said."""
    least_watts: float = 0.0
    """Of each GPU: the policy would not have it lower…"""
    need_watts: float = 0.0
    """…and needs so much at once, for what has begun."""
