"""What can be asked of the ledger? One question, one SQL statement, and figures with source and interval."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from proxy.energy.store_file import CALLS, ENGINE_FIRST, HOUR, MINUTE, SOURCE_CODES, UNKNOWN, Gap
from scheduler.energy.bill_accounts import COMPONENTS, ENGINE_COMPONENTS, UNCERTAINTY, figure_of
from scheduler.energy.bill_prices import MICRO

if TYPE_CHECKING:
    import sqlite3

    from scheduler.energy.bill_accounts import Amounts, Figure, Source

By = Literal["workflow", "key", "model", "engine", "component"]
COLUMNS: dict[By, tuple[str, ...]] = {
    "workflow": ("key", "workflow"),
    "key": ("key",),
    "model": ("model",),
    "engine": ("engine",),
    "component": (),
}
JOULES_PER_KWH = 3.6e6
_SOURCES: dict[int, Source] = {code: source for source, code in SOURCE_CODES.items()}


class Question(NamedTuple):
    """`since` and `until` are unix seconds: all minutes (of older times: hours) from that of `since` on that begin
    before `until`."""

    by: By
    since: float
    until: float
    key: str | None = None
    """One key's alone; then nothing of the engines' own is told."""
    limit: int = 100
    """Of rows; those with the most joules are told."""


class Group(NamedTuple):
    """One row of an answer."""

    names: dict[str, str]
    figure: Figure
    engine: dict[str, float]
    """Joules of the engine's own components; empty where there are none, or they are not told."""
    by_hour: dict[int, float]
    """Hour of the day, UTC → full joules and what of the engines' own is there."""


class Answer(NamedTuple):
    """`groups`: of how many, rows that are left out included."""

    rows: list[Group]
    groups: int
    gaps: list[Gap]
    oldest: float | None
    """Unix time of the first minute or hour that is kept."""


def ask(connection: sqlite3.Connection, question: Question) -> Answer:
    """Answer one question. sqlite3.Error if the file cannot be read."""
    columns = COLUMNS[question.by]
    own = "" if question.key is None else "AND a.key = :key"
    names = ", ".join(f"a.{column}" for column in columns) or "1"
    # Engines have accounts of their own, without a key: of no matter to keys, models and workflows.
    engines = "" if question.by in ("engine", "component") and question.key is None else "AND a.key <> ''"
    some = ("AND a.workflow <> ''" if question.by == "workflow" else "") + f" {own} {engines}"
    inside = f"m.bucket >= :since AND m.bucket < :until {some}"
    values = {
        "since": question.since // MINUTE * MINUTE,
        "until": question.until,
        "key": question.key,
        "limit": question.limit,
    }
    tables = "amount m JOIN account a ON a.id = m.account"
    # Names of columns are constants of this file: nothing of a client's is put into a statement.
    count = f"SELECT count(*) FROM (SELECT 1 FROM {tables} WHERE {inside} GROUP BY {names})"  # noqa: S608
    (groups,) = connection.execute(count, values).fetchone()
    most = f"SELECT {names} FROM {tables} WHERE {inside} AND m.component < {UNCERTAINTY}"  # noqa: S608
    most += f" GROUP BY {names} ORDER BY sum(m.value) DESC LIMIT :limit"
    chosen = f"AND ({names}) IN ({most})" if columns and groups > question.limit else ""
    hour = f"m.bucket / {HOUR} % 24"
    sums = f"SELECT {names}, m.source, m.component, {hour}, sum(m.value) FROM {tables}"  # noqa: S608
    sums += f" WHERE {inside} {chosen} GROUP BY {names}, m.source, m.component, {hour}"
    rows = connection.execute(sums, values)
    found: dict[tuple[str, ...], _Sums] = {}
    for row in rows:
        name = row[: len(columns)]
        group = found.get(name)
        if group is None:
            group = found[name] = _Sums()
        group.take(*row[-4:])
    gaps = connection.execute(
        "SELECT since, until, reason FROM gap WHERE until >= :since AND since < :until ORDER BY since", values
    ).fetchall()
    (oldest,) = connection.execute("SELECT min(bucket) FROM amount").fetchone()
    told = [group.told(dict(zip(columns, name, strict=True))) for name, group in found.items()]
    told.sort(key=lambda group: -(group.figure.full_joules or 0.0))
    return Answer(told, groups, [Gap(*gap) for gap in gaps], oldest)


class _Sums:
    def __init__(self) -> None:
        self.by_source: dict[Source, Amounts] = {}
        self.engine: dict[str, int] = {}
        self.hours: dict[int, int] = {}
        self.calls = self.unknown = 0

    def take(self, source: int, component: int, hour: int, value: int) -> None:
        if component == CALLS:
            self.calls += value
        elif component == UNKNOWN:
            self.unknown += value
        elif component >= ENGINE_FIRST:
            name = ENGINE_COMPONENTS[component - ENGINE_FIRST]
            self.engine[name] = self.engine.get(name, 0) + value
            if not name.endswith("counter"):
                self.hours[hour] = self.hours.get(hour, 0) + value
        else:
            amounts = self.by_source.setdefault(_SOURCES[source], [0] * len(COMPONENTS))
            amounts[component] += value
            if component < UNCERTAINTY:
                self.hours[hour] = self.hours.get(hour, 0) + value

    def told(self, names: dict[str, str]) -> Group:
        return Group(
            names,
            figure_of(self.by_source, self.calls, complete=self.unknown == 0),
            {name: value / MICRO for name, value in self.engine.items()},
            {hour: value / MICRO for hour, value in self.hours.items()},
        )


def cost(by_hour: dict[int, float], factors: tuple[float, ...] | None) -> float | None:
    """Joules by hour of the day times a factor a kilowatt-hour for each hour; None: no factor is given."""
    if factors is None:
        return None
    return sum(joules / JOULES_PER_KWH * factors[hour] for hour, joules in by_hour.items())
