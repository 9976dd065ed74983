"""Which variables of a session wait for which, and what may run now? Pure: no I/O, no clock.

There can be no cycle: an input names a variable that is there already, an output is always a new one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from proxy.errors import RequestFault
    from proxy.parrot.forms import Objective


class Variable:
    """A text that is written once, by a client or by a model; or that failed to be."""

    __slots__ = ("consumers", "content", "fault", "id", "name", "producer", "watchers")

    def __init__(self, var_id: str, name: str, content: str | None = None) -> None:
        self.id = var_id
        self.name = name
        self.content = content
        self.fault: RequestFault | None = None
        self.producer: Generation | None = None
        self.consumers: list[Generation] = []
        self.watchers: list[Callable[[], None]] = []
        """Told once, when it is settled."""

    @property
    def settled(self) -> bool:
        """It has a content, or will never have one."""
        return self.content is not None or self.fault is not None


class Generation:
    """One output of a semantic call: what stands before it, and the variable that it writes."""

    __slots__ = (
        "asked",
        "end",
        "members",
        "missing",
        "models",
        "name",
        "number",
        "objective",
        "output",
        "pieces",
        "sources",
    )

    def __init__(
        self,
        number: int,
        name: str,
        pieces: tuple[str | Variable, ...],
        end: int,
        output: Variable,
        sources: tuple[Variable, ...],
        members: dict[str, Any],
        models: tuple[str, ...],
    ) -> None:
        self.number = number
        """Counts up in the order of submission."""
        self.name = name
        """Its node's name in the workflow."""
        self.pieces = pieces
        """Of the whole template, which its generations share."""
        self.end = end
        """How many of the pieces stand before the output."""
        self.output = output
        self.sources = sources
        """The variables it waits for. Of a template's later outputs those since the one before, and that one: it has
        waited for the others."""
        self.members = members
        self.models = models
        self.missing = 0
        """Sources that are not settled."""
        self.asked = False
        self.objective: Objective | None = None
        """Only of what was asked for by name; of the others the scheduler deduces it."""

    def text_length(self) -> int:
        """Characters of `text`, without making it."""
        return sum(len(_text(piece)) for piece in self.pieces[: self.end])

    def text(self) -> str:
        """What the model goes on from: equal leading pieces give equal leading text, byte by byte."""
        return "".join([_text(piece) for piece in self.pieces[: self.end]])


def _text(piece: str | Variable) -> str:
    return piece if isinstance(piece, str) else piece.content or ""


class Graph:
    """One session's variables and generations. What becomes ready is returned; whoever runs it reports back."""

    def __init__(self) -> None:
        self.variables: dict[str, Variable] = {}
        self.generations = 0

    def add_variable(self, variable: Variable) -> None:
        """A new one."""
        self.variables[variable.id] = variable

    def add(self, generation: Generation) -> None:
        """A new one; its sources are there. If one of them failed, it fails with the same words."""
        self.generations += 1
        generation.output.producer = generation
        for source in generation.sources:
            if source.fault is not None:
                self.fail(generation.output, source.fault)
                return
            if not source.settled:
                generation.missing += 1
                source.consumers.append(generation)

    def ask(self, variable: Variable, objective: Objective) -> list[Generation]:
        """Somebody wants a variable: what is newly needed for it, producers before consumers."""
        first = variable.producer
        if first is None or first.asked or variable.settled:
            return []
        first.asked, first.objective = True, objective
        order: list[Generation] = []
        path = [(first, iter(first.sources))]
        while path:
            generation, sources = path[-1]
            for source in sources:
                producer = source.producer
                if producer is not None and not producer.asked and not source.settled:
                    producer.asked = True
                    path.append((producer, iter(producer.sources)))
                    break
            else:
                path.pop()
                order.append(generation)
        return order

    def write(self, variable: Variable, content: str) -> list[Generation]:
        """A variable is written: what may run now."""
        assert not variable.settled, variable.id
        variable.content = content
        ready = []
        for consumer in variable.consumers:
            consumer.missing -= 1
            if consumer.missing == 0 and consumer.asked and not consumer.output.settled:
                ready.append(consumer)
        _settled(variable)
        return ready

    def fail(self, variable: Variable, fault: RequestFault) -> None:
        """A variable will never be written, and so nothing behind it."""
        failed = [variable]
        while failed:
            current = failed.pop()
            if not current.settled:
                current.fault = fault
                failed += [consumer.output for consumer in current.consumers]
                _settled(current)

    def close(self, fault: RequestFault) -> None:
        """Nothing will be written any more."""
        for variable in self.variables.values():
            if not variable.settled:
                variable.fault = fault
                _settled(variable)

    def is_ready(self, generation: Generation) -> bool:
        """Whether it may run now."""
        return generation.asked and generation.missing == 0 and not generation.output.settled

    def ready_of(self, generations: Iterable[Generation]) -> list[Generation]:
        """Those of them that may run now."""
        return [generation for generation in generations if self.is_ready(generation)]


def _settled(variable: Variable) -> None:
    watchers, variable.watchers, variable.consumers = variable.watchers, [], []
    for tell in watchers:
        tell()
