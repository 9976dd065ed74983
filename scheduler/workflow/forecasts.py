"""How many tokens will a node produce, how many of its prompt are new, and when does a client come back?

Looked up by place (key, workflow name, node name with its numbers blotted out: `map-7` learns from `map-3`), else by
key and model, else by nothing. Nothing ever passes from one key to another.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from scheduler.workflow.durations import DurationModel, LearnedDurations, SecondsForecast
from scheduler.workflow.quantiles import SURE_FROM_VALUES, WINDOW_VALUES, LruTable, RecentQuantiles

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scheduler.workflow.node import Node
    from scheduler.workflow.spec import NodeSpec, WorkflowLimits

OUTPUT_TOKENS_UNSEEN = (256.0, 1024.0)
PROMPT_TOKENS_UNSEEN = 512.0
TOOL_SECONDS_UNSEEN = (1.0, 5.0)
PAUSE_SECONDS_UNSEEN = (0.0, 0.0)
"""Of a client between two calls: nothing is known, so nothing is assumed."""
LEARNING_RATE = 0.125
_NUMBERS = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}|[0-9a-fA-F]{8,}|[0-9]+")
"""Ids such as UUIDs and hashes, and numbers."""


class Forecast(NamedTuple):
    """Median and upper quantile of a quantity that its user names."""

    median: float
    upper: float


def pattern_of(name: str) -> str:
    """A node's name with its numbers blotted out."""
    return _NUMBERS.sub("#", name)


def patterns_of(names: list[str]) -> list[str]:
    """`pattern_of` each, in one go: no number or id goes over a line's end."""
    patterns = _NUMBERS.sub("#", "\n".join(names)).split("\n")
    if len(patterns) != len(names):  # a name has such an end in it
        return [pattern_of(name) for name in names]
    return patterns


class History:
    """What calls of one place, or of one model, were like."""

    __slots__ = ("calls", "output_tokens", "pauses", "prompt_tokens", "uncached_share")

    def __init__(self) -> None:
        self.calls = 0
        self.output_tokens = RecentQuantiles()
        self.pauses = RecentQuantiles()
        """Seconds: a tool's run, or from what a call waited for to the call."""
        self.prompt_tokens = PROMPT_TOKENS_UNSEEN
        self.uncached_share = 1.0
        """Of the estimated prompt tokens, those the engine had to compute; it corrects the estimate, too."""

    def learn(self, estimate: int, prompt_tokens: int, cached_tokens: int, output_tokens: int) -> None:
        """A call finished."""
        rate = LEARNING_RATE if self.calls else 1.0
        self.calls += 1
        self.output_tokens.add(output_tokens)
        self.prompt_tokens += rate * (prompt_tokens - self.prompt_tokens)
        self.uncached_share += rate * ((prompt_tokens - cached_tokens) / max(1, estimate) - self.uncached_share)


Place = tuple[str, str | None, str]


