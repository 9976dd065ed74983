"""`joulegate-bench inference`: are calls that say nothing of a workflow placed right, and what does it cost?

*Right*: the workloads in virtual time, over several keys, with nothing but their texts; beside the true graphs. And
traffic made to deceive. *Cost*: prompts of a given length that were never seen, and the workloads' own.
"""

from __future__ import annotations

import gc
import json
import random
import time
from collections import Counter
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from backends.twin import calibration as calibrations
from backends.twin.engine import TwinEngine
from backends.twin.virtual import World
from bench.inference_speed import TARGET_US, answer_speed, measure
from bench.programs import BenchError
from bench.twin.play import Player, calls_per_workflow
from proxy.prompts import segments
from scheduler.core import Scheduler, SchedulerConfig
from scheduler.events import CallArrived, CallFinished, EngineSpec
from scheduler.workflow.inference import BYTES_MAX, ContentInference
from workloads.player import Arrival, request_of
from workloads.shapes import KINDS, CallShape, Part, WorkflowShape, stream
from workloads.text import prose

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from scheduler.actions import Action
    from scheduler.events import Event

PRECISION_MIN, RECALL_MIN = 0.98, 0.9
CHAT_ROUTE = "/v1/chat/completions"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `inference`."""
    parser.add_argument("--seconds", type=float, default=60.0, help="simulated arrivals of each workload (default: 60)")
    parser.add_argument("--rate", type=float, default=24.0, metavar="CALLS", help="calls a second (default: 24)")
    parser.add_argument("--rounds", type=int, default=5, help="calls of each live workflow that are timed (default: 5)")
    parser.add_argument("--live", type=int, default=1000, help="live workflows while it is timed (default: 1000)")
    parser.add_argument("--mib", type=int, default=BYTES_MAX >> 20, help="the memory's bound (default: 64)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")


def run(args: argparse.Namespace) -> int:
    """Measure and print. 1 if a workload is placed worse than asked for, however long it took. BenchError for options
    that are no use."""
    if not (args.seconds > 0 and args.rate > 0 and args.rounds > 0 and args.live > 0 and args.mib > 0):
        raise BenchError("--seconds, --rate, --rounds, --live and --mib must be above 0")
    accuracy = list(judge_all(args))
    print(f"{'traffic':<40}{'calls':>7}{'edges':>7}{'precision':>11}{'recall':>8}{'grouping':>18}{'µs a call':>11}")
    for row in accuracy:
        shown = f"{row.group_precision:.4f} {row.group_recall:.4f}"
        print(
            f"{row.traffic:<40}{row.calls:>7}{row.true_edges:>7}{row.precision:>11.4f}{row.recall:>8.4f}{shown:>18}"
            f"{row.us_per_call:>11.1f}"
        )
    speeds = [measure(tokens, args, grown=grown) for tokens in TARGET_US for grown in (False, True)]
    heads = f"{'mean':>8}{'target':>8}{'CPU':>8}{'p50':>8}{'p99':>8}{'its answer':>12}{'MiB':>7}{'calls kept':>12}"
    print(f"\n{'a prompt, µs':<36}{heads}")
    for one in speeds:
        name = f"{one['prompt_tokens']} tokens, {'a conversation' if one['grown'] else 'never seen before'}"
        print(
            f"{name:<36}{one['mean_us']:>8.1f}{one['target_us']:>8.0f}{one['cpu_us']:>8.1f}{one['p50_us']:>8.1f}{one['p99_us']:>8.1f}"
            f"{one['answered_us']:>12.1f}{one['mib']:>7.1f}{one['calls_kept']:>12}"
        )
    answers = answer_speed()
    print(f"\nan answer's text, 500 tokens: {answers['stream_us']:.0f} µs streamed, {answers['whole_us']:.0f} µs whole")
    if args.json:
        rows = [row._asdict() for row in accuracy]
        args.json.write_text(json.dumps({"accuracy": rows, "speed": speeds, "answers": answers}, indent=1) + "\n")
    bad = [row.traffic for row in accuracy if row.asked and (row.precision < PRECISION_MIN or row.recall < RECALL_MIN)]
    if bad:
        print(f"below {PRECISION_MIN} precision or {RECALL_MIN} recall: {', '.join(bad)}")
    return 1 if bad else 0


# --- right? ---


class Row(NamedTuple):
    """How one traffic was placed. Without an edge, true or found, precision and recall are 1."""

    traffic: str
    asked: bool
    """It is one of the workloads, for which numbers are asked."""
    calls: int
    true_edges: int
    found_edges: int
    precision: float
    recall: float
    group_precision: float
    """Of all pairs of calls that are put into one workflow: how many belong together."""
    group_recall: float
    us_per_call: float
    """A prompt and its answer, on average."""
    counters: dict[str, int]


class Observer:
    """The scheduler, and beside it the inference: it is given each call's texts as the gateway would see them."""

    def __init__(self, scheduler: Scheduler, said: Callable[[WorkflowShape, CallShape], str], max_bytes: int) -> None:
        self.inference = ContentInference(max_bytes)
        self.workflows: dict[str, WorkflowShape] = {}
        self.true: set[tuple[str, str]] = set()
        self.found: set[tuple[str, str]] = set()
        self.seconds: list[float] = []
        self._scheduler, self._said = scheduler, said
        self._answers: dict[str, dict[str, str]] = {}

    def announce(self, workflows: Iterator[WorkflowShape]) -> Iterator[WorkflowShape]:
        """Passes them on and remembers them."""
        for workflow in workflows:
            self.workflows[workflow.id] = workflow
            self._answers[workflow.id] = {}
            yield workflow

    def handle(self, event: Event, now: float) -> list[Action]:
        """As the scheduler's."""
        if isinstance(event, CallArrived):
            workflow, call = self._of(event.call_id)
            said = segments(CHAT_ROUTE, body_of(workflow, call, self._answers[workflow.id]))
            key = f"key-{workflow.id.rpartition('-')[2][-1]}"
            started = time.perf_counter()
            placed = self.inference.arrived(event.call_id, key, "m", said, now)
            self.seconds.append(time.perf_counter() - started)
            made = [part.output_of for part in call.prompt if part.output_of is not None]
            if workflow.kind == CONVERSATION:
                made = made[-1:]  # what stands before is that turn's history
            self.true.update((f"{workflow.id}/{node}", event.call_id) for node in made)
            self.found.update((producer, event.call_id) for producer, _ in placed.data_from)
            if placed.turn_of is not None:
                self.found.add((placed.turn_of, event.call_id))
        elif isinstance(event, CallFinished):
            workflow, call = self._of(event.call_id)
            text = self._answers[workflow.id][call.node] = self._said(workflow, call)
            started = time.perf_counter()
            self.inference.answered(event.call_id, text, now)
            self.seconds[-1] += time.perf_counter() - started
        return self._scheduler.handle(event, now)

    def _of(self, call_id: str) -> tuple[WorkflowShape, CallShape]:
        workflow_id, _, node = call_id.rpartition("/")
        workflow = self.workflows[workflow_id]
        return workflow, next(call for call in workflow.calls if call.node == node)

    def row(self, traffic: str, *, asked: bool) -> Row:
        """The outcome."""
        calls = self.inference.counters.calls
        right = len(self.true & self.found)
        members = [f"{workflow.id}/{call.node}" for workflow in self.workflows.values() for call in workflow.calls]
        group_precision, group_recall = grouping(members, self.true, self.found)
        counters = self.inference.counters
        return Row(
            traffic,
            asked,
            calls,
            len(self.true),
            len(self.found),
            right / len(self.found) if self.found else 1.0,
            right / len(self.true) if self.true else 1.0,
            group_precision,
            group_recall,
            1e6 * sum(self.seconds) / max(1, calls),
            {name: getattr(counters, name) for name in counters.__slots__},
        )


