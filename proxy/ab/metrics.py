"""What is counted of the experiment that runs, or ran last. Read off the scheduler at a scrape."""

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
        status = self._gateway.scheduler.experiments.status(monotonic())
        if status is None:
            return
        name = status["id"]
        running = GaugeMetricFamily("joulegate_experiment_running", "1 while it runs", labels=("experiment", "state"))
        running.add_metric((name, status["state"]), float(status["state"] == "running"))
        yield running
        if "block" in status:
            block = GaugeMetricFamily("joulegate_experiment_block", "Number, -1: lead-in", labels=("experiment", "arm"))
            block.add_metric((name, status["arm"]), status["block"])
            yield block
        text = "Blocks that are closed and count, by arm"
        done = CounterMetricFamily("joulegate_experiment_blocks_done", text, labels=("experiment", "arm"))
        for arm, count in status["blocks_done"].items():
            done.add_metric((name, arm), count)
        yield done
        text = "Closed blocks that do not count, by reason"
        marked = CounterMetricFamily("joulegate_experiment_blocks_marked", text, labels=("experiment", "reason"))
        for reason, count in status["marked"].items():
            marked.add_metric((name, reason), count)
        yield marked
        yield _live(name, status["workflows_running"])


def _live(name: str, count: int) -> Metric:
    live = GaugeMetricFamily("joulegate_experiment_workflows", "Workflows under way in it", labels=("experiment",))
    live.add_metric((name,), count)
    return live