class Forecasts:
    """All that is remembered of earlier calls, bounded, and the predictions made from it."""

    def __init__(self, limits: WorkflowLimits, durations: DurationModel | None = None) -> None:
        self.durations: DurationModel = durations or LearnedDurations()
        self.places: LruTable[Place, History] = LruTable(limits.history_places, History)
        self.models: LruTable[tuple[str, str | None], History] = LruTable(limits.history_models, History)

    def predict(self, node: Node) -> SecondsForecast:
        """The node's duration; notes the forecast of its output tokens in it."""
        return self._predict_tool(node) if node.tool else self._predict_call(node, *self._histories(node))

    def _histories(self, node: Node) -> tuple[History | None, History | None]:
        """Of its place and of its model."""
        workflow = node.workflow
        place = self.places.get((workflow.key, workflow.name, node.pattern))
        return place, self.models.get((workflow.key, node.model))

    def predict_all(self, nodes: Iterable[Node], specs: Iterable[NodeSpec]) -> None:
        """Durations and output tokens of all nodes of one workflow, just made as specified, noted in them. Siblings are
        often alike in all that counts here."""
        known: dict[tuple[object, ...], tuple[float, float, float, float]] = {}
        histories: dict[tuple[str, str | None], tuple[History | None, History | None]] = {}
        for node, spec in zip(nodes, specs, strict=True):
            kind = (node.pattern, spec[3:9])  # tokens, model, whether it is a tool, its seconds
            same = known.get(kind)
            if same is None:
                if (of_kind := histories.get((node.pattern, node.model))) is None:
                    of_kind = histories[node.pattern, node.model] = self._histories(node)
                seconds, spread = self._predict_tool(node) if node.tool else self._predict_call(node, *of_kind)
                same = known[kind] = (seconds, spread * spread, node.output_tokens_forecast, node.output_tokens_upper)
            node.seconds, node.variance, node.output_tokens_forecast, node.output_tokens_upper = same

    def _predict_tool(self, node: Node) -> SecondsForecast:
        usual, upper = self.pause(node)
        if node.expected_seconds is not None:
            usual = node.expected_seconds
        elif not usual and not upper:
            usual, upper = TOOL_SECONDS_UNSEEN
        return SecondsForecast(usual, max(0.0, upper - usual))

    def _predict_call(self, node: Node, place: History | None, model: History | None) -> SecondsForecast:
        """By the history of its place as far as there is one, else by that of its model."""
        known = place if place is not None and place.calls else model if model is not None and model.calls else None
        usual, upper = OUTPUT_TOKENS_UNSEEN
        prompt: float | None = node.prompt_tokens_estimate
        if known is not None:
            usual, upper = known.output_tokens.median, known.output_tokens.upper
            if known is place and known.calls < SURE_FROM_VALUES and model is not None and model.calls:
                upper = max(upper, model.output_tokens.upper)
            context = known.prompt_tokens if prompt is None else prompt
            uncached = context * known.uncached_share
        else:
            context = uncached = PROMPT_TOKENS_UNSEEN if prompt is None else prompt
        declared, most = node.expected_output_tokens, node.max_output_tokens
        if declared is not None:
            upper = max(declared, upper) if known is place and place is not None else declared
            usual = declared
        if most is not None:
            usual, upper = min(usual, most), min(upper, most)
        node.output_tokens_forecast, node.output_tokens_upper = usual, upper
        return self.durations.forecast(node.model, uncached, usual, upper, context)

    def uncached_share(self, node: Node) -> float:
        """Of the node's estimated prompt tokens, those that the engine will have to compute."""
        place = self.places.get((node.workflow.key, node.workflow.name, node.pattern))
        return place.uncached_share if place is not None and place.calls else 1.0

    def pause(self, node: Node) -> Forecast:
        """A tool's run, or how long the client thinks before it makes this call; in seconds."""
        workflow = node.workflow
        place = self.places.get((workflow.key, workflow.name, node.pattern))
        if place is not None and place.pauses.count:
            return Forecast(place.pauses.median, place.pauses.upper)
        return _NO_PAUSE

    def learn_pause(self, node: Node, seconds: float) -> None:
        """A tool ran, or a client thought, so long."""
        workflow = node.workflow
        self.places.take((workflow.key, workflow.name, node.pattern)).pauses.add(seconds)

    def learn(self, node: Node) -> None:
        """The node's call finished; without the engine's count of tokens it teaches nothing."""
        prompt, output = node.prompt_tokens, node.output_tokens
        if prompt is None or output is None:
            return
        cached, workflow = node.cached_tokens or 0, node.workflow
        estimate = prompt if node.prompt_tokens_estimate is None else node.prompt_tokens_estimate
        place = self.places.take((workflow.key, workflow.name, node.pattern))
        if place.calls < WINDOW_VALUES:
            # Asked only about new places, the model's history learns from places while they are new: so the busiest
            # place does not speak for all.
            self.models.take((workflow.key, node.model)).learn(estimate, prompt, cached, output)
        place.learn(estimate, prompt, cached, output)
        self.durations.observe(node.model, prompt - cached, output, node.lasted_seconds)


_NO_PAUSE = Forecast(*PAUSE_SECONDS_UNSEEN)
