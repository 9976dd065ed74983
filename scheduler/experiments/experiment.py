"""A running experiment: which arm has a workflow, what came of it, and may it go on?

Its owner tells it what happens, with `now` in the experiment's seconds: the wall clock's at the start (or at `resume`),
counted on by a clock that does not jump. It decides nothing by itself: `tick` at the times that `next_edge` names, and
once a second, is enough.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from scheduler.experiments.agreement import Agreement
from scheduler.experiments.chance import share_of
from scheduler.experiments.checks import problems
from scheduler.experiments.definition import CONTROL, TREATMENT, Definition, ExperimentError
from scheduler.experiments.guardrails import Guard, Verdict
from scheduler.experiments.rows import OpenRow, WorkflowOutcome
from scheduler.experiments.schedule import LEAD_IN, Block, Schedule

if TYPE_CHECKING:
    from scheduler.experiments.marks import Reason
    from scheduler.experiments.rows import BlockRow
    from scheduler.experiments.shadow import Comparison

LIVE_MAX = 50_000
"""Workflows under way; of more, the oldest are forgotten and counted (`forgotten`)."""
GRACE_LEAST_SECONDS = 8.0
"""An energy window of 2.4 s may begin just before a block's end, and is known a probe and a sample after its own."""


class Assignment(NamedTuple):
    """What a workflow gets, for all its calls."""

    arm: int
    block: int
    side: int
    """Half of the engines (`split_and_swap`) on which the arm runs now; 0 in the other designs."""
    counted: bool
    """It began in the measured part of a block of its arm."""


class Live:
    """A workflow under way."""

    __slots__ = ("arm", "began_at", "block", "counted", "judged")

    def __init__(self, arm: int, block: int, began_at: float, counted: bool) -> None:
        self.arm = arm
        self.block = block
        self.began_at = began_at
        self.counted = counted
        self.judged = 0
        """Bits of the guardrails that know it to be bad already."""


