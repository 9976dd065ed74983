"""What a question to the energy ledger may look like, and what an answer does; metrics and OpenTelemetry beside it."""

from __future__ import annotations

import csv
import io
from typing import Any

import orjson
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families as parse_text
from pydantic import ValidationError

from backends.twin.calibration import load
from backends.twin.prior import prior_of
from proxy.energy.api import read, write
from proxy.energy.config import EnergyConfig
from proxy.energy.metrics import EnergyMetrics, Reading, instruments
from proxy.energy.store_file import Gap
from proxy.energy.store_query import Answer, Group, Question, cost
from proxy.errors import RequestFault
from scheduler.energy.bill import Bill
from scheduler.energy.bill_accounts import COMPONENTS, ENGINE_COMPONENTS, Figure, figure_of
from scheduler.energy.budgets import JouleBudgets, JouleQuota
from scheduler.energy.desk import EnergyDesk, EnergyRules
from scheduler.energy.window import Energy, MeterSample
from scheduler.energy.work import Work
from tests.unit.bill_feed import closed, decoded, share, window

NOW = 1_800_000_000.0
ROW = [1_000_000 * number for number in range(1, 11)]
KWH = 3.6e6


def answer(*names: dict[str, str], figure: Figure | None = None, engine: dict[str, float] | None = None) -> Answer:
    known = figure_of({"measured": ROW}, 2) if figure is None else figure
    rows = [Group(name, known, engine or {}, {3: KWH, 15: 2 * KWH}) for name in names]
    return Answer(rows, len(rows), [Gap(NOW - 50, NOW - 40, "killed")], NOW - 100)


def question(**parameters: str) -> Question:
    return read(parameters, None, NOW)[0]


def test_without_parameters_it_is_the_last_day_by_key() -> None:
    assert read({}, "k", NOW) == (Question("key", NOW - 86_400, NOW, "k", 100), "json")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1799990000", 1_799_990_000.0),
        ("-3600", NOW - 3600),
        ("2027-01-15T08:00:00Z", NOW),
        ("2027-01-15T09:00:00+01:00", NOW),
        ("2027-01-15T09:00:00 01:00", NOW),  # a + in a URL is a blank
        ("2027-01-15T08:00:00", NOW),
        ("2027-01-15", NOW - 8 * 3600),
    ],
)
def test_times_are_unix_seconds_or_dates_or_ago(text: str, seconds: float) -> None:
    assert question(since=text, until="1800000001").since == seconds


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({"by": "user"}, "by"),
        ({"by": ""}, "by"),
        ({"format": "xml"}, "format"),
        ({"since": "yesterday"}, "since"),
        ({"since": "nan"}, "since"),
        ({"since": "1e30"}, "since"),
        ({"until": "-inf"}, "until"),
        ({"since": "1800000000", "until": "1800000000"}, "since"),
        ({"limit": "0"}, "limit"),
        ({"limit": "10001"}, "limit"),
        ({"limit": "\u0661"}, "limit"),
        ({"limit": "-5"}, "limit"),
        ({"limit": "9" * 5000}, "limit"),
        ({"group": "key"}, "group"),
        ({"key": "other"}, "key"),
    ],
)
def test_what_cannot_be_asked_is_refused_by_name(parameters: dict[str, str], name: str) -> None:
    with pytest.raises(RequestFault) as fault:
        read(parameters, None, NOW)
    assert (fault.value.status, fault.value.reason, fault.value.param) == (400, "energy_query", name)


def test_an_answer_has_source_interval_and_the_operators_factors() -> None:
    config = EnergyConfig(carbon_grams_per_kwh=300.0, price_hours=tuple(0.1 * hour for hour in range(24)))
    body, kind = write(question(by="key"), answer({"key": "k"}), config, "json")
    assert kind == "application/json"
    found = orjson.loads(body)
    (row,) = found["rows"]
    assert row["key"] == "k"
    assert (row["energy_joules"], row["energy_source"]) == (10.0, "measured")
    assert row["energy_interval_joules"] == [0.0, 20.0]
    assert row["energy_full_joules"] == 45.0
    assert row["carbon_grams"] == pytest.approx(900.0)
    assert row["price"] == pytest.approx(0.3 + 2 * 1.5)
    assert sum(row["components_joules"].values()) == row["energy_full_joules"]
    assert "engine_joules" not in row
    assert found["factors"]["source"] == "operator"
    assert found["factors"]["currency"] == "EUR"
    assert found["gaps"] == [{"since": NOW - 50, "until": NOW - 40, "reason": "killed"}]
    assert found["ledger_begins"] == NOW - 100