def body_of(workflow: WorkflowShape, call: CallShape, answers: dict[str, str]) -> dict[str, Any]:
    """The request as a client sends it. A conversation's parts are messages, all others' paragraphs of one."""
    if workflow.kind != CONVERSATION:
        return request_of(Arrival(0.0, workflow), call, answers, "m")[1]
    messages = [{"role": "system", "content": prose(call.prompt[0].text, call.prompt[0].tokens)}]
    for part in call.prompt[1:]:
        if part.output_of is None:
            messages.append({"role": "user", "content": prose(part.text, part.tokens)})
        else:
            messages.append({"role": "assistant", "content": answers[part.output_of]})
    return {"model": "m", "messages": messages}


def grouping(members: list[str], true: set[tuple[str, str]], found: set[tuple[str, str]]) -> tuple[float, float]:
    """Of the pairs that the found edges put together, which the true ones do; and the other way round."""
    in_true, in_found = components(members, true), components(members, found)

    def pairs(sizes: Counter[Any]) -> int:
        return sum(size * (size - 1) // 2 for size in sizes.values())

    both = pairs(Counter((in_true[one], in_found[one]) for one in members))
    together, belong = pairs(Counter(in_found.values())), pairs(Counter(in_true.values()))
    return both / together if together else 1.0, both / belong if belong else 1.0


def components(members: list[str], edges: set[tuple[str, str]]) -> dict[str, str]:
    """Member → the name of its connected part."""
    parent = {one: one for one in members}

    def root(one: str) -> str:
        while parent[one] != one:
            parent[one] = one = parent[parent[one]]
        return one

    for start, end in edges:
        parent[root(start)] = root(end)
    return {one: root(one) for one in members}


CONVERSATION = "conversation"


def conversation(workflow_id: str, rng: random.Random) -> WorkflowShape:
    """A chat of some turns under a long system prompt that all have. Its edges: from each answer to the next turn."""
    prompt: tuple[Part, ...] = (Part("conversation system", 1200),)
    calls: list[CallShape] = []
    for turn in range(rng.randint(2, 8)):
        prompt += (Part(f"{workflow_id} turn {turn}", rng.randint(10, 200)),)
        after = (calls[-1].node,) if calls else ()
        calls.append(CallShape(f"turn-{turn}", after, prompt, rng.randint(5, 300)))
        prompt += (Part("", calls[-1].output_tokens, calls[-1].node),)
    return WorkflowShape(workflow_id, CONVERSATION, tuple(calls))


def conversations(rng: random.Random) -> Iterator[WorkflowShape]:
    """Without end."""
    return (conversation(f"wf-{number}", rng) for number in count(1))


def copies(workflows: Iterator[WorkflowShape], times: int) -> Iterator[WorkflowShape]:
    """Each several times, with equal texts: one key asks the same again, or several keys ask the same."""
    for number, workflow in enumerate(workflows):
        for copy in range(times):
            yield workflow._replace(id=f"wf-{number}-{copy}")


def its_own(workflow: WorkflowShape, call: CallShape) -> str:
    """An answer that no other call has."""
    return prose(f"{workflow.id} says {call.node}", call.output_tokens)


def the_same(workflow: WorkflowShape, call: CallShape) -> str:
    """An answer that depends on the prompt alone, as at temperature 0: its copies say the same."""
    return prose(f"says {call.prompt[-1].text} {call.node}", call.output_tokens)


def judge_all(args: argparse.Namespace) -> Iterator[Row]:
    """Each workload, and what may deceive."""
    seed = args.seed
    for kind in (*KINDS, "composite"):
        yield judge(kind, stream(kind, random.Random(seed)), its_own, args, asked=True)
    yield judge("conversation", conversations(random.Random(seed)), its_own, args, asked=True)
    for name, times, said in (
        ("same documents, 2 runs", 2, its_own),
        ("same documents and answers", 2, the_same),
        ("same texts, 10 keys", 10, the_same),
    ):
        for kind in ("map-reduce", "coding"):
            made = copies(stream(kind, random.Random(seed)), times)
            yield judge(f"{name}, {kind}", apart(made) if times == 2 else made, said, args, asked=False)


def apart(workflows: Iterator[WorkflowShape]) -> Iterator[WorkflowShape]:
    """All copies of one key: the last digit of a workflow's id says which key."""
    return (one._replace(id=f"{one.id.replace('-', '_')}-0") for one in workflows)


def judge(
    traffic: str,
    workflows: Iterator[WorkflowShape],
    said: Callable[[WorkflowShape, CallShape], str],
    args: argparse.Namespace,
    *,
    asked: bool,
) -> Row:
    """Play it in virtual time, all workflows interleaved as they come, and compare."""
    engine = TwinEngine(calibrations.load("h200-llama-3.1-8b"))
    observer = Observer(Scheduler(SchedulerConfig((EngineSpec("twin", 4096),)), 0.0), said, args.mib << 20)
    world = World(observer, {"twin": engine})
    player = Player(world)
    kind = next(workflows)
    rate = args.rate / (
        len(kind.calls) if kind.kind == CONVERSATION else calls_per_workflow(stream(kind.kind, random.Random(0)))
    )
    gc.disable()
    player.poisson(observer.announce(workflows), rate, args.seconds, random.Random(args.seed + 1))
    world.time.run()
    gc.enable()
    for producer, consumer in observer.found:
        assert producer.rpartition("/")[0][-1] == consumer.rpartition("/")[0][-1], "an edge between two keys"
    return observer.row(traffic, asked=asked)
