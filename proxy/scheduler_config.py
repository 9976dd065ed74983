"""What of the configuration is the scheduler's?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.engines import Engine
from scheduler.breaker import BreakerRule
from scheduler.core import SchedulerConfig
from scheduler.energy.budgets import JouleQuota
from scheduler.energy.desk import EnergyRules
from scheduler.events import KeyQuota
from scheduler.workflow.spec import WorkflowLimits

if TYPE_CHECKING:
    from proxy.config import Config


def scheduler_config(config: Config) -> SchedulerConfig:
    """The scheduler's part of the configuration."""
    return SchedulerConfig(
        engines=tuple(Engine.spec_of(engine) for engine in config.engines),
        policy=config.policy.name,
        policy_options=tuple(sorted(config.policy.options.items())),
        quotas=quotas(config),
        queue_calls=config.limits.queue_calls,
        queue_seconds=config.timeouts.queue_seconds,
        workflows=config.limits.workflows,
        breaker=BreakerRule(config.health.failures_to_open, config.health.open_seconds),
        workflow_limits=WorkflowLimits(
            workflows=config.limits.workflows,
            nodes_per_workflow=config.workflows.nodes,
            nodes=config.workflows.live_nodes,
            idle_seconds=config.workflows.idle_seconds,
            closed_seconds=config.workflows.kept_seconds,
        ),
        energy=EnergyRules(
            config.energy.window_seconds,
            config.energy.accounts,
            config.energy.settled_calls,
            config.energy.share_prefixes == "all",
            config.energy.workflow_budgets,
            config.energy.budgets_without_energy,
        ),
        joule_quotas=joule_quotas(config),
        caps=config.caps.rules(config.power.mode),
        decisions=config.limits.decisions,
        parking=config.parking.rules(),
    )


def quotas(config: Config) -> tuple[KeyQuota, ...]:
    """What each configured key may use."""
    return tuple(
        KeyQuota(
            key.name,
            key.max_concurrency,
            key.requests_per_minute,
            key.tokens_per_minute,
            key.token_budget,
            key.token_budget_seconds,
            key.weight,
        )
        for key in config.keys
    )


def joule_quotas(config: Config) -> tuple[JouleQuota, ...]:
    """What each configured key may use of energy."""
    return tuple(
        JouleQuota(key.name, key.energy_budget_joules, key.energy_budget_seconds)
        for key in config.keys
        if key.energy_budget_joules is not None
    )
