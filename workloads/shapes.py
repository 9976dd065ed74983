"""Kinds of workflow as seeded graphs of calls: how many tokens in and out, what is shared, what waits for what.

Shapes: the published workloads of Parrot (OSDI'24) and of Ifath & Haque's characterisation; each range is a parameter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator, Mapping

Range = tuple[int, int]
"""Both ends included."""


class Part(NamedTuple):
    """A stretch of a prompt. Equal `text` means equal tokens; `output_of` names the node whose answer it is."""

    text: str
    tokens: int
    output_of: str | None = None


class CallShape(NamedTuple):
    """One model call of a workflow."""

    node: str
    after: tuple[str, ...]
    prompt: tuple[Part, ...]
    output_tokens: int
    pause_seconds: float = 0.0
    """Between the last answer that it waits for and its start: a tool or a person at work."""

    @property
    def prompt_tokens(self) -> int:
        """Length of the whole prompt."""
        return sum(part.tokens for part in self.prompt)


class WorkflowShape(NamedTuple):
    """A workflow's calls, in an order in which each comes behind those it waits for."""

    id: str
    kind: str
    calls: tuple[CallShape, ...]


def chain(
    workflow_id: str,
    rng: random.Random,
    *,
    chunks: Range = (10, 20),
    chunk_tokens: Range = (512, 2048),
    summary_tokens: Range = (25, 100),
    instruction_tokens: int = 32,
) -> WorkflowShape:
    """Sequential summary: each call reads the summary so far and the next chunk of one document."""
    size, summary = rng.randint(*chunk_tokens), rng.randint(*summary_tokens)
    calls: list[CallShape] = []
    for number in range(rng.randint(*chunks)):
        prompt = [Part("chain instructions", instruction_tokens)]
        after: tuple[str, ...] = ()
        if calls:
            after = (calls[-1].node,)
            prompt.append(Part(f"{workflow_id} {after[0]}", summary, after[0]))
        prompt.append(Part(f"{workflow_id} chunk {number}", size))
        calls.append(CallShape(f"summary-{number}", after, tuple(prompt), summary))
    return WorkflowShape(workflow_id, "chain", tuple(calls))


def map_reduce(
    workflow_id: str,
    rng: random.Random,
    *,
    chunks: Range = (10, 20),
    chunk_tokens: Range = (512, 2048),
    summary_tokens: Range = (25, 100),
    instruction_tokens: int = 32,
) -> WorkflowShape:
    """All chunks of a document at once, then one call over the partial summaries."""
    size, summary = rng.randint(*chunk_tokens), rng.randint(*summary_tokens)
    calls = [
        CallShape(
            f"map-{number}",
            (),
            (Part("map instructions", instruction_tokens), Part(f"{workflow_id} chunk {number}", size)),
            summary,
        )
        for number in range(rng.randint(*chunks))
    ]
    parts = tuple(Part(f"{workflow_id} {call.node}", summary, call.node) for call in calls)
    reduce = CallShape(
        "reduce", tuple(call.node for call in calls), (Part("reduce instructions", instruction_tokens), *parts), summary
    )
    return WorkflowShape(workflow_id, "map-reduce", (*calls, reduce))


def copilot(
    workflow_id: str,
    rng: random.Random,
    *,
    system_tokens: int = 5107,
    query_tokens: Range = (560, 1560),
    output_tokens: Range = (183, 460),
) -> WorkflowShape:
    """One call with a long system prompt that all share."""
    prompt = (Part("copilot system", system_tokens), Part(f"{workflow_id} query", rng.randint(*query_tokens)))
    return WorkflowShape(workflow_id, "copilot", (CallShape("answer", (), prompt, rng.randint(*output_tokens)),))


def chat(
    workflow_id: str, rng: random.Random, *, prompt_tokens: Range = (256, 768), output_tokens: Range = (25, 75)
) -> WorkflowShape:
    """One short call of its own."""
    prompt = (Part(f"{workflow_id} chat", rng.randint(*prompt_tokens)),)
    return WorkflowShape(workflow_id, "chat", (CallShape("answer", (), prompt, rng.randint(*output_tokens)),))


def coding(  # noqa: PLR0913  (each length is a parameter)
    workflow_id: str,
    rng: random.Random,
    *,
    files: Range = (4, 16),
    rounds: int = 4,
    task_tokens: int = 182,
    design_tokens: int = 706,
    context_tokens: int = 2200,
    file_tokens: int = 85,
    code_tokens: Range = (500, 820),
    review_tokens: int = 310,
    revision_tokens: Range = (510, 636),
) -> WorkflowShape:
    """Architect, then for each file a programmer; then rounds of review and revision, each over the file's last code.

    What programmers, reviewers and revisers of one workflow read before their own file is common to them.
    """
    task = Part(f"{workflow_id} task", task_tokens)
    calls = [CallShape("architect", (), (task,), design_tokens)]
    common = (
        Part("coding instructions", context_tokens),
        Part(f"{workflow_id} architect", design_tokens, "architect"),
    )
    code: dict[int, tuple[str, int]] = {}
    for number in range(rng.randint(*files)):
        node, length = f"program-{number}", rng.randint(*code_tokens)
        own = Part(f"{workflow_id} file {number}", file_tokens)
        calls.append(CallShape(node, ("architect",), (*common, own), length))
        code[number] = node, length
    for turn in range(rounds):
        for number, (node, length) in code.items():
            written = Part(f"{workflow_id} {node}", length, node)
            review, revise = f"review-{turn}-{number}", f"revise-{turn}-{number}"
            revised = rng.randint(*revision_tokens)
            calls.append(CallShape(review, ("architect", node), (*common, written), review_tokens))
            remarks = Part(f"{workflow_id} {review}", review_tokens, review)
            calls.append(CallShape(revise, ("architect", node, review), (*common, written, remarks), revised))
            code[number] = revise, revised
    return WorkflowShape(workflow_id, "coding", tuple(calls))


KINDS: dict[str, Callable[[str, random.Random], WorkflowShape]] = {
    "chain": chain,
    "map-reduce": map_reduce,
    "copilot": copilot,
    "coding": coding,
    "chat": chat,
}
COMPOSITE = {"chat": 0.5, "copilot": 0.2, "chain": 0.12, "map-reduce": 0.12, "coding": 0.06}
"""Share of the workflows of each kind in the mix."""


def stream(
    kind: str,
    rng: random.Random,
    *,
    prefix: str = "wf",
    makers: Mapping[str, Callable[[str, random.Random], WorkflowShape]] = KINDS,
    mix: Mapping[str, float] = COMPOSITE,
) -> Iterator[WorkflowShape]:
    """Workflows of one kind, or of the mix `composite`, without end. KeyError for an unknown kind."""
    number = 0
    while True:
        number += 1
        name = kind
        if kind == "composite":
            name = rng.choices(list(mix), list(mix.values()))[0]
        yield makers[name](f"{prefix}-{number}", rng)
