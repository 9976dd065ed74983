"""What will work cost on this engine? Learns from windows, predicts windows, steps and calls, with intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scheduler.energy.model.astray import Astray
from scheduler.energy.model.equations import CAP, DRAW, ENERGY, IDLE, SIZE, Limits, most_watts, new_filter, step_prices
from scheduler.energy.model.expect import Expected, expect, interval
from scheduler.energy.model.means import BINDS_LEAST, OVER_LIMIT, Means
from scheduler.energy.model.noise import EDGE_SECONDS, Noise
from scheduler.energy.model.results import CallCost, CapState, Interval, Learned, StepCost, TokenCost, WindowCost
from scheduler.energy.model.state import JOULES_LEAST, ModelState, describe, exported, restored
from scheduler.energy.work import Work, call_work

if TYPE_CHECKING:
    from scheduler.energy.model.prior import Prior
    from scheduler.energy.model.steps import StepPrices
    from scheduler.energy.window import Window

WANDER_PER_HOUR = 0.01
"""Variance (relative, squared) that coefficients gain an hour while all is well: ±10 % in an hour are believable."""
DOUBT = 0.5
"""Relative standard error of every coefficient after an alarm."""
IDLE_DOUBT, CAP_DOUBT = 0.02, 0.2
"""Of that, for what belongs to the card more than to the model on it."""
DRIFTING_SECONDS = 60.0
"""So long after an alarm outliers count in full, and no further alarm is raised in the first third."""
BINDING_SHARE, MOSTLY_SHARE, PARTLY_SHARE = 0.98, 0.96, 0.8
"""Of the limit, while busy: from the first on it binds; below the second it does not bind all steps, and below the
third not most."""
SURELY_BOUND = 0.98
"""Of the busy time, as the model believes."""
SHARE_SECONDS = 0.08
MOVED_NOISE = 4.0
"""A window in which the limit moved teaches with so many times the variance."""
USUAL_WINDOWS = 100
"""Until so many were seen, intervals may be wide for want of knowledge."""
CLOSE_SECONDS = 1e-6
"""Windows that are no further apart adjoin."""
IDLE_BUSY_SECONDS = 0.02
"""A window with less than this and without work teaches idle power alone."""


class EnergyModel:
    """One engine's. Pure: time is what windows say. `learn` costs about 0.5 ms a window, a prediction 0.1 ms."""

    def __init__(self, prior: Prior) -> None:
        self.prior = prior
        self._most_watts = most_watts(prior)
        self._state = ModelState(new_filter(prior), Noise())
        self._prices: StepPrices | None = None

    # --- learning ---

    def learn(self, window: Window) -> Learned:
        """Predict the window's energy from its work and busy time, then look at it and learn.

        Windows that are not whole are counted and teach nothing; one without energy teaches time alone.
        """
        state = self._state
        known = window.energy.gpu
        self._prices = None
        self._pass_time(window)
        if window.why:
            state.last_residual = None
            for why in window.why:
                state.marked[why] = state.marked.get(why, 0) + 1
            _, predicted, planned = self._costs(window)
            return Learned(False, window.why, predicted, planned, known, None, False)
        if window.busy_seconds < IDLE_BUSY_SECONDS and window.work.decode_tokens + window.seen.prefill_tokens < 1:
            return self._learn_idle(window)
        return self._learn_busy(window)

    def _pass_time(self, window: Window) -> None:
        state = self._state
        if state.last_end is not None:
            passed = max(0.0, window.end - state.last_end)
            state.beliefs.wander(WANDER_PER_HOUR * passed / 3600)
            state.drifting_seconds = max(0.0, state.drifting_seconds - passed)
            if window.start > state.last_end + CLOSE_SECONDS:
                state.last_residual = None
        state.last_end = window.end

    def _costs(self, window: Window) -> tuple[Expected, WindowCost, WindowCost]:
        """What is expected of it, the cost knowing its busy time, and the cost knowing its work alone."""
        work, seconds, limit = window.seen, window.seconds, window.limit_watts
        expected = self._expect(work, seconds, _same(limit))
        given = self._cost(expected, work, seconds, limit, window.busy_seconds)
        return expected, given, self._cost(expected, work, seconds, limit, None)

    def _learn_idle(self, window: Window) -> Learned:
        state, joules = self._state, window.energy.gpu
        state.last_residual = None
        _, predicted, planned = self._costs(window)
        if joules is None:
            return Learned(False, (), predicted, planned, None, None, False)
        beliefs, seconds = state.beliefs, window.seconds
        slopes = np.zeros((1, SIZE))
        slopes[0, IDLE] = seconds * beliefs.scale[IDLE]
        noise = state.noise.idle_variance(float(beliefs.values[IDLE]))
        total = float((slopes @ beliefs.covariance @ slopes.T)[0, 0]) + noise
        residual = joules - float(beliefs.values[IDLE]) * seconds
        covered = state.idle.saw(residual / total**0.5)
        drift = state.idle_drift.saw(residual / total**0.5)
        if drift:
            state.alarms += 1
            doubted = np.zeros(SIZE)
            doubted[IDLE] = DOUBT
            beliefs.doubt(doubted)
        weight = beliefs.update(slopes, np.array([residual]), np.array([[noise]]), robust=True)
        state.noise.saw_idle(residual, total, noise, min(weight, 1.0))
        state.used += 1
        state.used_idle += 1
        return Learned(True, (), predicted, planned, joules, covered, drift)

    def _learn_busy(self, window: Window) -> Learned:
        state, joules, busy = self._state, window.energy.gpu, window.busy_seconds
        before, predicted, planned = self._costs(window)
        covered = drift = False
        if joules is not None:
            value, error = before.given_busy(busy)
            covered = state.given.saw((joules - value) / error)
            state.planned.saw((joules - before.joules) / before.joules_error)
            state.saw_error(predicted.joules.value, joules)
            drift = not window.limit_moved and self._drift(before, busy, (joules - value) / error)
            state.saw_neighbours(window, joules - value, error)
        state.busy.saw((busy - before.busy_seconds) / before.busy_error)
        limits, held = self._held_back(window, before)
        expected = before if limits == _same(window.limit_watts) else self._expect(window.seen, window.seconds, limits)
        # A draw that the cap sets says nothing of the demand but that it is higher: what energy prices say already.
        self._update(expected, window, busy, joules, ENERGY if held and expected.bound else None)
        if self._astray(window, predicted.joules.value):
            self._begin_anew()
        state.used += 1
        state.used_binding += limits.prefill is not None
        return Learned(True, (), predicted, planned, joules, covered if joules is not None else None, drift)

    def _drift(self, before: Expected, busy: float, joules_standardised: float) -> bool:
        state = self._state
        # Where it takes more than 1.645 standard errors to hold nine of ten, as many more are nobody's fault: once it
        # is known that they are the noise's, and not those of prices that are still to be learned.
        usual = [coverage.beyond_normal for coverage in (state.busy, state.given)]
        if state.given.seen < USUAL_WINDOWS:
            usual = [1.0, 1.0]
        busy_standardised = (busy - before.busy_seconds) / before.busy_error
        alarm = state.drift.saw(busy_standardised / usual[0], joules_standardised / usual[1])
        if not alarm or state.drifting_seconds > DRIFTING_SECONDS * 2 / 3:
            return False
        self.doubt()
        state.alarms += 1
        return True

    def _astray(self, window: Window, predicted: float) -> bool:
        """It has lost its way: what it predicts is far off, window after window, or is no number at all."""
        state, joules = self._state, window.energy.gpu
        beliefs = state.beliefs
        if not (np.isfinite(beliefs.mean).all() and np.isfinite(beliefs.covariance).all()):
            return True
        if joules is None or joules < JOULES_LEAST or window.limit_moved:
            return False
        if not state.astray.needs_prior(abs(predicted / joules - 1)):
            return False
        first, noise, limit = new_filter(self.prior), Noise(), _same(window.limit_watts)
        believed = expect(first, noise, window.seen, window.seconds, limit, EDGE_SECONDS, self._most_watts)
        value, _ = believed.given_busy(window.busy_seconds)
        return state.astray.saw_prior(abs(value / joules - 1))

    def _begin_anew(self) -> None:
        """Back to the prior, with wide intervals, as after an alarm. Idle power is kept: other windows teach it."""
        state, before = self._state, self._state.beliefs
        state.beliefs, state.noise, state.astray = new_filter(self.prior), Noise(), Astray()
        idle = before.mean[IDLE], before.covariance[IDLE, IDLE]
        if np.isfinite(idle).all():
            state.beliefs.mean[IDLE], state.beliefs.covariance[IDLE, IDLE] = idle
        self.doubt()
        state.begun_anew += 1

    def _update(
        self, expected: Expected, window: Window, busy: float, joules: float | None, kept: slice | None
    ) -> None:
        state = self._state
        noise = expected.noise * (MOVED_NOISE if window.limit_moved else 1.0)
        robust = state.drifting_seconds <= 0
        if joules is None:
            residual = np.array([busy - expected.busy_seconds])
            state.beliefs.update(expected.slopes[:1], residual, noise[:1, :1], robust=robust, kept=kept)
            return
        residual = np.array([busy - expected.busy_seconds, joules - expected.joules])
        total = expected.slopes @ state.beliefs.covariance @ expected.slopes.T + noise
        weight = state.beliefs.update(expected.slopes, residual, noise, robust=robust, kept=kept)
        if not window.limit_moved:
            state.noise.saw(residual, total, noise, min(weight, 1.0), bound=expected.bound)

    def _held_back(self, window: Window, before: Expected) -> tuple[Limits, bool]:
        """Which limits a window teaches about, and whether its draw is surely the limit's.

        A draw of 0.98 of the enforced limit while busy: it bound, and the window teaches the cap layer. No throttle
        reason: it did not, and the window teaches the base. Throttled and below: some steps were held back, and those
        with prompt tokens draw most; the others too, if the model says so and the draw does not speak against it.
        """
        limit, joules, busy = window.limit_watts, window.energy.gpu, window.busy_seconds
        if limit is None:
            return Limits(None, None), False
        share = 0.0
        if joules is not None and busy > 0:
            idle = float(self._state.beliefs.values[IDLE])
            share = (joules - idle * (window.seconds - busy)) / (busy * limit)
        if share >= BINDING_SHARE:
            return _same(limit), True
        if not window.throttled:
            return Limits(None, None), False
        # The counter's 100 ms make the draw of a short busy time unsure.
        likely = share + SHARE_SECONDS / max(busy, SHARE_SECONDS) >= (MOSTLY_SHARE if before.bound else PARTLY_SHARE)
        return Limits(limit if likely else None, limit), likely and before.binding > SURELY_BOUND

    def doubt(self, relative: float = DOUBT) -> None:
        """Something changed: another model, another card, an alarm. Widens every interval and learns fast for a while.

        `relative`: standard error that each coefficient may be off by. ValueError below 0.
        """
        if relative < 0:
            raise ValueError(f"relative must be at least 0, not {relative}")
        size = np.full(SIZE, relative)
        size[IDLE] = IDLE_DOUBT * relative
        size[CAP] = CAP_DOUBT * relative
        size[DRAW] = 0.0
        self._prices = None
        self._state.beliefs.doubt(size)
        self._state.drifting_seconds = DRIFTING_SECONDS

    # --- predicting ---

    def predict_window(
        self, work: Work, seconds: float, limit_watts: float | None = None, *, busy_seconds: float | None = None
    ) -> WindowCost:
        """Joules and busy time of work within so many seconds under a limit (watts of all GPUs; None = no limit).

        `busy_seconds`: where it is known already, as it is of a window that has closed; the joules are surer then.
        """
        expected = self._expect(work, seconds, _same(limit_watts))
        return self._cost(expected, work, seconds, limit_watts, busy_seconds)

    def _cost(
        self, expected: Expected, work: Work, seconds: float, limit_watts: float | None, busy_seconds: float | None
    ) -> WindowCost:
        state = self._state
        coverage = state.planned if busy_seconds is None else state.given
        quantile = coverage.quantile
        joules, error = expected.joules, expected.joules_error
        if busy_seconds is not None:
            joules, error = expected.given_busy(busy_seconds)
            quantile = state.quantile_given(seconds)
        elif expected.busy_seconds > seconds:  # more than fits: as much as fits is done
            idle = float(state.beliefs.values[IDLE]) * seconds
            joules = idle + (joules - idle) * seconds / expected.busy_seconds
            _, error = expected.given_busy(seconds)
        if not (work.steps or work.prefill_tokens or work.decode_tokens) and not busy_seconds:
            error = self._idle_error(seconds)
            quantile = state.idle.quantile
        cap: CapState = (
            "none" if limit_watts is None else "binding" if expected.binding > BINDS_LEAST else "not_binding"
        )
        return WindowCost(
            interval(joules, quantile * error, *self._possible(seconds, limit_watts)),
            interval(expected.busy_seconds, state.busy.quantile * expected.busy_error),
            cap,
        )

    def _possible(self, seconds: float, limit_watts: float | None) -> tuple[float, float]:
        """(least, most) joules of any work within so many seconds."""
        most = self._most_watts
        if limit_watts:
            most = min(most, OVER_LIMIT * limit_watts)
        return float(self._state.beliefs.values[IDLE]) * seconds, most * seconds

    def step(
        self, batch: float, context_tokens: float, prefill_tokens: float = 0.0, limit_watts: float | None = None
    ) -> StepCost:
        """An engine step of `batch` decoding sequences that read `context_tokens` in all, with so many prompt tokens
        of one new prompt beside them."""
        pairs = prefill_tokens * prefill_tokens / 2
        work = Work(1.0, batch, context_tokens, 0.0, prefill_tokens, pairs, 1.0 if prefill_tokens else 0.0)
        seconds, joules, expected = self._own(work, limit_watts)
        time = max(expected.busy_seconds, 1e-9)
        draw = joules.value / time
        slopes = (expected.slopes[1] - draw * expected.slopes[0]) / time
        ratio = np.array([-draw, 1.0]) / time
        variance = slopes @ self._state.beliefs.covariance @ slopes + ratio @ expected.noise @ ratio
        half = self._state.given.quantile * float(np.sqrt(max(variance, 0.0)))
        return StepCost(seconds, joules, interval(draw, half))

    def prices(self) -> StepPrices:
        """What is believed now, as plain floats: for whoever wants the seconds and joules of thousands of steps and no
        intervals. The same object until something new is learned; ask again rather than keep it."""
        if self._prices is None:
            beliefs = self._state.beliefs
            self._prices = step_prices(beliefs.values, beliefs.scale, beliefs.covariance, self._most_watts)
        return self._prices

    def means(self, work: Work) -> Means:
        """What is believed now of this work, for whoever tries many step counts and limits and wants no intervals."""
        return Means(self._state.beliefs, work, self._most_watts)

    def decode(self, batch: float, context_tokens: float, limit_watts: float | None = None) -> TokenCost:
        """A token of one among `batch` sequences of `context_tokens` each. ValueError for a batch below 1."""
        if batch < 1:
            raise ValueError(f"batch must be at least 1, not {batch}")
        cost = self.step(batch, batch * context_tokens, 0.0, limit_watts)
        return TokenCost(cost.seconds, cost.joules.times(1 / batch))

    def call(
        self, prompt_tokens: float, cached_tokens: float, output_tokens: float, batch: float = 1.0,
        limit_watts: float | None = None,
    ) -> CallCost:  # fmt: skip
        """A call in a batch of calls like it. ValueError for a batch below 1."""
        if batch < 1:
            raise ValueError(f"batch must be at least 1, not {batch}")
        own = call_work(prompt_tokens, cached_tokens, output_tokens)
        all_of_them = (own * batch)._replace(steps=own.decode_tokens + own.prompts)
        idle = self._state.beliefs.values[IDLE]
        _, joules, expected = self._own(all_of_them, limit_watts)
        above = joules.value - float(idle) * expected.busy_seconds
        half = joules.high - joules.value
        # Its own prefill, then steps in company: the others' prefills are theirs to wait for.
        alone = all_of_them._replace(
            prefill_tokens=own.prefill_tokens, attention_pairs=own.attention_pairs, prompts=own.prompts
        )
        seconds, _, _ = self._own(alone, limit_watts)
        return CallCost(seconds, interval(above / batch, half / batch))

    def _own(self, work: Work, limit_watts: float | None) -> tuple[Interval, Interval, Expected]:
        """(seconds, joules with idle power while they last, the expectation) of work alone, as a mean: no edges."""
        state = self._state
        first = self._expect(work, 0.0, _same(limit_watts), 0.0)
        expected = self._expect(work, first.busy_seconds, _same(limit_watts), 0.0)
        # Idle power lasts as long as the work does: a longer step costs more of it.
        idle = float(state.beliefs.values[IDLE])
        slopes = expected.slopes.copy()
        slopes[1] += idle * slopes[0]
        variance = slopes[1] @ state.beliefs.covariance @ slopes[1] + expected.noise[1, 1]
        expected = expected._replace(slopes=slopes)
        joules = interval(expected.joules, state.given.quantile * float(np.sqrt(max(variance, 0.0))))
        return interval(expected.busy_seconds, state.busy.quantile * expected.busy_error), joules, expected

    def _expect(self, work: Work, seconds: float, limits: Limits, edge_seconds: float = EDGE_SECONDS) -> Expected:
        return expect(self._state.beliefs, self._state.noise, work, seconds, limits, edge_seconds, self._most_watts)

    def _idle_error(self, seconds: float) -> float:
        beliefs = self._state.beliefs
        own = (seconds * float(beliefs.errors[IDLE])) ** 2
        return float(np.sqrt(own + self._state.noise.idle_variance(float(beliefs.values[IDLE]))))

    @property
    def drifting(self) -> bool:
        """An alarm, or `doubt`, is less than a minute old."""
        return self._state.drifting_seconds > 0

    @property
    def relative_error(self) -> float | None:
        """Mean error of the joules of busy windows, without sign, of the last fifty or so; None: none was seen."""
        return self._state.relative_error

    @property
    def idle_watts(self) -> Interval:
        """Power with the model loaded and nothing running, all GPUs together."""
        beliefs = self._state.beliefs
        half = self._state.idle.quantile * float(beliefs.errors[IDLE])
        return interval(float(beliefs.values[IDLE]), half)

    # --- keeping and showing ---

    def export(self) -> dict[str, Any]:
        """All that was learned, as JSON types: `restore` makes the same model of it."""
        return exported(self._state)

    @classmethod
    def restore(cls, data: dict[str, Any], prior: Prior) -> EnergyModel:
        """From `export`. ValueError if it is not that, or of another version; start from the prior then."""
        self = cls(prior)
        self._state = restored(data, prior)
        return self

    def describe(self) -> dict[str, Any]:
        """For people: coefficients with units and intervals, residuals, coverage, drift, windows used and marked."""
        return describe(self._state, self.prior)

    def validate(self) -> None:
        """Every invariant. AssertionError otherwise."""
        beliefs = self._state.beliefs
        assert np.isfinite(beliefs.mean).all() and (beliefs.mean >= 0).all(), beliefs.mean
        assert np.isfinite(beliefs.covariance).all()
        assert (np.diag(beliefs.covariance) >= 0).all()


def _same(limit_watts: float | None) -> Limits:
    """One limit on all steps. A limit of nothing is none: nobody enforces that."""
    return Limits(limit_watts or None, limit_watts or None)