def test_without_factors_there_is_neither_carbon_nor_price() -> None:
    row = orjson.loads(write(question(), answer({"key": "k"}), EnergyConfig(), "json")[0])["rows"][0]
    assert row["carbon_grams"] is None
    assert row["price"] is None
    assert cost({3: 1.0}, None) is None


def test_unknown_is_null_and_an_empty_cell_and_never_0() -> None:
    unknown = answer({"key": "k"}, figure=figure_of({}, 3))
    row = orjson.loads(write(question(), unknown, EnergyConfig(), "json")[0])["rows"][0]
    assert row["energy_joules"] is row["energy_full_joules"] is row["energy_interval_joules"] is None
    assert row["energy_source"] == "unavailable"
    (cells,) = rows_of(write(question(), unknown, EnergyConfig(), "csv")[0])
    assert cells["energy_joules"] == cells["energy_low_joules"] == cells["prefill"] == ""
    assert cells["calls"] == "3"
    assert cells["complete"] == "false"


def rows_of(body: bytes) -> list[dict[str, Any]]:
    """CSV as a program reads it."""
    return list(csv.DictReader(io.StringIO(body.decode(), newline="")))


def test_csv_can_be_read_back() -> None:
    names = [
        {"key": "k", "workflow": 'a "quoted", name\r\nwith lines'},
        {"key": "-", "workflow": "=HYPERLINK(1)"},
        {"key": "-x", "workflow": "ünïcode 🜨"},
    ]
    engine = dict.fromkeys(ENGINE_COMPONENTS, 7.0)
    body, kind = write(question(by="workflow"), answer(*names, engine=engine), EnergyConfig(), "csv")
    assert kind.startswith("text/csv")
    found = rows_of(body)
    assert [row["workflow"] for row in found] == [names[0]["workflow"], "'=HYPERLINK(1)", names[2]["workflow"]]
    assert [row["key"] for row in found] == ["k", "-", "'-x"]
    for row in found:
        parts = sum(float(row[name]) for name in COMPONENTS[:9])
        assert parts == float(row["energy_full_joules"]) == 45.0
        assert float(row["energy_low_joules"]) <= float(row["energy_joules"]) <= float(row["energy_high_joules"])
        assert row["engine_counter"] == "7.0"


def test_components_are_rows_of_their_own() -> None:
    made = answer({}, engine={"counter": 60.0, "residual": -1.5})
    asked = question(by="component")
    found = orjson.loads(write(asked, made, EnergyConfig(), "json")[0])
    rows = {row["component"]: row["energy_joules"] for row in found["rows"]}
    assert rows["decode"] == 2.0
    assert rows["residual"] == -1.5
    assert found["rows_in_all"] == len(rows)
    assert "cpu_counter" not in rows and "dram_residual" not in rows  # nothing counts them: absent, and not 0
    assert {row["component"] for row in rows_of(write(asked, made, EnergyConfig(), "csv")[0])} == rows.keys()
    assert orjson.loads(write(asked, answer(), EnergyConfig(), "json")[0])["rows"] == []
    own = write(asked._replace(key="k"), made, EnergyConfig(), "json")[0]
    assert len(orjson.loads(own)["rows"]) == 9


def test_an_empty_answer_is_a_head_of_csv() -> None:
    assert rows_of(write(question(), answer(), EnergyConfig(), "csv")[0]) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"carbon_hours": (1.0,) * 23},
        {"price_per_kwh": -1.0},
        {"window_seconds": 0.5},
        {"flush_seconds": 5.0},
        {"budgets_without_energy": "ask"},
        {"carbon_grams_per_kwh": float("inf")},
        {"unknown": 1},
    ],
)
def test_a_configuration_that_means_nothing_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        EnergyConfig(**wrong)


