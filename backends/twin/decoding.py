"""The sequences that decode: all of them advance by one token a step, so none is touched at each step."""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

from backends.twin.request import State

if TYPE_CHECKING:
    from backends.twin.request import Request

STALE_MAX = 64
"""Entries out of date that may lie in the heap, besides as many as there are live ones."""


class DecodingSet:
    """Counts and sums over them, kept in O(1) a run of steps and O(log n) a sequence that joins or ends."""

    def __init__(self, block_tokens: int) -> None:
        self.count = 0
        self.steps = 0
        """Decode steps done since the start: the set's own clock."""
        self.context_tokens = 0
        """Tokens of KV cache that the next step reads, over all sequences."""
        self._block_tokens = block_tokens
        self._block_starts = [0] * block_tokens
        """How many sequences need a new block in a step, by that step's number modulo the block's length."""
        self._ends: list[tuple[int, int, Request]] = []
        """Heap of (step after which it is finished, order, sequence); entries out of date are skipped."""

    def join(self, request: Request, generated: int) -> None:
        """Its prefill is done, which made output token number `generated`; it goes on from here."""
        request.state = State.DECODE
        request.joined_at_step = self.steps
        request.computed_at_join = request.target_tokens
        request.generated_at_join = generated
        request.ends_at_step = self.steps + request.output_tokens - generated
        self.count += 1
        self.context_tokens += request.target_tokens + 1
        self._block_starts[(self.steps - request.target_tokens) % self._block_tokens] += 1
        heappush(self._ends, (request.ends_at_step, request.order, request))

    def leave(self, request: Request) -> None:
        """It is finished, preempted or aborted."""
        self.count -= 1
        if len(self._ends) > 2 * self.count + STALE_MAX:  # of those that left before their end
            self._ends = [entry for entry in self._ends if self._live(entry) and entry[2] is not request]
            heapify(self._ends)
        self.context_tokens -= self.computed(request) + 1
        self._block_starts[(request.joined_at_step - request.computed_at_join) % self._block_tokens] -= 1

    def advance(self, steps: int) -> None:
        """So many steps are done."""
        self.steps += steps
        self.context_tokens += steps * self.count

    def computed(self, request: Request) -> int:
        """Tokens in the KV cache of one of them."""
        return request.computed_at_join + self.steps - request.joined_at_step

    def generated(self, request: Request) -> int:
        """Output tokens of one of them."""
        return request.generated_at_join + self.steps - request.joined_at_step

    def pop_finished(self) -> Request | None:
        """A sequence whose last step is done and that has not left; None if there is no other."""
        ends = self._ends
        while ends and ends[0][0] <= self.steps:
            entry = heappop(ends)
            if self._live(entry):
                return entry[2]
        return None

    @staticmethod
    def _live(entry: tuple[int, int, Request]) -> bool:
        ends_at, _, request = entry
        return request.state is State.DECODE and request.ends_at_step == ends_at and not request.aborted

    def steps_to_next_end(self) -> int:
        """Steps until some sequence may be finished, at least 1."""
        while self._ends and not self._live(self._ends[0]):
            heappop(self._ends)
        return max(1, self._ends[0][0] - self.steps) if self._ends else 1

    def blocks_needed(self, steps: int) -> int:
        """New blocks for so many more steps."""
        whole, rest = divmod(steps, self._block_tokens)
        blocks = whole * self.count
        for ahead in range(rest):
            blocks += self._block_starts[(self.steps + ahead) % self._block_tokens]
        return blocks

    def steps_that_fit(self, steps: int, blocks: int) -> int:
        """At most so many steps, and at least 1, for which these blocks suffice."""
        if self.count * (steps // self._block_tokens + 1) <= blocks or self.blocks_needed(steps) <= blocks:
            return steps
        low, high = 1, steps
        while low < high:
            middle = (low + high + 1) // 2
            if self.blocks_needed(middle) <= blocks:
                low = middle
            else:
                high = middle - 1
        return low

    def validate(self, decoding: list[Request]) -> None:
        """The sums are those of these sequences. AssertionError otherwise."""
        assert len(decoding) == self.count == sum(self._block_starts), (len(decoding), self.count)
        assert self.context_tokens == sum(self.computed(request) + 1 for request in decoding)
