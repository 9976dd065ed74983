"""Who used how many tokens: one book by engine, one by workflow, and they always agree."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scheduler.events import CallFinished


@dataclass(slots=True)
class TokenAccount:
    """Sums over calls that ended. Calls whose engine reported no usage are counted apart, not as zero tokens."""

    calls: int = 0
    calls_without_usage: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    last_used_at: float = 0.0

    def add(self, finished: CallFinished, now: float) -> None:
        """Book one call."""
        self.calls += 1
        self.last_used_at = now
        _, prompt, cached, output, _ = finished[:5]
        if prompt is None and output is None:
            self.calls_without_usage += 1
            return
        self.prompt_tokens += prompt or 0
        self.cached_tokens += cached or 0
        self.output_tokens += output or 0

    def merge(self, other: TokenAccount) -> None:
        """Add another account's sums."""
        self.calls += other.calls
        self.calls_without_usage += other.calls_without_usage
        self.prompt_tokens += other.prompt_tokens
        self.cached_tokens += other.cached_tokens
        self.output_tokens += other.output_tokens
        self.last_used_at = max(self.last_used_at, other.last_used_at)

    def sums(self) -> tuple[int, int, int, int, int]:
        """The figures two books must agree on."""
        return self.calls, self.calls_without_usage, self.prompt_tokens, self.cached_tokens, self.output_tokens


class TokenLedger:
    """Tokens by engine and by workflow. At most `max_workflows` workflows are kept apart: the one used longest ago
    is closed into `closed_workflows` when another comes, so that memory is bounded and no token is lost. Calls that
    belong to no named workflow are workflows of one call, closed at once."""

    def __init__(self, max_workflows: int) -> None:
        self.max_workflows = max_workflows
        self.by_engine: dict[str, TokenAccount] = {}
        self.by_workflow: OrderedDict[tuple[str, str], TokenAccount] = OrderedDict()
        self.closed_workflows = TokenAccount()

    def book(self, engine: str, key: str, workflow_id: str, finished: CallFinished, now: float) -> None:
        """Book one call. Workflows of different keys are different, whatever they call themselves; "" = no workflow."""
        account = self.by_engine.get(engine)
        if account is None:
            account = self.by_engine[engine] = TokenAccount()
        account.add(finished, now)
        if not workflow_id:
            self.closed_workflows.add(finished, now)
            return
        name = (key, workflow_id)
        workflow = self.by_workflow.get(name)
        if workflow is None:
            workflow = self.by_workflow[name] = TokenAccount()
            self.shrink()
        else:
            self.by_workflow.move_to_end(name)
        workflow.add(finished, now)

    def shrink(self) -> None:
        """Close the oldest workflows until the table fits."""
        while len(self.by_workflow) > self.max_workflows:
            self.closed_workflows.merge(self.by_workflow.popitem(last=False)[1])

    def validate(self) -> None:
        """Both books hold the same sums. AssertionError otherwise."""
        engines, workflows = TokenAccount(), TokenAccount()
        for account in self.by_engine.values():
            engines.merge(account)
        workflows.merge(self.closed_workflows)
        for account in self.by_workflow.values():
            workflows.merge(account)
        assert engines.sums() == workflows.sums(), (engines, workflows)
        assert len(self.by_workflow) <= self.max_workflows
