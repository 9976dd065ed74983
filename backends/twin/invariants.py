"""What holds of a simulated engine between two runs of steps, and within one?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from backends.twin.request import State

if TYPE_CHECKING:
    from backends.twin.engine import TwinEngine
    from backends.twin.steps import StepRun


def validate(engine: TwinEngine, run: StepRun | None) -> None:
    """`run`: that is under way. AssertionError names what does not hold."""
    engine.cache.validate()
    running = list(engine.running.values())
    assert len(running) <= engine.calibration.engine.max_num_seqs
    engine.decoding.validate([request for request in running if request.state is State.DECODE])
    assert all(request.state in (State.DECODE, State.PREFILL) for request in running)
    blocks = 0
    in_chunk = {request.id: count for request, count in run.chunks} if run is not None else {}
    for request in running:
        decodes = request.state is State.DECODE
        computed = engine.decoding.computed(request) if decodes else request.computed_tokens
        assert request.node is not None
        whole = computed + in_chunk.get(request.id, 0)
        blocks += -(-whole // engine.calibration.engine.block_tokens) - request.node.depth
        assert engine.generated(request) <= request.output_tokens
    assert blocks == engine.cache.private, (blocks, engine.cache.private)
    engine.waiting.validate()
    assert run is None or run.steps >= 1
    assert run is not None or not running, "requests run, and no step is under way"
