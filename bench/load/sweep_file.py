"""What does a sweep's file ask for? Fixed values and grids of others, checked as a whole before anything is played."""

from __future__ import annotations

import re
import tomllib
from dataclasses import fields
from difflib import get_close_matches
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.load.spec import ALIASES, TABLES, Spec, SpecFault, of
from bench.programs import BenchError
from proxy.config_lines import Lines

if TYPE_CHECKING:
    from pathlib import Path

    from bench.load.spec import Place

CELLS_MAX = 100_000
PROBLEMS_SHOWN = 20
_GIVEN = {name: alias for alias, name in ALIASES.items()}
KNOWN = tuple(_GIVEN.get(each.name, each.name) for each in fields(Spec))


class Sweep(NamedTuple):
    """Configurations, each once, in the order of the file."""

    text: str
    cells: tuple[Spec, ...]


def read_sweep(path: Path) -> Sweep:
    """BenchError with every problem and its line."""
    try:
        text = path.read_text(encoding="utf-8")
        data = tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise BenchError(f"{path}: cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        at = re.search(r"at line (\d+)", str(error))
        raise BenchError(f"{path}:{at[1] if at else len(text.splitlines())}: is not TOML: {error}") from None
    reader = _Reader(path, Lines(text))
    cells = reader.cells(data)
    if reader.problems:
        shown = list(dict.fromkeys(reader.problems))
        more = [f"and {len(shown) - PROBLEMS_SHOWN} more"] if len(shown) > PROBLEMS_SHOWN else []
        raise BenchError("\n  ".join([f"{path}: nothing was run", *shown[:PROBLEMS_SHOWN], *more]))
    return Sweep(text, tuple(cells))


class _Reader:
    def __init__(self, path: Path, lines: Lines) -> None:
        self._path = path
        self._lines = lines
        self.problems: list[str] = []

    def cells(self, data: dict[str, Any]) -> list[Spec]:
        """All configurations that are possible; what is wrong is in `problems`."""
        fixed = {name: value for name, value in data.items() if name != "grid"}
        given = data.get("grid", {})
        grids = given if isinstance(given, list) else [given]
        self._names(fixed, ())
        found: dict[str, Spec] = {}
        for number, grid in enumerate(grids):
            place: tuple[str | int, ...] = ("grid", number) if isinstance(given, list) else ("grid",)
            if not isinstance(grid, dict):
                self._problem(place, 'must be a table of lists: [grid] with policy = ["passthrough", "fifo"]')
                continue
            self._names(grid, place)
            for spec in self._grid(fixed, grid, place):
                found.setdefault(repr(spec), spec)
        if not found and not self.problems:
            self._problem(("grid",), "there is nothing to play")
        return list(found.values())

    def _names(self, table: dict[str, Any], place: tuple[str | int, ...]) -> None:
        """Unknown keys, whatever else is wrong."""
        for name in table:
            if name.partition(".")[0] not in KNOWN:
                near = get_close_matches(name, KNOWN, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(KNOWN)}"
                self._problem((*place, name), f"{name}: unknown key; {hint}")

    def _grid(self, fixed: dict[str, Any], grid: dict[str, Any], place: tuple[str | int, ...]) -> list[Spec]:
        lists, places = self._lists(grid, place)
        size = 1
        for values in lists.values():
            size *= len(values)
        if size > CELLS_MAX:
            self._problem(place, f"has {size:,} configurations; {CELLS_MAX:,} are allowed")
            return []
        if self.problems:
            return []
        specs = []
        for chosen in product(*lists.values()):
            try:
                specs.append(of(_merged(fixed, dict(zip(lists, chosen, strict=True)))))
            except SpecFault as fault:
                for where, what in fault.problems:
                    self._problem(
                        self._place(where, places), f"{'.'.join(_GIVEN.get(part, part) for part in where)}: {what}"
                    )
        return specs

    def _lists(
        self, grid: dict[str, Any], place: tuple[str | int, ...]
    ) -> tuple[dict[str, list[Any]], dict[str, tuple[str | int, ...]]]:
        """(values by name, dotted into tables; where each stands)."""
        lists: dict[str, list[Any]] = {}
        places: dict[str, tuple[str | int, ...]] = {}
        for name, values in grid.items():
            inner = values.items() if isinstance(values, dict) and name in TABLES else [(None, values)]
            for key, each in inner:
                full = name if key is None else f"{name}.{key}"
                where = (*place, name) if key is None else (*place, name, key)
                if not isinstance(each, list):
                    self._problem(where, f"{full}: must be a list of values, not {each!r}")
                elif not each:
                    self._problem(where, f"{full}: is an empty list: nothing would be played")
                else:
                    lists[ALIASES.get(full, full)], places[ALIASES.get(full, full)] = each, where
        return lists, places

    def _place(self, where: Place, places: dict[str, tuple[str | int, ...]]) -> tuple[str | int, ...]:
        """Of a problem: in the grid if it is from there, else among the fixed values."""
        for end in range(len(where), 0, -1):
            if (found := places.get(".".join(ALIASES.get(part, part) for part in where[:end]))) is not None:
                return found
        return tuple(where)

    def _problem(self, place: tuple[str | int, ...], what: str) -> None:
        line = self._lines.of(place)
        if line is None and (alias := next((a for a, n in ALIASES.items() if place and n == place[-1]), None)):
            line = self._lines.of((*place[:-1], alias))
        self.problems.append(f"{self._path}:{line}: {what}" if line is not None else f"{self._path}: {what}")


def _merged(fixed: dict[str, Any], chosen: dict[str, Any]) -> dict[str, Any]:
    """A configuration's values; a dotted name goes into its table."""
    found = {name: dict(value) if isinstance(value, dict) else value for name, value in fixed.items()}
    for full, value in chosen.items():
        name, dot, key = full.partition(".")
        if dot and name in TABLES:
            table = found.setdefault(name, {})
            if isinstance(table, dict):
                table[key] = value
        else:
            if (alias := next((a for a, n in ALIASES.items() if n == full), None)) is not None:
                found.pop(alias, None)
            found[full] = value
    return found
