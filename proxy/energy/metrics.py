"""What is counted of joules: for Prometheus, for OpenTelemetry, and on the spans of calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from scheduler.energy.bill_accounts import COMPONENTS, ENGINE_COMPONENTS, UNCERTAINTY
from scheduler.energy.bill_prices import MICRO

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from opentelemetry.metrics import CallbackOptions, Meter, Observation
    from prometheus_client.core import Metric

    from proxy.energy.store import EnergyStore
    from scheduler.energy.bill import Bill
    from scheduler.energy.budgets import JouleBudgets

_COUNTERS = {"counter": "gpu", "cpu_counter": "cpu", "dram_counter": "dram"}
_HOST = {_COUNTERS[name]: ENGINE_COMPONENTS.index(name) for name in _COUNTERS}
"""Devices, and where their counters stand in an engine's amounts: where there is 0, nothing counts."""


def _side(component: str) -> str:
    return next((device for device in ("cpu", "dram") if component.startswith(device)), "gpu")


class EnergyMetrics(Collector):
    """Registered beside `proxy.metrics.Metrics`. All is read at a scrape."""

    def __init__(
        self, bill: Bill, budgets: JouleBudgets, store: EnergyStore | None = None,
        sources: Callable[[], dict[str, str]] = dict,
    ) -> None:  # fmt: skip
        """`sources`: what the joules of each engine are now, those too of which nothing is known."""
        self._bill = bill
        self._sources = sources
        self._budgets = budgets
        self._store = store
        self._shown: dict[tuple[str, str, str], float] = {}

    def collect(self) -> Iterator[Metric]:
        """Called by prometheus-client at a scrape."""
        source = GaugeMetricFamily(
            "joulegate_energy_source", "1: what the engine's joules and watts are", labels=["engine", "source"]
        )
        for engine, of in self._sources().items():
            source.add_metric([engine, of], 1.0)
        yield source
        yield from self._joules()
        yield from self._engines()
        yield from self._budget_use()
        if self._store is not None:
            yield from self._ledger(self._store)

    def _joules(self) -> Iterator[Metric]:
        joules = CounterMetricFamily(
            "joulegate_energy_joules", "Joules by what they went into", labels=["engine", "component", "source"]
        )
        metered = CounterMetricFamily(
            "joulegate_energy_metered_joules", "Joules by the counters", labels=["engine", "device", "source"]
        )
        residual = GaugeMetricFamily(
            "joulegate_energy_residual_joules",
            "Joules of the counters that no price explains, since the start; below 0: too much was billed",
            labels=["engine", "device", "source"],
        )
        for name, book in self._bill.engines.items():
            here = {side for amounts in book.by_source.values() for side in _HOST if amounts[_HOST[side]]}
            for source, amounts in book.billed.items():
                for component, value in zip(COMPONENTS[:UNCERTAINTY], amounts, strict=False):
                    if _side(component) in here:
                        self._count(joules, (name, component, source), value)
            for source, amounts in book.by_source.items():
                for component, value in zip(ENGINE_COMPONENTS, amounts, strict=True):
                    if _side(component) not in here:
                        continue  # nothing counts it: absent, and not 0
                    if (device := _COUNTERS.get(component)) is not None:
                        metered.add_metric([name, device, source], value / MICRO)
                    elif component.endswith("residual"):
                        device = component.removesuffix("residual").removesuffix("_") or "gpu"
                        residual.add_metric([name, device, source], value / MICRO)
                    else:
                        self._count(joules, (name, component, source), value)
        yield joules
        yield metered
        yield residual

    def _count(self, family: CounterMetricFamily, labels: tuple[str, str, str], microjoules: int) -> None:
        """A correction may take some back, and a counter must not fall: it waits until it is made up for."""
        value = max(self._shown.get(labels, 0.0), microjoules / MICRO)
        self._shown[labels] = value
        family.add_metric(labels, value)

    def _engines(self) -> Iterator[Metric]:
        windows = CounterMetricFamily(
            "joulegate_energy_windows", "Windows that were billed", labels=["engine", "whole"]
        )
        scale = GaugeMetricFamily(
            "joulegate_energy_price_scale", "Measured joules over priced joules, last minute", labels=["engine"]
        )
        for name, book in self._bill.engines.items():
            windows.add_metric([name, "true"], book.windows - book.windows_marked)
            windows.add_metric([name, "false"], book.windows_marked)
            scale.add_metric([name], book.company.scale)
        yield windows
        yield scale
        yield GaugeMetricFamily("joulegate_energy_accounts", "Accounts of joules kept apart", len(self._bill.accounts))
        yield GaugeMetricFamily("joulegate_energy_prefixes", "Prefixes whose cost is shared", len(self._bill.prefixes))
        given_up = self._bill.given_up
        yield CounterMetricFamily("joulegate_energy_calls_given_up", "Calls billed to others, being too many", given_up)

    def _budget_use(self) -> Iterator[Metric]:
        left = GaugeMetricFamily(
            "joulegate_key_budget_joules_left", "Of the key's budget in this period", labels=["key"]
        )
        unknown = GaugeMetricFamily(
            "joulegate_key_budget_unknown_calls", "Calls of this period whose joules nobody knows", labels=["key"]
        )
        for key, use in self._budgets.by_key.items():
            left.add_metric([key], use.left_joules)
            unknown.add_metric([key], use.unknown_calls)
        yield left
        yield unknown

    @staticmethod
    def _ledger(store: EnergyStore) -> Iterator[Metric]:
        state = store.state()
        yield GaugeMetricFamily("joulegate_energy_ledger_bytes", "Size of the energy ledger", state.bytes)
        yield GaugeMetricFamily("joulegate_energy_ledger_pending", "Numbers that wait for the disk", state.pending)
        yield GaugeMetricFamily("joulegate_energy_ledger_gaps", "Times of which something may be missing", state.gaps)
        yield GaugeMetricFamily(
            "joulegate_energy_ledger_faulty", "1: nothing can be written now", float(state.fault is not None)
        )
        lost = state.lost_microjoules / MICRO
        yield CounterMetricFamily("joulegate_energy_ledger_lost_joules", "Not written, the disk failing", lost)


