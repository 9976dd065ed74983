"""What is the least that a few calls can cost on one engine, if everything is known? Found by branch and bound.

A schedule says when each call is released: as soon as it can run, or later: when something comes, when something must
begin at the latest, or at a time of a grid between. Steps are the twin's, affine in what is in them (`Terms`); a batch
is followed from one change to the next. Joules above idle power only ever grow with a further call, by its own terms at
least: a part of a schedule that costs more than a whole one already is given up, with all that begin like it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backends.twin.calibration import Calibration

AT_ONCE = 0.0
GRID = 6
"""Times between a call's first and last one, beside those that others give."""
CLOSE_SECONDS = 0.05
"""Two times so close are one."""
CALL_SECONDS = 0.02
"""A call's way into the engine's next step and back: by so much its end is later than its last step's, as a bound."""
NODES_MOST = 400_000
EPSILON = 1e-9


class Job(NamedTuple):
    """A call."""

    arrival: float
    """Of its workflow."""
    deadline: float
    after: tuple[int, ...]
    prompt_tokens: int
    output_tokens: int


class Found(NamedTuple):
    """The best schedule."""

    joules: float
    """Above idle power, by the affine steps."""
    releases: tuple[float, ...]
    """Not before these times."""
    nodes: int
    """That were looked at."""
    proven: bool
    """Every other one was ruled out; else `NODES_MOST` were looked at, and there may be a better one."""


class Steps:
    """An engine's steps, by a calibration's terms."""

    def __init__(self, calibration: Calibration) -> None:
        self.time, self.energy = calibration.time, calibration.energy

    def prefill(self, job: Job) -> tuple[float, float]:
        """(seconds, joules) by which its prompt lengthens a step."""
        tokens = job.prompt_tokens
        pairs = tokens * tokens / 2
        return (
            self.time.prefill_token * tokens + self.time.attention_pair * pairs,
            self.energy.prefill_token * tokens + self.energy.attention_pair * pairs,
        )

    def token(self, job: Job) -> tuple[float, float]:
        """(seconds, joules) that it adds to each step in which it decodes, with its mean context."""
        context = job.prompt_tokens + job.output_tokens / 2
        return (
            self.time.decode_token + self.time.context_token * context,
            self.energy.decode_token + self.energy.context_token * context,
        )

    def own_joules(self, job: Job) -> float:
        """What it costs whoever is there."""
        return self.prefill(job)[1] + job.output_tokens * self.token(job)[1]

    def alone_seconds(self, job: Job) -> float:
        """With nobody else at the engine."""
        return CALL_SECONDS + self.prefill(job)[0] + job.output_tokens * (self.time.step + self.token(job)[0])


@dataclass(slots=True)
class Played:
    """What a (part of a) schedule comes to."""

    joules: float
    ends: dict[int, float]


