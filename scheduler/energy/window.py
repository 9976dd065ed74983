"""What is a window of an engine's life? What was done in it, by whom, and what the meter said. Its inputs, too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from scheduler.energy.work import NOTHING, Work

if TYPE_CHECKING:
    from collections.abc import Iterable

Source = Literal["measured", "simulated"]
MeterState = Literal["ok", "absent", "not_supported", "no_permission", "reset", "lost"]
Why = Literal[
    "samples_missing",  # too long between two samples of the meter
    "meter_unavailable",  # a sample without energy, or whose state is not ok
    "meter_reset",  # the energy counter went back
    "engine_reset",  # a counter of the engine went back
    "engine_restarted",  # the core said so
    "counters_missing",  # the engine has counters, and this window ends without them
    "bypass",  # the engine did work that did not come through this gateway
    "calls_left_out",  # more calls at once than the table holds
]
"""Why a window is not whole."""


class Energy(NamedTuple):
    """Joules by component, or counters of them; None = unavailable, never 0 instead."""

    gpu: float | None = None
    cpu: float | None = None
    dram: float | None = None


class MeterSample(NamedTuple):
    """One reading of all devices of an engine together, each 0.1 to 1 s. Times never go back."""

    at: float
    """When it was read, in the core's seconds."""
    joules: Energy
    """Counters since any beginning. NVML's moves every 100 ms."""
    watts: float | None = None
    limit_watts: float | None = None
    """The enforced limit: the strictest of all that bind."""
    throttled: bool | None = None
    """A throttle reason speaks of power."""
    source: Source = "measured"
    state: MeterState = "ok"


class Counters(NamedTuple):
    """One probe of the engine's /metrics: sums since its start; None = it does not report that.

    Cut `at` as close to the probe as can be: windows end there.
    """

    at: float
    steps: float | None = None
    """vllm:iteration_tokens_total_count."""
    prompt_tokens: float | None = None
    """vllm:prompt_tokens_total."""
    cached_tokens: float | None = None
    """vllm:prompt_tokens_cached_total, else vllm:prefix_cache_hits_total (which moves when a prefill begins)."""
    generation_tokens: float | None = None
    """vllm:generation_tokens_total."""
    running: float | None = None
    """vllm:num_requests_running."""
    waiting: float | None = None
    """vllm:num_requests_waiting."""


class CallShare(NamedTuple):
    """A call's part of a window."""

    call_id: str
    work: Work
    """Done in this window, as well as it was known when the window closed. `work.steps` is the step share."""
    correction: Work
    """What earlier windows were told too little (or too much: negative), known since the call ended in this one."""
    engine_seconds: float
    """Time of the window in which the call was with the engine."""
    ended: bool
    """It finished, failed or was given up in this window: no further window names it."""


class Window(NamedTuple):
    """A stretch of time between two edges. Sums are exact: `work` = Σ calls' work, `correction` = Σ calls' correction,
    and over all windows of a call work + correction = what the engine counted of it (but its steps)."""

    engine: str
    number: int
    start: float
    end: float
    calls: tuple[CallShare, ...]
    work: Work
    correction: Work
    busy_seconds: float
    """Time with at least one call at the engine, less the frontend's part of each busy stretch."""
    energy: Energy
    """Joules from edge to edge."""
    limit_watts: float | None
    """Mean of the enforced limit."""
    limit_moved: bool
    """The limit was not the same all the time."""
    throttled: bool | None
    """A sample said so; None: none said anything."""
    source: Source
    steps_counted: bool
    """Steps are the engine's own count; else estimated from the calls' progress."""
    why: tuple[Why, ...] = ()
    """Empty: the window is whole."""

    @property
    def seconds(self) -> float:
        """From edge to edge."""
        return self.end - self.start

    @property
    def whole(self) -> bool:
        """Nothing is missing and nothing foreign is in it: it may be learned from."""
        return not self.why

    @property
    def watts(self) -> float | None:
        """Mean draw of the GPUs."""
        return None if self.energy.gpu is None else self.energy.gpu / self.seconds


def work_of(shares: Iterable[CallShare]) -> tuple[Work, Work]:
    """(Σ work, Σ correction) of some calls."""
    steps = decode = context = repeated = prefill = pairs = prompts = 0.0
    correction = NOTHING
    for share in shares:
        work = share[1]
        steps += work[0]
        decode += work[1]
        context += work[2]
        repeated += work[3]
        prefill += work[4]
        pairs += work[5]
        prompts += work[6]
        if share[2] is not NOTHING:
            correction += share[2]
    return Work(steps, decode, context, repeated, prefill, pairs, prompts), correction
