"""What is a window of an engine's life? What was done in it, by whom, and what the meter said. Its inputs, too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, overload

from scheduler.energy.work import Work

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

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
    more_steps: float = 0.0
    """Of a call that has ended: what it shared in beyond what windows have told, see `stays`."""
    prompt_tokens: float = 0.0
    """That were computed of its prompt, all in all as far as is known now."""
    step_tokens: float = 0.0
    """Prompt tokens of the step that it was prefilled in, those of others too."""
    step_before: float = 0.0
    """What came before that step: see `Steps` in bursts.py."""


FEATURES = len(Work._fields)


class Shares(Sequence[CallShare]):
    """All calls' parts of a window, as columns of numpy: one addition books hundreds. Read one by one they are
    `CallShare`s."""

    __slots__ = (
        "correction", "ended", "engine_seconds", "ids", "more_steps", "prompt_tokens", "step_before", "step_tokens",
        "work",
    )  # fmt: skip

    def __init__(
        self, ids: list[str], work: Floats, correction: Floats, engine_seconds: Floats, ended: npt.NDArray[np.bool_],
        more_steps: Floats, prompt_tokens: Floats, step_tokens: Floats, step_before: Floats,
    ) -> None:  # fmt: skip
        """`work` and `correction` have the shape (calls, FEATURES), the others (calls,)."""
        self.ids = ids
        self.work = work
        self.correction = correction
        self.engine_seconds = engine_seconds
        self.ended = ended
        self.more_steps = more_steps
        self.prompt_tokens = prompt_tokens
        self.step_tokens = step_tokens
        self.step_before = step_before

    @classmethod
    def of(cls, shares: Iterable[CallShare]) -> Shares:
        """Of some that were made one by one."""
        import numpy as np

        some = list(shares)
        return cls(
            [share.call_id for share in some],
            np.array([share.work for share in some], dtype=np.float64).reshape(-1, FEATURES),
            np.array([share.correction for share in some], dtype=np.float64).reshape(-1, FEATURES),
            np.array([share.engine_seconds for share in some], dtype=np.float64),
            np.array([share.ended for share in some], dtype=np.bool_),
            np.array([share.more_steps for share in some], dtype=np.float64),
            np.array([share.prompt_tokens for share in some], dtype=np.float64),
            np.array([share.step_tokens for share in some], dtype=np.float64),
            np.array([share.step_before for share in some], dtype=np.float64),
        )

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, place: int) -> CallShare: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[CallShare]: ...
    def __getitem__(self, place: int | slice) -> CallShare | Sequence[CallShare]:
        if isinstance(place, slice):
            return list(self)[place]
        return CallShare(
            self.ids[place], Work(*self.work[place].tolist()), Work(*self.correction[place].tolist()),
            float(self.engine_seconds[place]), bool(self.ended[place]), float(self.more_steps[place]),
            float(self.prompt_tokens[place]), float(self.step_tokens[place]), float(self.step_before[place]),
        )  # fmt: skip

    def __iter__(self) -> Iterator[CallShare]:
        return (self[place] for place in range(len(self.ids)))

    def sums(self) -> tuple[Work, Work]:
        """(Σ work, Σ correction)."""
        return Work(*self.work.sum(axis=0).tolist()), Work(*self.correction.sum(axis=0).tolist())


class Window(NamedTuple):
    """A stretch of time between two edges. Sums are exact: `work` = Σ calls' work, `correction` = Σ calls' correction,
    and over all windows of a call work + correction = what the engine counted of it (but its steps)."""

    engine: str
    number: int
    start: float
    end: float
    calls: Shares
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
    counted: Work | None = None
    """`work`, with the prompt tokens that the engine counted: whose they are is guessed until calls end, and so is
    their sum. None: it does not count them."""

    @property
    def seen(self) -> Work:
        """What was done, as well as anybody can tell while it is not known whose work it was: for learning."""
        return self.work if self.counted is None else self.counted

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
