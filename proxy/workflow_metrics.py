"""What is counted of workflows: read off the scheduler, the doors and the content watch at a scrape."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.core import Metric

    from proxy.gateway import Gateway
    from proxy.own.api import OwnApi


class WorkflowMetrics(Collector):
    """Registered beside `proxy.metrics.Metrics`."""

    def __init__(self, gateway: Gateway, own: OwnApi) -> None:
        self._gateway = gateway
        self._own = own

    def collect(self) -> Iterator[Metric]:
        """Called by prometheus-client at a scrape."""
        yield from self._graphs()
        yield from self._doors()
        yield from self._inference()

    def _graphs(self) -> Iterator[Metric]:
        tables = self._gateway.scheduler.workflows.tables
        workflows = GaugeMetricFamily("joulegate_workflows", "Workflows that are kept", labels=["state"])
        workflows.add_metric(["live"], len(tables.named) + len(tables.unnamed))
        workflows.add_metric(["closed"], len(tables.closed))
        yield workflows
        yield GaugeMetricFamily("joulegate_workflow_nodes", "Nodes of all workflows kept", tables.node_count)
        yield GaugeMetricFamily("joulegate_workflow_edges", "Edges of all workflows kept", tables.edge_count)

    def _doors(self) -> Iterator[Metric]:
        own = self._own
        table, runner, parrot, batches = own.workflows.table, own.workflows.runner, own.parrot, own.batches.counters()
        submitted = GaugeMetricFamily("joulegate_workflows_submitted", "Workflows submitted whole", labels=["state"])
        running = len(table.running)
        submitted.add_metric(["running"], running)
        submitted.add_metric(["over"], len(table) - running)
        yield submitted
        for name, text, value in (
            ("workflow_calls_running", "Calls of submitted workflows under way", runner.running),
            ("workflow_held_bytes", "Requests and outputs of submitted workflows", table.held.count),
            ("parrot_sessions", "Open sessions of Parrot's API", parrot.sessions_open),
            ("parrot_variables", "Semantic variables of open sessions", parrot.variables),
            ("parrot_held_bytes", "Templates and contents of open sessions", parrot.held_bytes),
            ("batch_lines_in_flight", "Lines of batches under way", batches.lines_in_flight),
            ("batch_stored_bytes", "Files and results of batches on disk", batches.bytes_on_disk),
        ):
            yield GaugeMetricFamily(f"joulegate_{name}", text, value)
        states = GaugeMetricFamily("joulegate_batches", "Batches that are remembered", labels=["state"])
        for state, count in batches.batches.items():
            states.add_metric([state], count)
        yield states

    def _inference(self) -> Iterator[Metric]:
        watch = self._gateway.watch
        if watch is None:
            return  # content is not looked at: nothing to say, and not 0
        inference = watch.inference
        yield GaugeMetricFamily("joulegate_inference_bytes", "Kept to find workflows by content", inference.bytes_used)
        counters = inference.counters
        for name, text, count in (
            ("calls", "Calls whose content was looked at", counters.calls),
            ("turns", "Calls found to go on from an earlier one", counters.turns),
            ("data_edges", "Outputs found in later prompts", counters.data_edges),
            ("ambiguous", "Outputs found that several calls had said: no edge", counters.ambiguous),
            ("evicted", "Calls forgotten for want of room", counters.evicted),
            ("passed_over", "Calls not looked at because too many waited", watch.passed_over),
        ):
            yield CounterMetricFamily(f"joulegate_inference_{name}", text, count)
