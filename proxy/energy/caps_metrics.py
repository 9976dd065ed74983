"""Power caps, for Prometheus: what is wanted, what is in force, whether it binds, and what it saves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client.core import Metric

    from scheduler.energy.caps.desk import CapsDesk


class CapsMetrics(Collector):
    """All is read at a scrape. Watts are of each GPU; what is not known has no sample."""

    def __init__(self, desk: CapsDesk, source: Callable[[str], str]) -> None:
        """`source`: what an engine's watts are."""
        self._desk = desk
        self._source = source

    def collect(self) -> Iterator[Metric]:
        """Called by prometheus-client at a scrape."""
        yield from self._limits()
        yield from self._decisions()
        yield from self._claims()

    def _limits(self) -> Iterator[Metric]:
        watts = GaugeMetricFamily(
            "joulegate_cap_watts",
            "Limit of each GPU: requested, enforced, prior (as found), wanted (where the steps lead)",
            labels=["engine", "kind", "source"],
        )
        binding = GaugeMetricFamily("joulegate_cap_binding", "1: the limit holds the engine back", labels=["engine"])
        yielded = GaugeMetricFamily(
            "joulegate_cap_yielded", "1: somebody else has set the limit, and it is left alone", labels=["engine"]
        )
        actuates = GaugeMetricFamily("joulegate_cap_actuates", "1: caps are set; 0: only advised", labels=["engine"])
        for name, sight in self._desk.engines.items():
            limits = None if sight.cards is None else sight.cards.limits
            controller = self._desk.fleet.controllers.get(name)
            last = None if controller is None else controller.last
            found = {
                "requested": None if limits is None else limits.requested,
                "enforced": None if limits is None else limits.enforced,
                "prior": None if controller is None else controller.standing.prior_watts,
                "wanted": None if last is None else last.target_watts,
            }
            for kind, value in found.items():
                if value is not None:
                    watts.add_metric([name, kind, self._source(name)], value)
            if sight.binding is not None:
                binding.add_metric([name], float(sight.binding))
            if controller is not None:
                yielded.add_metric([name], float(bool(controller.standing.yielded)))
            may_set = sight.cards is not None and sight.cards.may_set
            actuates.add_metric([name], float(may_set and self._desk.rules.mode == "actuate"))
        yield from (watts, binding, yielded, actuates)

    def _decisions(self) -> Iterator[Metric]:
        decisions = CounterMetricFamily(
            "joulegate_cap_decisions", "Decisions by what they were and why", labels=["engine", "move", "why"]
        )
        for name, sight in self._desk.engines.items():
            for (move, why), count in sight.counts.items():
                decisions.add_metric([name, move, why], count)
        yield decisions

    def _claims(self) -> Iterator[Metric]:
        saved = GaugeMetricFamily(
            "joulegate_cap_saved_joules",
            "Joules that caps saved against the limit that was found, modelled, while they were seen to bind",
            labels=["engine", "bound", "source"],
        )
        seconds = CounterMetricFamily(
            "joulegate_cap_seconds",
            "Time under a cap of ours by whether it was seen to bind",
            labels=["engine", "binding"],
        )
        for name, sight in self._desk.engines.items():
            savings = sight.savings
            seconds.add_metric([name, "true"], savings.claimed_seconds)
            seconds.add_metric([name, "false"], savings.not_binding_seconds)
            if savings.claimed_seconds:
                for bound, value in savings.saved._asdict().items():
                    saved.add_metric([name, bound, self._source(name)], value)
        yield saved
        yield seconds
