"""The same workflows through HTTP to a twin in real time, and in virtual time: the policy decides alike."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from backends.twin import calibration as calibrations
from backends.twin.content import Piece, runs_of_pieces
from backends.twin.engine import TwinEngine
from backends.twin.request import Request
from backends.twin.virtual import World
from scheduler.core import Scheduler, SchedulerConfig
from scheduler.events import CallArrived, EngineSpec, WorkflowDeclared
from scheduler.workflow.spec import NodeSpec, WorkflowSpec
from tests.e2e.harness import gateway, run
from tests.e2e.twin_process import CALIBRATION, CHAT, MODEL, Twin

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scheduler.decisions import DecisionLog

PROMPT_TOKENS = 20


class Case(NamedTuple):
    """A workflow of one call."""

    name: str
    at: float
    output_tokens: int
    deadline_seconds: float | None
    workflow_class: str | None = None


CASES = (
    Case("first", 0.0, 60, 30.0),
    Case("waits", 2.0, 60, 12.0),
    Case("person", 3.0, 100, None, "interactive"),
    Case("soon", 5.0, 100, 4.0),
    Case("late", 5.5, 50, 40.0),
    Case("impossible", 10.0, 100, 0.001),
)
"""Half a second or more lies between any two moments at which something is decided, so that no delay changes it."""
DECIDED = {
    "first": "alone",
    "person": "interactive",
    "waits": "covered",
    "soon": "urgent",
    "late": "covered",
    "impossible": "alone",
}
"""In the order in which they are sent."""


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    child = Twin(tmp_path_factory.mktemp("twin") / "log")
    try:
        yield child.wait_ready_to_serve().url
    finally:
        child.end()


def decided(log: DecisionLog) -> dict[str, str]:
    """Rules by workflow, in the order of sending."""
    records = [record for record in log.newest_first() if record.sent is not None]
    records.sort(key=lambda record: (record.sent.at, record.sent.beside))  # type: ignore[union-attr]
    return {record.workflow_id: record.sent.rule for record in records}  # type: ignore[union-attr]


def in_virtual_time(policy: str) -> dict[str, str]:
    scheduler = Scheduler(SchedulerConfig((EngineSpec("twin", 512),), policy), 0.0)
    calibration = calibrations.load(CALIBRATION)
    world = World(scheduler, {"twin": TwinEngine(calibration)})

    def arrive(case: Case) -> None:
        tokens = case.output_tokens
        node = NodeSpec(
            "n", expected_output_tokens=tokens, max_output_tokens=tokens, prompt_tokens_estimate=PROMPT_TOKENS
        )
        spec = WorkflowSpec(
            "-", case.name, nodes=(node,), workflow_class=case.workflow_class, deadline_seconds=case.deadline_seconds
        )
        world.tell(WorkflowDeclared(case.name, spec))
        pieces = [Piece(f"prompt {case.name}", PROMPT_TOKENS), Piece(f"answer {case.name}", tokens)]
        request = Request(case.name, PROMPT_TOKENS, tokens, runs_of_pieces(pieces, calibration.engine.block_tokens))
        arrived = CallArrived(case.name, "-", MODEL, case.name, PROMPT_TOKENS, tokens, "n")
        world.call(arrived, request, lambda answer: None)

    for case in CASES:
        world.time.at(case.at, lambda case=case: arrive(case))  # type: ignore[misc]
    world.time.run()
    return decided(scheduler.decisions)


def over_http(twin: str, policy: str) -> dict[str, str]:
    found: dict[str, str] = {}

    async def main() -> None:
        async with gateway(twin, policy={"name": policy}) as joulegate:
            loop = asyncio.get_running_loop()
            begin = loop.time()

            async def play(case: Case) -> None:
                content = " ".join([case.name] * 8)
                request: dict[str, Any] = {
                    "model": MODEL, "messages": [{"role": "user", "content": content}],
                    "max_tokens": case.output_tokens, "ignore_eos": True,
                }  # fmt: skip
                node = {"id": "n", "expected_output_tokens": case.output_tokens, "request": request}
                body: dict[str, Any] = {"id": case.name, "mode": "declared", "nodes": [node]}
                if case.deadline_seconds is not None:
                    body["deadline_ms"] = case.deadline_seconds * 1e3
                if case.workflow_class is not None:
                    body["class"] = case.workflow_class
                await asyncio.sleep(begin + case.at - loop.time())  # it is the case's time, and waits for nothing
                assert (await joulegate.post("/v1/workflows", body)).status == 201
                said = await joulegate.post(CHAT, request, f"x-workflow-id: {case.name}\r\nx-workflow-node: n\r\n")
                assert said.status == 200

            await asyncio.gather(*(play(case) for case in CASES))
            found.update(decided(joulegate.app.gateway.scheduler.decisions))

    run(main)
    return found


@pytest.mark.parametrize("policy", ["joule", "passthrough"])
def test_the_same_is_decided_over_http_and_in_virtual_time(twin: str, policy: str) -> None:
    virtual = in_virtual_time(policy)
    assert list(over_http(twin, policy).items()) == list(virtual.items())
    if policy == "joule":
        assert list(virtual.items()) == list(DECIDED.items())