def metered_bill() -> Bill:
    """An engine with one call in one window."""
    bill = Bill()
    bill.dispatched("a", "k", "w", "m", "e", 0.0)
    closed(bill, window(share("a", decoded(10), ended=True), energy=Energy(400.0, 30.0)))
    return bill


def scraped(metrics: EnergyMetrics) -> dict[str, float]:
    """Samples as `name{labels}`."""
    registry = CollectorRegistry()
    registry.register(metrics)
    return {
        f"{one.name}{sorted(one.labels.items())}": one.value
        for family in parse_text(generate_latest(registry).decode())
        for one in family.samples
    }


def test_metrics_add_up_to_the_counter() -> None:
    bill = metered_bill()
    found = scraped(EnergyMetrics(bill, JouleBudgets([JouleQuota("k", 50.0)], 0.0)))
    joules = {name: value for name, value in found.items() if name.startswith("joulegate_energy_joules_total")}
    residual = sum(value for name, value in found.items() if name.startswith("joulegate_energy_residual"))
    assert sum(joules.values()) + residual == pytest.approx(430.0)
    assert any("('component', 'step')" in name and "('source', 'measured')" in name for name in joules)
    assert found["joulegate_key_budget_joules_left[('key', 'k')]"] == 50.0


def test_each_engine_says_what_its_joules_are_also_where_there_are_none() -> None:
    found = scraped(EnergyMetrics(Bill(), JouleBudgets([], 0.0), sources=lambda: {"e": "unavailable"}))
    assert found["joulegate_energy_source[('engine', 'e'), ('source', 'unavailable')]"] == 1.0
    assert not any("joules" in name and "('engine'" in name for name in found)


def test_an_engines_source_is_the_weakest_that_is_known_of_it() -> None:
    desk = EnergyDesk(EnergyRules(), (), 0.0)
    assert desk.source("e") == "unavailable"
    prior = prior_of(load("h200-llama-3.1-8b"))
    desk.believe("e", prior, None, 0.0, simulated=False)
    assert desk.source("e") == "modelled"
    for at in (0.0, 1.0, 2.0, 3.0):
        desk.sampled("e", MeterSample(at, Energy(100.0 * at)), at)
    assert desk.source("e") == "measured"
    desk.believe("e", prior, None, 3.0, simulated=True)
    assert desk.source("e") == "simulated"


def test_a_counter_never_falls() -> None:
    bill = metered_bill()
    metrics = EnergyMetrics(bill, JouleBudgets([], 0.0))
    before = scraped(metrics)
    taken = share("a", correction=Work(decode_tokens=-9.0))
    closed(bill, window(taken, joules=200.0, start=2.0))
    after = scraped(metrics)
    assert bill.engines["e"].billed["measured"][1] < 500_000
    for name, value in before.items():
        if name.startswith("joulegate_energy_joules_total"):
            assert after[name] >= value


def test_opentelemetry_has_the_names_and_units_of_its_conventions() -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    readings = [
        Reading("GPU-1", "gpu", "H200", "e", "measured", 1000.0, 300.0),
        Reading("GPU-2", "gpu", "H200", "e", "measured", None, None),
        Reading("package-0", "cpu", "Xeon", "e", "measured", 50.0, None),
    ]
    instruments(provider.get_meter("joulegate"), lambda: readings)
    data = reader.get_metrics_data()
    assert data is not None
    found = {metric.name: metric for metric in data.resource_metrics[0].scope_metrics[0].metrics}
    assert (found["hw.energy"].unit, found["hw.power"].unit) == ("J", "W")
    energy = {dict(point.attributes or {})["hw.id"]: point for point in found["hw.energy"].data.data_points}
    assert {name: point.value for name, point in energy.items()} == {"GPU-1": 1000.0, "package-0": 50.0}  # type: ignore[union-attr]
    assert dict(energy["package-0"].attributes or {})["hw.type"] == "cpu"
    assert found["hw.energy"].data.is_monotonic  # type: ignore[union-attr]
    powers = [dict(point.attributes or {})["hw.id"] for point in found["hw.power"].data.data_points]
    assert powers == ["GPU-1"]  # what is not known is not reported as 0
    provider.shutdown()
