"""How many joules did the cap save? Claimed only where it was seen to bind, against the model's own counterfactual."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from scheduler.energy.caps.price import Offered, price, sure
from scheduler.energy.caps.standing import same
from scheduler.energy.caps.view import Load
from scheduler.energy.model.results import Interval
from scheduler.energy.work import NOTHING

if TYPE_CHECKING:
    from scheduler.energy.caps.view import CostModel
    from scheduler.energy.window import Window

BINDING_SHARE = 0.98
"""Of the enforced limit, drawn while busy: from here on it binds (design.md). Or the driver says that it throttles."""
STRETCH_SECONDS = 30.0
"""Windows are claimed for together: in one of 2.4 s an engine is often all busy or all idle, which says nothing of what
it would be under another cap."""


class Claim(NamedTuple):
    """Of some windows under one cap of ours."""

    seconds: float
    measured_joules: float
    saved_joules: Interval
    """May be negative: the cap cost more than it saved."""


class Savings:
    """Of one engine, since its start. `saw` each window that is whole."""

    def __init__(self, gpus: int) -> None:
        self._gpus = gpus
        self._open: list[Window] = []
        self.claimed_seconds = self.not_binding_seconds = self.claimed_joules = 0.0
        self.saved = Interval(0.0, 0.0, 0.0)
        """Joules. Errors of the model are the same in all windows: their bounds are added, not their squares."""

    def saw(self, window: Window, prior_watts: float | None, model: CostModel) -> Claim | None:
        """A window, and the prior limit of each GPU (None: the cap is not ours). A claim, when there is one to make."""
        limit = window.limit_watts
        ours = prior_watts is not None and limit is not None and not same(limit, prior_watts * self._gpus)
        if not (window.whole and ours and not window.limit_moved and window.energy.gpu is not None):
            return self._settle(prior_watts, model)
        if not self.binds(window, model):
            self.not_binding_seconds += window.seconds
            return self._settle(prior_watts, model)
        claim = None
        if self._open and not same(self._open[0].limit_watts or 0.0, limit or 0.0):
            claim = self._settle(prior_watts, model)
        self._open.append(window)
        if window.end - self._open[0].start >= STRETCH_SECONDS:
            claim = self._settle(prior_watts, model)
        return claim

    @staticmethod
    def binds(window: Window, model: CostModel) -> bool:
        """Whether the limit held the engine back: it said so, or drew as much while busy."""
        if window.throttled:
            return True
        joules, limit, busy = window.energy.gpu, window.limit_watts, window.busy_seconds
        if joules is None or limit is None or busy <= 0:
            return False
        return joules - model.idle_watts.value * max(window.seconds - busy, 0.0) >= BINDING_SHARE * limit * busy

    def _settle(self, prior_watts: float | None, model: CostModel) -> Claim | None:
        windows, self._open = self._open, []
        if not windows or prior_watts is None or model.drifting:  # who does not know the engine claims nothing
            return None
        work, joules, busy, limit = NOTHING, 0.0, 0.0, windows[0].limit_watts or 0.0
        seconds = sum(window.seconds for window in windows)
        for window in windows:
            work += window.work
            joules += window.energy.gpu or 0.0
            busy += min(window.busy_seconds, window.seconds)
        load = Load(work, seconds, busy, limit)
        if work.steps < 1 or load.useful_tokens < 1 or busy <= 0:
            return None
        offered = Offered(model, load)
        under = price(offered, limit / self._gpus, self._gpus, 1 << 30)
        without = sure(offered, price(offered, prior_watts, self._gpus, 1 << 30), self._gpus)
        assert without.bounds is not None
        # What the model is wrong by in both, measured here and counterfactual, goes out of the ratio.
        scale = joules / max(under.draw_watts * seconds, 1e-9)
        half = (without.bounds.high - without.bounds.value) * load.useful_tokens * scale
        saved = (without.draw_watts - under.draw_watts) * seconds * scale
        claim = Claim(seconds, joules, Interval(saved, saved - half, saved + half))
        self.claimed_seconds += seconds
        self.claimed_joules += joules
        self.saved = Interval(*(one + more for one, more in zip(self.saved, claim.saved_joules, strict=True)))
        return claim

    def describe(self) -> dict[str, Any]:
        """JSON types."""
        return {
            "saved_joules": self.saved._asdict(),
            "claimed_seconds": self.claimed_seconds,
            "claimed_joules": self.claimed_joules,
            "not_binding_seconds": self.not_binding_seconds,
        }
