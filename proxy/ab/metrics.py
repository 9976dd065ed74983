"""What is counted of the experiments that run, or ended not long ago. Read off the scheduler at a scrape."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.core import Metric

    from proxy.gateway import Gateway


class ExperimentMetrics(Collector):
    """Nothing at all where there was none."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def collect(self) -> Iterator[Metric]:
        """Called by prometheus-client at a scrape."""
        told = self._gateway.scheduler.experiments.statuses(monotonic())
        if not told:
            return
        running = GaugeMetricFamily("joulegate_experiment_running", "1 while it runs", labels=("experiment", "state"))
        block = GaugeMetricFamily("joulegate_experiment_block", "Number, -1: lead-in", labels=("experiment", "arm"))
        text = "Blocks that are closed and count, by arm"
        done = CounterMetricFamily("joulegate_experiment_blocks_done", text, labels=("experiment", "arm"))
        text = "Closed blocks that do not count, by reason"
        marked = CounterMetricFamily("joulegate_experiment_blocks_marked", text, labels=("experiment", "reason"))
        live = GaugeMetricFamily("joulegate_experiment_workflows", "Workflows under way in it", labels=("experiment",))
        for status in told:
            name = status["id"]
            running.add_metric((name, status["state"]), float(status["state"] == "running"))
            if "block" in status:
                block.add_metric((name, status["arm"]), status["block"])
            for arm, count in status["blocks_done"].items():
                done.add_metric((name, arm), count)
            for reason, count in status["marked"].items():
                marked.add_metric((name, reason), count)
            live.add_metric((name,), status["workflows_running"])
        yield from (running, block, done, marked, live)