class Experiment:
    """See the module. ExperimentError if the definition has problems that need no other experiment to see."""

    def __init__(self, definition: Definition, started_at: float) -> None:
        if found := problems(definition):
            raise ExperimentError(found)
        self.definition = definition
        self.schedule = Schedule(definition, started_at)
        self.ended_at: float | None = None
        self.stopped_why: str | None = None
        """None: it was not stopped."""
        self.harmed = False
        """A guardrail stopped it."""
        self.guards = [Guard(guardrail, definition) for guardrail in definition.guardrails]
        self.live: dict[str, Live] = {}
        self.rows: dict[tuple[int, int], OpenRow] = {}
        """Blocks that are not closed, by number and arm."""
        self.opened = LEAD_IN - 1
        """The last block that was opened."""
        self.closed_blocks = [0, 0]
        """Rows by arm that were closed without a mark."""
        self.marked: dict[str, int] = {}
        self.forgotten = self.late = 0
        self.counts = [[0, 0] for _ in self.guards]
        """Of the treatment in this block, by guardrail: bad, and of how many."""
        self.shadow = Agreement()
        self.shadow_dropped: str | None = None
        """Why nothing more is asked of the other policy; None: it still is."""
        self.cache_resets = [0, 0]
        """Blocks that began with empty prefix caches, and those that should have."""
        self._wall_offset: float | None = None
        self._verdicts: list[Verdict] = []
        self.now = started_at

    # --- who gets what ---

    @property
    def state(self) -> Literal["running", "stopped", "finished"]:
        """`finished`: the last block is over."""
        if self.ended_at is None:
            return "running"
        return "finished" if self.stopped_why is None else "stopped"

    def arm_at(self, now: float, side: int = 0) -> int:
        """Whose block it is; the control's when the experiment is over or stopped, at once."""
        if self.ended_at is not None:
            return CONTROL
        block = self.schedule.block_at(now)
        if block is None or block.number == LEAD_IN:
            return CONTROL
        return block.arm_of_side(side) if self.definition.design == "split_and_swap" else block.arm

    def assign(self, workflow_id: str, now: float) -> Assignment:
        """The arm of a workflow's next call; it is known from its first call until its outcome is recorded."""
        live = self.live.get(workflow_id)
        if self.ended_at is not None:
            return Assignment(CONTROL, -1, 0, False)
        if live is None:
            block = self.schedule.block_at(now)
            if block is None:
                return Assignment(CONTROL, -1, 0, False)
            self._open_up_to(block.number)
            live = self.live[workflow_id] = self._begin(workflow_id, block, now)
            if len(self.live) > LIVE_MAX:
                del self.live[next(iter(self.live))]
                self.forgotten += 1
        return Assignment(live.arm, live.block, self.side_of(live.arm, now), live.counted)

    def arm_of(self, workflow_id: str, now: float) -> int:
        """The arm of one that was assigned; of an unknown one, the block's."""
        live = self.live.get(workflow_id)
        if live is None or self.ended_at is not None:
            return self.arm_at(now)
        return live.arm

    def side_of(self, arm: int, now: float) -> int:
        """On which half of the engines an arm runs now (`split_and_swap`)."""
        if self.definition.design != "split_and_swap" or (block := self.schedule.block_at(now)) is None:
            return 0
        return 0 if block.arm == arm else 1

    def _begin(self, workflow_id: str, block: Block, now: float) -> Live:
        definition = self.definition
        chance = share_of("arm", definition.the_salt, workflow_id)
        mixed = block.number != LEAD_IN
        if mixed and definition.design in ("interleaved", "split_and_swap"):
            arm = TREATMENT if chance < 0.5 * block.treated_share else CONTROL
        elif block.arm == TREATMENT:
            arm = TREATMENT if chance < block.treated_share else CONTROL
        else:
            arm = CONTROL
        row = self.rows.get((block.number, arm))
        counted = row is not None and now >= block.measured_from
        if row is not None and counted:
            row.began += 1
        return Live(arm, block.number, now, counted)

    # --- what happens ---

    def record(self, outcome: WorkflowOutcome) -> None:
        """A workflow is over. It counts where it began and, if its arm is that block's, where it ended."""
        if self.ended_at is not None:
            self.live.pop(outcome.workflow_id, None)
            return
        block = self.schedule.block_at(outcome.ended_at)
        live = self.live.pop(outcome.workflow_id, None)
        if live is None:
            self.late += 1
            return
        if live.counted and (began := self.rows.get((live.block, live.arm))) is not None:
            began.time(outcome)
        if block is not None and outcome.ended_at >= block.measured_from:
            self._open_up_to(block.number)
            if (row := self.rows.get((block.number, live.arm))) is not None:
                row.end(outcome)
        self._judge(live, outcome)

    def forget(self, workflow_id: str) -> None:
        """It will have no outcome, through no fault of an arm: its client gave it up."""
        self.live.pop(workflow_id, None)

    def client_fault(self, workflow_id: str) -> None:
        """An engine has refused what its client asked for: no error of an arm's, and counted apart."""
        live = self.live.pop(workflow_id, None)
        if live is not None and live.counted and (row := self.rows.get((live.block, live.arm))) is not None:
            row.client_faults += 1

    def _judge(self, live: Live, outcome: WorkflowOutcome) -> None:
        if live.arm != TREATMENT or live.block != self.opened:
            return
        for place, guard in enumerate(self.guards):
            if live.judged >> place & 1:
                continue
            bad = guard.is_bad(outcome.seconds, outcome.failed, outcome.deadline_missed)
            if bad is not None:
                self.counts[place][0] += bad
                self.counts[place][1] += 1

    def add_energy(
        self, start: float, end: float, gpu: float | None, cpu: float | None, dram: float | None, source: str,
        side: int = 0,
    ) -> None:  # fmt: skip
        """Joules of all engines of the pool (`split_and_swap`: of one half) in this window; None = unavailable.

        Windows should end at block edges and wash-outs' ends; one that does not is shared out by time.
        """
        if end <= start or self.ended_at is not None:
            return
        self._open_up_to(min(self.schedule.number_at(end), self.definition.blocks - 1))
        for row in self.rows.values():
            if self.definition.design == "split_and_swap" and row.block.number != LEAD_IN:
                if row.block.arm_of_side(side) != row.arm:
                    continue
            elif self.definition.design == "interleaved":
                continue  # an engine's joules belong to both arms: nobody can say how many to which
            row.energy(start, end, (gpu, cpu, dram), source)

    def mark(self, reason: Reason, start: float, end: float | None = None) -> None:
        """The blocks of this stretch that are not closed yet do not count. `end` None: a moment."""
        until = start if end is None else end
        for row in self.rows.values():
            if row.block.start <= until and start < row.block.end:
                row.marks[reason] = None

    def clocks(self, now: float, wall_seconds: float) -> None:
        """A jump of the wall clock against the steady one marks the block; the schedule stays with the latter."""
        offset = wall_seconds - now
        if self._wall_offset is not None and abs(offset - self._wall_offset) > self.definition.clock_tolerance_seconds:
            self.mark("clock_jump", now)
        self._wall_offset = offset

    def shadow_decision(self, comparison: Comparison, now: float) -> None:
        """`shadow`: both policies have decided of a call."""
        if self.ended_at is not None:
            return
        self.shadow = self.shadow.plus(comparison)
        if (row := self.rows.get((self.schedule.number_at(now), CONTROL))) is not None:
            row.shadow = row.shadow.plus(comparison)

    def caches_were_reset(self, done: bool, now: float) -> None:
        """A block's wash-out is over, and its prefix caches were all emptied or not."""
        self.cache_resets[not done] += 1
        if not done and self.definition.reset_prefix_cache == "required":
            self.mark("cache_not_reset", now)

    # --- time ---

    def tick(self, now: float) -> list[BlockRow]:
        """Open and close blocks and ask the guardrails. Returns the rows that are closed now, each once."""
        self.now = max(self.now, now)
        if self.ended_at is not None:
            return []
        blocks = self.definition.blocks
        number = self.schedule.number_at(now)
        self._open_up_to(min(number, blocks - 1))
        closed = self._close(now)
        self._count_overdue(now)
        self._verdicts = [guard.judge(*count) for guard, count in zip(self.guards, self.counts, strict=True)]
        for verdict in self._verdicts:
            if verdict.stop:
                self.harmed = True
                return closed + self.stop(now, f"{verdict.guardrail}: {verdict.why}")
        if number >= blocks and not self.rows:
            self.ended_at = now
            self.live.clear()
        return closed

    def stop(self, now: float, why: str) -> list[BlockRow]:
        """Back to the control, at once and for good. Returns the rows that were open, marked."""
        if self.ended_at is not None:
            return []
        self.ended_at, self.stopped_why = now, why
        for row in self.rows.values():
            if now < row.block.end:
                row.marks["stopped"] = None
        return self._close(inf)

    def next_edge(self, now: float) -> float | None:
        """When to `tick` next at the latest; None: never. Energy windows should end at these times too."""
        if self.ended_at is not None:
            return None
        edges = [row.block.end + self._grace for row in self.rows.values()]
        if (block := self.schedule.block_at(now)) is not None:
            edges += [block.measured_from, block.end]
        return min((edge for edge in edges if edge > now), default=now)

    def skipped_to(self, now: float) -> None:
        """The gateway was away until now: blocks that went by are opened, empty and marked."""
        self.now = max(self.now, now)
        self._open_up_to(min(self.schedule.number_at(now), self.definition.blocks - 1))

    @property
    def _grace(self) -> float:
        """A row waits so long for the workflows that began in it."""
        return max(GRACE_LEAST_SECONDS, self.definition.washout_seconds)

    def _arms_of(self, block: Block) -> tuple[int, ...]:
        if block.number == LEAD_IN or self.definition.design == "shadow":
            return (CONTROL,)
        return (CONTROL, TREATMENT) if self.definition.design in ("split_and_swap", "interleaved") else (block.arm,)

    def _open_up_to(self, number: int) -> None:
        while self.opened < number:
            self.opened += 1
            block = self.schedule.block(self.opened)
            for arm in self._arms_of(block):
                row = self.rows[self.opened, arm] = OpenRow(block, arm)
                if self.opened == LEAD_IN:
                    row.marks["lead_in"] = None
                elif self.schedule.is_ramp_up(block):
                    row.marks["ramp_up"] = None
                if self.opened < number:
                    row.marks["not_watched"] = None
            self.counts = [[0, 0] for _ in self.guards]

    def _close(self, now: float) -> list[BlockRow]:
        closed = []
        for place, row in list(self.rows.items()):
            if now < row.block.end + self._grace:
                continue
            number, arm = place
            for workflow_id, live in self.live.items():
                if live.counted and live.block == number and live.arm == arm:
                    age = min(now, row.block.end + self._grace) - live.began_at
                    row.time(WorkflowOutcome(workflow_id, age, now), unfinished=True)
                    live.counted = False
            del self.rows[place]
            done = row.closed(1)
            closed.append(done)
            for mark in done.marks:
                self.marked[mark] = self.marked.get(mark, 0) + 1
            if not set(done.marks) - {"energy_unavailable"}:
                self.closed_blocks[arm] += 1
            for guard in self.guards:
                guard.learn(done)
        return closed

    def _count_overdue(self, now: float) -> None:
        """A treatment that answers nobody must not wait for answers to be found out."""
        for place, guard in enumerate(self.guards):
            if not guard.is_time or guard.allowed is None:
                continue
            bit = 1 << place
            for live in self.live.values():
                if live.arm == TREATMENT and live.block == self.opened and not live.judged & bit:
                    if now - live.began_at <= guard.allowed:
                        break  # in the order of their beginnings
                    live.judged |= bit
                    self.counts[place][0] += 1
                    self.counts[place][1] += 1

    def validate(self) -> None:
        """Check every invariant. AssertionError names the one that does not hold."""
        running: dict[tuple[int, int], int] = {}
        assert len(self.live) <= LIVE_MAX
        for workflow_id, live in self.live.items():
            assert live.block <= self.opened, f"{workflow_id} is of a block that was never opened"
            if live.counted:
                place = live.block, live.arm
                assert place in self.rows, f"{workflow_id} counts in a row that is closed"
                running[place] = running.get(place, 0) + 1
        for place, row in self.rows.items():
            assert place == (row.block.number, row.arm)
            assert row.block.number <= self.opened
            assert row.timed + running.get(place, 0) <= row.began, f"row {place} has more workflows than began"
            assert row.failed <= row.timed
            assert row.timed + row.client_faults <= row.began
            assert row.missed <= row.with_deadline <= row.timed
        for bad, known in self.counts:
            assert 0 <= bad <= known
        if self.ended_at is not None:
            assert not self.rows, "it is over, and a row is open"

    def status(self, now: float) -> dict[str, Any]:
        """For people and their programs."""
        definition = self.definition
        block = None if self.ended_at is not None else self.schedule.block_at(now)
        where: dict[str, Any] = {}
        if block is not None:
            where = {
                "block": block.number, "pair": block.pair, "arm": str(definition.arms[self.arm_at(now)]),
                "in_washout": now < block.measured_from, "seconds_to_next_block": max(0.0, block.end - now),
                "lead_in": block.number == LEAD_IN, "ramp_up": self.schedule.is_ramp_up(block),
            }  # fmt: skip
            if definition.design == "split_and_swap":
                where["arm_of_second_half"] = str(definition.arms[self.arm_at(now, 1)])
        return {
            "id": definition.id, "state": self.state, "design": definition.design, "metric": definition.metric,
            "pool": definition.pool, "arms": [str(arm) for arm in definition.arms],
            "started_at": self.schedule.started_at, "ends_at": self.schedule.ends_at, "ended_at": self.ended_at,
            "stopped_why": self.stopped_why, **where, "blocks": definition.blocks,
            "blocks_done": dict(zip(("control", "treatment"), self.closed_blocks, strict=True)),
            "marked": dict(self.marked), "workflows_running": len(self.live), "workflows_forgotten": self.forgotten,
            **({"cache_resets": dict(zip(("done", "missed"), self.cache_resets, strict=True))}
               if definition.reset_prefix_cache != "no" else {}),
            "guardrails": [verdict._asdict() for verdict in self._verdicts],
            **({"shadow": self.shadow._asdict(), "shadow_dropped": self.shadow_dropped}
               if definition.design == "shadow" else {}),
        }  # fmt: skip
