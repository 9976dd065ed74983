"""A gateway's logs become a trace: lengths, times and graphs as they were, and not a word of what was said."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from backends.twin import calibration as calibrations
from backends.twin.engine import TwinEngine
from backends.twin.virtual import World
from bench.cli import main
from bench.load.cell import play_virtual
from bench.load.record import grouped, trace_of
from bench.load.record_logs import Seen, read_log
from bench.load.spec import of
from bench.programs import BenchError
from bench.twin.play import Player
from scheduler.core import Scheduler, SchedulerConfig
from scheduler.eventlog import event_line, head_line
from scheduler.events import CallFailed, CallPlaced, EngineSpec
from workloads.shapes import WorkflowShape, chain, coding, map_reduce
from workloads.trace import Trace, TraceFault, arrivals_of, read_trace, write_trace

SECRET = "confidential"
CONFIG = SchedulerConfig((EngineSpec("twin", 4096),), "fifo")


class Logged:
    """A scheduler that writes its event log, as the gateway does."""

    def __init__(self) -> None:
        self.scheduler = Scheduler(CONFIG, 0.0)
        self.lines = [head_line(CONFIG, 0.0)]

    def handle(self, event: Any, now: float) -> Any:
        actions = self.scheduler.handle(event, now)
        self.lines.append(event_line(event, now, actions))
        return actions


class Hinting(Player):
    """Its calls say in headers where they belong; names are its own."""

    def arrived(self, call_id: str, workflow: WorkflowShape, call: Any) -> Any:
        usual = super().arrived(call_id, workflow, call)
        return usual._replace(identity_source="joulegate-header")


def recorded(shapes: list[WorkflowShape]) -> tuple[list[str], list[Any]]:
    """(event log, finished workflows)."""
    mind = Logged()
    player = Hinting(World(mind, {"twin": TwinEngine(calibrations.load("h200-llama-3.1-8b"))}))
    for number, shape in enumerate(shapes):
        player.world.time.at(2.0 * number, lambda shape=shape: player.start(shape))  # type: ignore[misc]
    player.world.time.run()
    return mind.lines, player.played


def shapes() -> list[WorkflowShape]:
    rng = random.Random(1)
    makers = (
        lambda name: chain(name, rng, chunks=(3, 4)),
        lambda name: map_reduce(name, rng, chunks=(3, 4)),
        lambda name: coding(name, rng, files=(2, 2), rounds=1),
    )
    return [make(f"{SECRET}-{number}") for number, make in enumerate(makers)]


def test_an_event_log_gives_the_graphs_lengths_and_times_and_no_names(tmp_path: Path) -> None:
    given = shapes()
    lines, _ = recorded(given)
    log, out = tmp_path / "events.jsonl", tmp_path / "trace.jsonl"
    log.write_text("\n".join(lines) + '\n{"now": 9, "eve')  # cut in the middle, as after a kill
    assert main(["record", str(log), "--out", str(out)]) == 0
    assert SECRET not in out.read_text()
    trace = read_trace(out)
    assert [workflow.at_seconds for workflow in trace.workflows] == [0.0, 2.0, 4.0]
    for workflow, shape in zip(trace.workflows, given, strict=True):
        assert len(workflow.calls) == len(shape.calls)
        by_length = sorted((call.prompt_tokens, call.output_tokens, len(call.after)) for call in shape.calls)
        assert by_length == sorted(
            (sum(tokens for _, tokens in call.prompt), call.output_tokens, len(call.after)) for call in workflow.calls
        )
        assert all(call.pause_seconds == pytest.approx(0.0, abs=1e-9) for call in workflow.calls)


def test_a_replayed_trace_is_the_same_work(tmp_path: Path) -> None:
    given = shapes()
    lines, done = recorded(given)
    log, out = tmp_path / "events.jsonl", tmp_path / "trace.jsonl"
    log.write_text("\n".join(lines))
    assert main(["record", str(log), "--out", str(out)]) == 0
    spec = of({"workload": "trace", "arrivals": "trace", "trace": str(out), "policy": "fifo", "seconds": 10})
    outcome = play_virtual(of(spec.document() | {"warm_up_seconds": 0}), 1)
    workflows = outcome.rows["workflow"]
    took = [each.seconds for each in sorted(done, key=lambda each: each.arrived_at)]
    assert [each["seconds"] for each in workflows] == pytest.approx(took, rel=0.05)
    assert outcome.rows["repeat"][0]["cached_tokens"] > 0  # what was shared is shared again


def test_content_tells_what_hangs_together_where_clients_say_nothing(tmp_path: Path) -> None:
    """Three calls, each a workflow to its client; two quote, and the third has nothing to do with them."""
    mind = Logged()
    player = Player(World(mind, {"twin": TwinEngine(calibrations.load("h200-llama-3.1-8b"))}))
    one = chain("x", random.Random(1), chunks=(3, 3))
    player.start(one)
    player.world.time.run()
    head, *rest = mind.lines
    lines = [json.loads(line) for line in rest]
    for line in lines:
        if line["event"] == "CallArrived":
            line |= {"workflow_id": line["call_id"], "node": None, "after": [], "watched": True}
    placed = [
        ("x/summary-0", None, []),
        ("x/summary-1", None, [["x/summary-0", 0.99]]),
        ("x/summary-2", None, []),
    ]
    for call_id, turn_of, sources in placed:
        event = CallPlaced(call_id, "-", turn_of, 0.0, tuple((s, c) for s, c in sources), "f" * 16, (17, 18))
        lines.append(json.loads(event_line(event, 99.0, [])))
    log = tmp_path / "events.jsonl"
    log.write_text("\n".join([head, *map(json.dumps, lines)]))
    trace = trace_of(read_log(log))
    assert sorted(len(workflow.calls) for workflow in trace.workflows) == [1, 2]
    names = [call.prompt[0][0] for workflow in trace.workflows for call in workflow.calls]
    assert set(names) == {"h11"}  # the same leading text, by its hash


def test_a_call_log_tells_of_order_by_times(tmp_path: Path) -> None:
    def line(call: str, at: str, took: float, workflow: str = "w", **more: Any) -> str:
        return json.dumps(
            {
                "ts": f"2026-01-01T00:00:{at}Z", "event": "call", "id": call,
                "workflow": {"id": workflow, "node": None, "parent": None, "source": "header"},
                "prompt_tokens": 100, "cached_tokens": 0, "output_tokens": 10, "duration_ms": took * 1e3, **more,
            }
        )  # fmt: skip

    log, out = tmp_path / "calls.jsonl", tmp_path / "trace.jsonl"
    log.write_text(
        "\n".join(
            [
                json.dumps({"ts": "2026-01-01T00:00:00.000Z", "event": "engine_up"}),
                line("a", "01.000", 1.0),
                line("b", "02.500", 1.0),
                line("c", "02.600", 1.0),
                line("d", "04.000", 1.0),
                line("e", "04.000", 1.0, "other"),
                line("f", "05.000", 1.0, output_tokens=None),
            ]
        )
    )
    assert main(["record", str(log), "--out", str(out)]) == 0
    first, second = read_trace(out).workflows
    assert [call.after for call in first.calls] == [(), ("n1",), ("n1",), ("n2", "n3")]
    assert [call.pause_seconds for call in first.calls] == pytest.approx([0.0, 0.5, 0.6, 0.4])
    assert second.at_seconds == pytest.approx(3.0) and len(second.calls) == 1
    assert read_trace(out).head["calls_left_out"] == 1


def test_failed_calls_are_left_out_and_counted(tmp_path: Path) -> None:
    lines, _ = recorded(shapes()[:1])
    arrived = next(line for line in lines if '"CallArrived"' in line)
    lost = json.loads(arrived) | {"call_id": "lost", "node": "lost"}
    failed = event_line(CallFailed("lost", "reset", False, True), 5.0, [])
    log = tmp_path / "events.jsonl"
    log.write_text("\n".join([*lines, json.dumps(lost), failed]))
    found = read_log(log)
    assert found.left_out == 1 and "lost" not in {call.id for call in found.calls}


def test_edges_join_workflows_and_circles_do_no_harm() -> None:
    def seen(name: str, workflow: str, at: float, *after: str) -> Seen:
        return Seen(name, workflow, name, after, at, at + 0.5, 10, None, 5)

    groups = grouped(
        [seen("c", "3", 2.0, "b"), seen("a", "1", 0.0, "c"), seen("b", "2", 1.0, "a"), seen("d", "4", 0.5)]
    )
    assert [[call.id for call in group] for group in groups] == [["a", "b", "c"], ["d"]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hello\n", "neither an event log"),
        ('{"event": "call"}\n', "neither an event log"),
        ('{"ts": "2026-01-01T00:00:00Z", "event": "engine_up"}\n', "no call in it"),
    ],
)
def test_logs_that_hold_no_calls_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, words: str
) -> None:
    log = tmp_path / "log"
    log.write_text(text)
    assert main(["record", str(log), "--out", str(tmp_path / "t")]) == 2
    assert words in capsys.readouterr().err
    with pytest.raises(BenchError, match="cannot be read"):
        read_log(tmp_path / "absent")


CALL = {"node": "a", "after": [], "prompt": [["x", 3]], "output_tokens": 2, "pause_seconds": 0}
WORKFLOW = {"at_seconds": 0, "id": "w", "kind": "k", "calls": [CALL], "deadline_seconds": None, "workflow_class": None}
HEAD = {"joulegate_trace": 1}


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], "no workflow"),
        ([HEAD], "no workflow"),
        ([{"joulegate_trace": 2}, WORKFLOW], ":1: not a line of a trace"),
        ([HEAD, WORKFLOW, {**WORKFLOW, "calls": []}], ":3: .*without calls"),
        ([HEAD, {**WORKFLOW, "calls": [{**CALL, "after": ["b"]}]}], ":2: .*no call before it"),
        ([HEAD, {**WORKFLOW, "calls": [CALL, CALL]}], ":2: .*there twice"),
        ([HEAD, {**WORKFLOW, "calls": [{**CALL, "output_tokens": 0}]}], ":2: .*impossible length"),
        ([HEAD, {**WORKFLOW, "calls": [{**CALL, "pause_seconds": -1}]}], ":2: .*impossible length or pause"),
        ([HEAD, {"id": "w"}], ":2: not a line of a trace"),
    ],
)
def test_bad_traces_are_refused_with_the_line(tmp_path: Path, lines: list[Any], words: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(TraceFault, match=words):
        read_trace(path)


def test_a_trace_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(map(json.dumps, [HEAD, WORKFLOW])))
    trace = read_trace(path)
    write_trace(tmp_path / "u.jsonl", Trace({"source": "x"}, trace.workflows))
    assert read_trace(tmp_path / "u.jsonl") == Trace({"source": "x"}, trace.workflows)
    ((at, shape),) = arrivals_of(trace, "p")
    assert (at, shape.id, shape.calls[0].prompt[0].text) == (0.0, "p-1", "x")
