"""What runs on an engine, how far is it, and until when are its steps paid for anyway?"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from scheduler.holding.heaps import Sifted

if TYPE_CHECKING:
    from scheduler.holding.costs import StepCosts
    from scheduler.holding.flow import Flow
    from scheduler.holding.work import CallWork
    from scheduler.state import CallState

AVERAGED_SECONDS = 1.0
"""Of busy time, over which it is averaged how much of it prompts take: bursts are over soon."""
ITL_SHARE = 0.85
"""Of the ITL target, to which engines are filled: who comes next is not known, and 19 of 20 calls are to meet it."""


STEPS_LEAST = 64.0
"""Over so many steps at least the wait for prompts is spread: who runs beside a short answer goes on behind it."""


class Running(NamedTuple):
    """A call at the engine."""

    flow: Flow
    work: CallWork
    steps_before: float
    """The engine's count of steps when it came."""
    ends_at: float
    """As it looked then."""


class Stepping:
    """A model of one engine's steps: a prompt's tokens are computed first, then all sequences go on together."""

    def __init__(self, costs: StepCosts, now: float) -> None:
        self.costs = costs
        self.now = now
        self.steps = 0.0
        self.prefill_seconds = 0.0
        """Of prompts that came and are not computed yet."""
        self.token_seconds = 0.0
        """Sum over what runs."""
        self.prefill_share = 0.0
        """Of the time in which something ran lately, that in which prompts were computed and nobody else got on."""
        self.running: dict[CallState, Running] = {}
        self._ends = Sifted(lambda entry: entry[2] in self.running)
        self._count = 0

    @property
    def step_seconds(self) -> float:
        """Of a step as they are now."""
        return self.costs.step_seconds + self.token_seconds

    def advance(self, now: float) -> None:
        """Time passed."""
        passed = now - self.now
        self.now = now
        if not self.running or passed <= 0.0:
            return
        prefill, whole = self.prefill_seconds, passed
        if prefill:
            used = min(prefill, passed)
            self.prefill_seconds = prefill - used
            passed -= used
        self.prefill_share += min(1.0, whole / AVERAGED_SECONDS) * (1.0 - passed / whole - self.prefill_share)
        self.steps += passed / (self.costs.step_seconds + self.token_seconds)

    def add(self, call: CallState, flow: Flow, work: CallWork, now: float) -> None:
        """The call is sent."""
        self.advance(now)
        self.token_seconds += work.token_seconds
        self.prefill_seconds += work.prefill_seconds
        ends_at = now + self.prefill_seconds + work.steps * (self.costs.step_seconds + self.token_seconds)
        self.running[call] = Running(flow, work, self.steps, ends_at)
        self._count += 1
        self._ends.push((-ends_at, self._count, call))

    def remove(self, call: CallState, now: float) -> Running:
        """The call is over. KeyError if it does not run."""
        self.advance(now)
        gone = self.running.pop(call)
        if self.running:
            self.token_seconds = max(0.0, self.token_seconds - gone.work.token_seconds)
        else:
            self.token_seconds = self.prefill_seconds = 0.0
            self._ends.clear()
        return gone

    def share_done(self, running: Running) -> float:
        """Of its decoding, 0 to 1."""
        return min(1.0, (self.steps - running.steps_before) / running.work.steps)

    def gap_seconds(self, work: CallWork) -> float:
        """Between two tokens, in the mean over a call like this one, if it goes along: steps, and others' prompts
        between them, at the pace of late or as many as wait to be computed now. A short answer's own prompt is in no
        gap of its own, and those before it are spread over more steps than it has."""
        step = self.step_seconds + work.token_seconds
        prompts = self.prefill_seconds + work.prefill_seconds
        return max(step / max(1.0 - self.prefill_share, 0.05), step + prompts / max(work.steps, STEPS_LEAST))

    def keeps(self, work: CallWork, itl_seconds: float) -> bool:
        """Do tokens come fast enough with this call beside the others? One that is alone may go, whatever it takes."""
        return not self.running or self.gap_seconds(work) <= ITL_SHARE * itl_seconds

    def seconds_of(self, work: CallWork) -> float:
        """How long a call would take that comes now."""
        step = self.costs.step_seconds + self.token_seconds + work.token_seconds
        return self.prefill_seconds + work.prefill_seconds + work.steps * step

    def ends_at(self) -> float:
        """When the last of what runs ends, as it looked when each came; now if nothing runs."""
        last = self._ends.top()
        return self.now if last is None else max(self.now, -float(last[0]))

    def validate(self) -> None:
        """AssertionError for what does not hold."""
        tokens = sum(each.work.token_seconds for each in self.running.values())
        assert abs(self.token_seconds - tokens) <= 1e-9 * (1 + len(self.running)) + 1e-6 * tokens
        assert self.prefill_seconds >= 0.0 and -1e-9 <= self.prefill_share <= 1.0 + 1e-9
        assert self.running.keys() <= {entry[2] for entry in self._ends.all()}

    @property
    def entries(self) -> int:
        """Ends that are kept, those out of date included."""
        return len(self._ends)