class Reading(NamedTuple):
    """A device's own figures, for OpenTelemetry. None: it does not say, and nothing is reported."""

    device: str
    """`hw.id`: unique on its host, such as a GPU's UUID."""
    kind: str
    """`hw.type`: `gpu`, `cpu` or `memory`."""
    name: str
    engine: str
    source: str
    joules: float | None
    """Counter since any beginning; what it was at the first reading counts from there."""
    watts: float | None


def instruments(meter: Meter, readings: Callable[[], Iterable[Reading]]) -> None:
    """OpenTelemetry's `hw.energy` (J) and `hw.power` (W), as its semantic conventions for hardware name them.

    `readings` is called on the exporter's thread: it must only read.
    """
    from opentelemetry.metrics import Observation  # whose memory only its users should pay

    def attributes(reading: Reading) -> dict[str, str]:
        return {
            "hw.id": reading.device,
            "hw.type": reading.kind,
            "hw.name": reading.name,
            "joulegate.engine": reading.engine,
            "joulegate.energy.source": reading.source,
        }

    def energy(_: CallbackOptions) -> Iterator[Observation]:
        for reading in readings():
            if reading.joules is not None:
                yield Observation(reading.joules, attributes(reading))

    def power(_: CallbackOptions) -> Iterator[Observation]:
        for reading in readings():
            if reading.watts is not None:
                yield Observation(reading.watts, attributes(reading))

    meter.create_observable_counter("hw.energy", [energy], unit="J", description="Energy consumed by the component.")
    meter.create_observable_gauge(
        "hw.power", [power], unit="W", description="Instantaneous power consumed by the component."
    )