class Search:
    """The jobs of one instance; each comes behind those it is `after`."""

    def __init__(self, jobs: Sequence[Job], calibration: Calibration) -> None:
        self.jobs = jobs
        self.steps = Steps(calibration)
        self._prefill = [self.steps.prefill(job) for job in jobs]
        self._token = [self.steps.token(job) for job in jobs]
        self._own = [self.steps.own_joules(job) for job in jobs]
        self._alone = [self.steps.alone_seconds(job) for job in jobs]
        self._tail = self._tails()
        self._order = self._by_length()
        self._nodes = 0
        self._best: tuple[float, tuple[float, ...]] = (float("inf"), ())

    def _tails(self) -> list[float]:
        """From a call's start to its workflow's end, alone."""
        tails = list(self._alone)
        for index in reversed(range(len(self.jobs))):
            for before in self.jobs[index].after:
                tails[before] = max(tails[before], self._alone[before] + tails[index])
        return tails

    def _by_length(self) -> list[int]:
        """The longest workflow's calls first: what they cost rules most out. Within it, in their order."""
        weight: dict[float, float] = {}
        for index, job in enumerate(self.jobs):
            weight[job.arrival] = max(weight.get(job.arrival, 0.0), self._tail[index])
        return sorted(range(len(self.jobs)), key=lambda index: (-weight[self.jobs[index].arrival], index))

    def play(self, releases: dict[int, float]) -> Played:
        """The calls of `releases` alone, each released then or when it can run, whichever is later."""
        jobs, step, step_joules = self.jobs, self.steps.time.step, self.steps.energy.step
        ready = {index: max(at, jobs[index].arrival) for index, at in releases.items() if not jobs[index].after}
        waits = {index: len(jobs[index].after) for index in releases if jobs[index].after}
        running: dict[int, float] = {}
        ends: dict[int, float] = {}
        now, joules, slower = 0.0, 0.0, 0.0
        while ready or running:
            coming = min(ready, key=ready.__getitem__) if ready else -1
            if not running or (ready and ready[coming] <= now + EPSILON):
                now = max(now, ready.pop(coming))
                seconds, cost = self._prefill[coming]
                now, joules, slower = now + seconds, joules + cost, slower + self._token[coming][0]
                running[coming] = float(jobs[coming].output_tokens)
                continue
            first = min(running, key=running.__getitem__)
            each = step + slower
            steps = running[first]
            if ready:
                steps = min(steps, (ready[coming] - now) / each)
            now += steps * each
            joules += steps * step_joules
            for index in running:
                running[index] -= steps
                joules += steps * self._token[index][1]
            if running[first] <= EPSILON:
                del running[first]
                slower -= self._token[first][0]
                ends[first] = now + CALL_SECONDS
                for index, left in list(waits.items()):
                    if first in jobs[index].after:
                        waits[index] = left - 1
                        if left == 1:
                            ready[index] = max(releases[index], ends[first])
        return Played(joules, ends)

    def best(self, starts: Sequence[Sequence[float]] = ()) -> Found:
        """The least. `starts`: schedules to begin with, by which much is ruled out early."""
        self._nodes = 0
        for releases in (*starts, [AT_ONCE] * len(self.jobs), [self._latest(i) for i in range(len(self.jobs))]):
            self._consider(dict(enumerate(releases)))
        self._improve()
        self._branch(0, {}, sum(self._own))
        joules, releases = self._best
        return Found(joules, tuple(releases), self._nodes, self._nodes < NODES_MOST)

    def _latest(self, index: int) -> float:
        return self.jobs[index].deadline - self._tail[index]

    def candidates(self, index: int) -> list[float]:
        """When a call may be released: at once, or later."""
        job, latest = self.jobs[index], self._latest(index)
        times = {AT_ONCE, latest}
        times.update(other.arrival for other in self.jobs)
        times.update(self._latest(other) for other in range(len(self.jobs)))
        times.update(job.arrival + (latest - job.arrival) * part / (GRID + 1) for part in range(1, GRID + 1))
        kept = [AT_ONCE]
        for time in sorted(times):
            if job.arrival < time <= latest and time - kept[-1] > CLOSE_SECONDS:
                kept.append(time)
        return kept

    def in_time(self, played: Played) -> bool:
        """Whether nothing that was played makes a deadline impossible."""
        return all(end + self._tail[i] - self._alone[i] <= self.jobs[i].deadline for i, end in played.ends.items())

    def _consider(self, releases: dict[int, float]) -> bool:
        played = self.play(releases)
        if played.joules < self._best[0] - EPSILON and self.in_time(played):
            self._best = played.joules, tuple(releases[index] for index in range(len(self.jobs)))
            return True
        return False

    def _improve(self) -> None:
        """One call at a time elsewhere, as long as that helps."""
        better = bool(self._best[1])
        while better:
            better = False
            for index in range(len(self.jobs)):
                for time in self.candidates(index):
                    better = self._consider({**dict(enumerate(self._best[1])), index: time}) or better

    def _branch(self, depth: int, releases: dict[int, float], rest: float) -> None:
        if depth == len(self.jobs):
            self._consider(releases)
            return
        index = self._order[depth]
        rest -= self._own[index]
        tried = []
        for time in self.candidates(index):
            self._nodes += 1
            if self._nodes >= NODES_MOST:
                return
            played = self.play({**releases, index: time})
            if played.joules + rest < self._best[0] - EPSILON and self.in_time(played):
                tried.append((played.joules, time))
        for joules, time in sorted(tried):
            if joules + rest < self._best[0] - EPSILON:
                self._branch(depth + 1, {**releases, index: time}, rest)
