"""Devices' joules and watts for an OpenTelemetry collector. Imported only where tracing is configured."""

from __future__ import annotations

from threading import Thread
from typing import TYPE_CHECKING

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource

from proxy.energy.metrics import Reading, instruments
from proxy.tracing import TracingFault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from proxy.config import TracingConfig
    from proxy.energy.metering import Metering

CLOSE_SECONDS = 5.0
EXPORT_SECONDS = 5.0
"""An export may take so long."""


class HardwareMetrics:
    """`hw.energy` and `hw.power` of every device that is read, exported every `metrics_seconds` on a thread of the
    SDK's. Raises TracingFault where the exporter is not installed."""

    def __init__(self, config: TracingConfig, readings: Callable[[], Iterable[Reading]]) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        except ImportError:
            raise TracingFault("tracing.otlp_endpoint needs the exporter: pip install 'joulegate[otlp]'") from None
        endpoint = config.otlp_endpoint.rstrip("/").removesuffix("/v1/traces") + "/v1/metrics"
        exporter = OTLPMetricExporter(endpoint=endpoint, timeout=EXPORT_SECONDS)
        self._provider = MeterProvider(
            [PeriodicExportingMetricReader(exporter, export_interval_millis=1e3 * config.metrics_seconds)],
            Resource.create({"service.name": config.service_name}),
            shutdown_on_exit=False,
        )
        instruments(self._provider.get_meter("joulegate"), readings)

    def close(self) -> None:
        """Export what is left; blocks, but not over CLOSE_SECONDS for a collector that does not answer."""
        closing = Thread(target=self._provider.shutdown, name="hardware-metrics-close", daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)


def readings_of(metering: Metering) -> list[Reading]:
    """What each device said last. Called on the exporter's thread."""
    found = []
    engines = {name: meter.engine for meter in list(metering.meters.values()) for name in meter.gpus}
    for name, sample in list(metering.latest.items()):
        kind = metering.kind(name)
        engine = engines.get(name, "-")
        card = metering.card(name)
        found.append(Reading(name, kind, card, engine, sample.source, sample.energy_joules, sample.power_watts))
    return found
