"""What did each call really use? The simulated engine's own steps, split exactly."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from backends.twin.request import State

if TYPE_CHECKING:
    from collections.abc import Hashable

    from backends.twin.engine import TwinEngine
    from backends.twin.request import Request
    from backends.twin.steps import StepRun

Marks = "Sequence[tuple[Hashable, float]]"
Beginnings = tuple[tuple["Hashable", float], ...]


class Truth:
    """Watches an engine. Joules above idle; where a power limit makes a step cheaper, all its terms alike."""

    def __init__(self, engine: TwinEngine) -> None:
        self.own: dict[str, float] = defaultdict(float)
        """Call → joules, its own prefill in full."""
        self.work: dict[str, list[float]] = defaultdict(lambda: [0.0] * 6)
        """Call → the first six features of `Work`, exactly."""
        self.prefill_joules: dict[str, float] = defaultdict(float)
        """Call → of its joules, those for tokens and pairs of its prompt."""
        self.above_idle = 0.0
        self._prefill: dict[Hashable, float] = defaultdict(float)
        self._users: dict[Hashable, list[str]] = defaultdict(list)
        self._paid: dict[tuple[Hashable, str], float] = defaultdict(float)
        self._marks: dict[str, Beginnings] = {}
        self._engine = engine
        engine.watch = self._run

    def call(self, call_id: str, marks: Beginnings) -> None:
        """A call will come whose prompt begins so: (what names the beginning, its tokens), growing."""
        self._marks[call_id] = marks

    def of(self, call_id: str) -> float:
        """Its joules once all is over: what was spent on each beginning is shared by all whose prompt begins so."""
        joules = self.own[call_id]
        for mark, _ in self._marks.get(call_id, ()):
            users = self._users[mark]
            if call_id in users:
                joules += self._prefill[mark] / len(users) - self._paid[mark, call_id]
        return joules

    def _run(self, run: StepRun) -> None:
        engine, batch, steps = self._engine, run.batch, run.steps
        terms = engine.calibration.energy
        decoding = [request for request in engine.running.values() if request.state is State.DECODE]
        seconds = run.end - run.start
        true = run.joules(run.start, run.end) - engine.costs.idle_watts * seconds
        self.above_idle += true
        sequences = len(decoding) + len(run.chunks)
        nominal: dict[str, float] = {}
        fixed = terms.step + terms.expert_step * (1 - engine.costs._unused_share ** (batch.decode + batch.prefill))
        again = self._read_again([*decoding, *(request for request, _ in run.chunks)], batch.repeated)
        for request in decoding:
            read = steps * (engine.decoding.computed(request) + 1) + steps * (steps - 1) / 2
            repeated = steps * again[request.id]
            _count(self.work[request.id], (steps / sequences, steps, read - repeated, repeated, 0.0, 0.0))
            nominal[request.id] = (
                steps * (fixed / sequences + terms.decode_token)
                + terms.context_token * (read - repeated)
                + terms.repeated_token * repeated
            )
        prefills: dict[str, float] = {}
        for request, count in run.chunks:
            start, repeated = request.computed_tokens, again[request.id]
            prefills[request.id] = _prefill(terms, start, start + count)
            pairs = count * (start + count / 2)
            _count(self.work[request.id], (1 / sequences, 0.0, start - repeated, repeated, float(count), pairs))
            nominal[request.id] = (
                fixed / sequences
                + terms.context_token * (start - repeated)
                + terms.repeated_token * repeated
                + prefills[request.id]
            )
        factor = true / sum(nominal.values())
        for call_id, joules in nominal.items():
            self.own[call_id] += joules * factor
        for call_id, joules in prefills.items():
            self.prefill_joules[call_id] += joules * factor
        for request, count in run.chunks:
            self._spent(request, request.computed_tokens, request.computed_tokens + count, factor)

    def _read_again(self, requests: list[Request], repeated: float) -> dict[str, float]:
        """Tokens of each that others of the step read too, its part of those that come from the L2 cache."""
        block = self._engine.calibration.engine.block_tokens
        found: dict[str, float] = {}
        for request in requests:
            node, tokens = request.node, 0.0
            while node is not None and node.parent is not None:
                tokens += block * node.blocks * (node.holders - 1) / node.holders if node.holders else 0.0
                node = node.parent
            found[request.id] = tokens
        total = sum(found.values())
        factor = repeated / total if total > 0 else 0.0
        return {call_id: tokens * factor for call_id, tokens in found.items()}

    def _spent(self, request: Request, start: float, end: float, factor: float) -> None:
        terms = self._engine.calibration.energy
        before = 0.0
        for mark, tokens in self._marks.get(request.id, ()):
            users = self._users[mark]
            if not users or (users[-1] != request.id and request.id not in users):
                users.append(request.id)
            low, high = max(start, before), min(end, tokens)
            if high > low:
                joules = factor * _prefill(terms, low, high)
                self._prefill[mark] += joules
                self._paid[mark, request.id] += joules
            before = tokens


def _prefill(terms: object, start: float, end: float) -> float:
    token, pair = terms.prefill_token, terms.attention_pair  # type: ignore[attr-defined]
    return float(token * (end - start) + pair * (end * end - start * start) / 2)


def _count(work: list[float], more: tuple[float, ...]) -> None:
    for place, value in enumerate(more):
        work[place] += value
