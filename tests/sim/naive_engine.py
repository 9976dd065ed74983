"""The same engine written the slow, obvious way: every step and every sequence on its own, blocks in a dictionary.

`backends.twin.engine` jumps over steps and keeps sums; this one does neither, and both must tell the same story.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from backends.twin.calibration import Calibration
from backends.twin.content import Run
from backends.twin.cost import Batch, CostModel


@dataclass(eq=False)
class Seq:
    id: str
    prompt: int
    output: int
    chain: list[int]
    priority: int
    order: int
    visible_at: float
    computed: int = 0
    generated: int = 0
    held: int = 0
    target: int = 0
    decoding: bool = False
    cached_tokens: int | None = None
    preemptions: int = 0
    aborted: bool = False


@dataclass
class Block:
    holders: int = 0
    stamp: int = 0
    depth: int = 0


@dataclass
class NaiveEngine:
    calibration: Calibration
    policy: str = "priority"
    now: float = 0.0
    joules: float = 0.0
    waiting: list[Seq] = field(default_factory=list)
    incoming: list[Seq] = field(default_factory=list)
    running: list[Seq] = field(default_factory=list)
    tree: dict[int, Block] = field(default_factory=dict)
    names: dict[Any, int] = field(default_factory=dict)
    story: list[tuple[str, str, float]] = field(default_factory=list)
    stamps: int = 0
    orders: int = 0

    def __post_init__(self) -> None:
        self.costs = CostModel(self.calibration)
        self.limits = self.calibration.engine
        self.size = self.limits.block_tokens
        self.blocks = self.limits.kv_cache_tokens // self.size
        self.seqs: dict[str, Seq] = {}
        self.felt_watts = self.costs.idle_watts
        self.limit_watts = self.costs.limit_watts

    def submit(self, name: str, prompt: int, output: int, runs: list[Run], priority: int, now: float) -> None:
        chain: list[int] = []
        for run_name, offset, count in runs:
            for number in range(count):
                key = (chain[-1] if chain else -1, run_name, offset + number)
                chain.append(self.names.setdefault(key, len(self.names)))
        self.orders += 1
        visible = now + self.calibration.frontend.input_seconds
        seq = Seq(name, prompt, output, chain, priority, self.orders, visible, target=prompt)
        self.seqs[name] = seq
        self.incoming.append(seq)

    def abort(self, name: str) -> None:
        if name in self.seqs:
            self.seqs[name].aborted = True

    # --- blocks ---

    def private(self, seq: Seq) -> int:
        return -(-seq.computed // self.size) - seq.held

    def used(self) -> int:
        tree = sum(1 for block in self.tree.values() if block.holders)
        return tree + sum(self.private(seq) for seq in self.running)

    def make_room(self) -> None:
        while self.used() + sum(1 for block in self.tree.values() if not block.holders) > self.blocks:
            free = [(block.stamp, -block.depth, key) for key, block in self.tree.items() if not block.holders]
            del self.tree[min(free)[2]]

    def hold(self, seq: Seq, blocks: int) -> None:
        for depth in range(seq.held, blocks):
            self.tree.setdefault(seq.chain[depth], Block(depth=depth)).holders += 1
        seq.held = max(seq.held, blocks)

    def let_go(self, seq: Seq) -> None:
        self.stamps += 1
        for key in seq.chain[: seq.held]:
            block = self.tree[key]
            block.holders -= 1
            if not block.holders:
                block.stamp = self.stamps
        seq.held = 0

    def leave(self, seq: Seq) -> None:
        self.hold(seq, seq.computed // self.size)
        self.running.remove(seq)
        self.let_go(seq)

    # --- steps ---

    def run(self, until: float) -> None:
        """Steps until none begins before this time."""
        scheduled_at = self.now
        while True:
            if not self.schedule(scheduled_at):
                if scheduled_at < self.now:  # nothing ran ahead: it looks again at once
                    scheduled_at = self.now
                    continue
                if not self.incoming:
                    return
                wake = max(self.now, min(seq.visible_at for seq in self.incoming))
                if wake > until:
                    return
                self.joules += (wake - self.now) * self.costs.idle_watts
                self.feel(self.costs.idle_watts, wake - self.now)
                scheduled_at = self.now = wake
                continue
            start = self.now
            ready_at = scheduled_at + self.limits.prompt_step_seconds if self.chunks else start
            self.step(ready_at - start)
            ahead_at = min(max(start + self.limits.schedule_seconds, ready_at), self.now)
            scheduled_at = ahead_at if self.limits.async_scheduling else self.now

    def schedule(self, scheduled_at: float) -> bool:
        for seq in [seq for seq in self.incoming if seq.visible_at <= scheduled_at]:
            self.incoming.remove(seq)
            if not seq.aborted:
                self.waiting.append(seq)
        self.waiting = [seq for seq in self.waiting if not seq.aborted]
        preempted = False
        while self.room() < 0:
            self.preempt(self.victim(self.running))
            preempted = True
        budget = self.limits.max_num_batched_tokens - sum(seq.decoding for seq in self.running)
        self.chunks: list[tuple[Seq, int]] = []
        for seq in list(self.running):
            if seq.decoding or seq not in self.running or not budget:
                continue
            count = min(seq.target - seq.computed, budget)
            while self.blocks_for(seq, seq.computed + count) > self.room():
                taken = [each for each, _ in self.chunks]
                victim = self.victim([each for each in self.running if each not in taken])
                self.preempt(victim)
                preempted = True
                if victim is seq:
                    break
            else:
                budget -= self.chunk(seq, count)
        while not preempted and self.waiting and budget and len(self.running) < self.limits.max_num_seqs:
            key = (lambda seq: (seq.priority, seq.order)) if self.policy == "priority" else (lambda seq: (0, seq.order))
            seq = min(self.waiting, key=key)
            hit = 0
            while hit < (seq.target - 1) // self.size and seq.chain[hit] in self.tree:
                hit += 1
            self.hold(seq, hit)
            seq.computed = hit * self.size
            self.running.append(seq)
            if self.blocks_for(seq, seq.target) > self.room():
                self.running.remove(seq)
                self.let_go(seq)
                seq.computed = 0
                break
            self.waiting.remove(seq)
            budget -= self.chunk(seq, min(seq.target - seq.computed, budget))
            if seq.cached_tokens is None:
                seq.cached_tokens = hit * self.size
        return bool(self.running)

    def decode_blocks(self) -> int:
        return sum(1 for seq in self.running if seq.decoding and seq.computed % self.size == 0)

    def room(self) -> int:
        return self.blocks - self.used() - self.decode_blocks()

    def blocks_for(self, seq: Seq, tokens: int) -> int:
        return -(-tokens // self.size) - -(-seq.computed // self.size)

    def victim(self, among: list[Seq]) -> Seq:
        if self.policy == "priority":
            return max(among, key=lambda seq: (seq.priority, seq.order))
        return among[-1]

    def chunk(self, seq: Seq, count: int) -> int:
        """Its tokens of this step; `computed` counts them from now on, and `step` knows how many were new."""
        self.chunks.append((seq, count))
        seq.computed += count
        self.make_room()
        self.hold(seq, seq.computed // self.size)
        return count

    def preempt(self, seq: Seq) -> None:
        self.leave(seq)
        seq.target = seq.prompt + seq.generated
        seq.computed, seq.decoding = 0, False
        seq.preemptions += 1
        self.waiting.append(seq)

    def feel(self, demand_watts: float, seconds: float) -> None:
        """The card's average of the demand goes on."""
        constant = self.calibration.cap.average_seconds
        gone = 1 - math.exp(-seconds / constant) if constant else 1.0
        self.felt_watts += (demand_watts - self.felt_watts) * gone

    def step(self, least_seconds: float) -> None:
        decoding = [seq for seq in self.running if seq.decoding]
        read = sum(seq.computed + 1 for seq in decoding)
        tokens, pairs = 0, 0.0
        for seq, count in self.chunks:
            before = seq.computed - count
            tokens += count
            read += before
            pairs += count * (before + count / 2)
        shared = sum(block.holders - 1 for block in self.tree.values() if block.holders > 1) * self.size
        shared = min(read, shared)
        batch = Batch(len(decoding), read - shared, shared, tokens, pairs)
        felt_watts = self.felt_watts if self.calibration.cap.average_seconds else None
        cost = self.costs.step(batch, self.limit_watts, least_seconds=max(0.0, least_seconds), average_watts=felt_watts)
        self.feel(cost.demand_watts, cost.seconds)
        self.now += cost.seconds
        self.joules += cost.seconds * cost.watts
        for seq in decoding:
            seq.computed += 1
            seq.generated += 1
        self.make_room()
        ended = sorted((seq for seq in decoding if seq.generated >= seq.output), key=lambda seq: seq.order)
        for seq in ended:
            if not seq.aborted:
                self.end(seq)
        for seq, _ in self.chunks:
            if seq.computed == seq.target and not seq.aborted:
                if not seq.generated:
                    self.story.append(("first", seq.id, self.now))
                seq.generated += 1
                seq.decoding = True
                if seq.generated == seq.output:
                    self.end(seq)
        for seq in [seq for seq in self.running if seq.aborted]:
            self.leave(seq)

    def end(self, seq: Seq) -> None:
        self.leave(seq)
        self.story.append(("finished", seq.id, self.now))
