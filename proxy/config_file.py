"""Loading the configuration: from file, environment and command line; every problem with its place and the way out."""

from __future__ import annotations

import re
import sys
import tomllib
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from proxy.config import Config, Place, Problems, is_sendable
from proxy.config_lines import Lines
from proxy.policies import load_plugins
from scheduler.policies import POLICIES
from scheduler.policies.options import completed

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

ENVIRONMENT_PREFIX = "JOULEGATE_"
NEEDS_RESTART = ("listen", "log", "tracing", "event_log", "state_dir", "workflows", "batches", "power", "caps",
                 "energy", "experiments", "parking")  # fmt: skip


class ConfigError(Exception):
    """What is wrong, one problem a line."""


def load(path: Path | None, environ: Mapping[str, str], overrides: Mapping[str, Any]) -> Config:
    """The configuration; `overrides` come from the command line and win. Raises ConfigError with all problems."""
    load_plugins()
    lines, data = _read(path)
    where = _Where(path, lines)
    problems = _take_environment(data, environ, where)
    for name, value in overrides.items():
        for place, part in (
            [((name, key), part) for key, part in value.items()] if isinstance(value, dict) else [((name,), value)]
        ):
            _put(data, place, part)
            where.sources[place] = "command line"
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        found = error.errors(include_url=False)
        if len(found) > 1:  # a table whose entries are all wrong is not too short as well
            found = [item for item in found if item["type"] != "too_short"]
        problems += [where.problem(item) for item in [*found, *_hidden(data, found)]]
        raise ConfigError("\n".join(problems)) from None
    problems += _engine_key_problems(config, environ, where)
    if problems:
        raise ConfigError("\n".join(problems))
    return config


def _read(path: Path | None) -> tuple[Lines, dict[str, Any]]:
    if path is None:
        return Lines(""), {}
    try:
        text = path.read_text(encoding="utf-8")
        data = tomllib.loads(text)
        return Lines(text), data
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 (byte {error.start})") from None
    except RecursionError:
        raise ConfigError(f"{path}: is nested too deeply") from None
    except tomllib.TOMLDecodeError as error:
        what, at_line, line, column = _TOML_ERROR.fullmatch(str(error)).groups()  # type: ignore[union-attr]
        place = f"{path}:{line}:{column}" if at_line else f"{path}:{len(text.splitlines())}"
        raise ConfigError(f"{place}: is not TOML: {what}") from None


_TOML_ERROR = re.compile(r"(.*?)(?: \((?:at end of document|(at line )(\d+), column (\d+))\))?", re.DOTALL)


def _put(data: dict[str, Any], place: Place, value: Any) -> None:
    """Set a value, but where its table should be is something else: that is found wrong later."""
    table: Any = data
    for part in place[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            return
    table[place[-1]] = value


def _hidden(data: dict[str, Any], found: list[Any]) -> list[Any]:
    """The problems between fields, which pydantic looks for only when each field is right.

    Unknown keys can be left out without changing what the others mean; with other faults it is too early to tell.
    """
    if any(item["type"] != "extra_forbidden" for item in found):
        return []
    for item in found:
        table: Any = data
        for part in item["loc"][:-1]:
            table = table[part]
        del table[item["loc"][-1]]
    try:
        Config.model_validate(data)
    except ValidationError as error:
        return list(error.errors(include_url=False))
    return []


def _engine_key_problems(config: Config, environ: Mapping[str, str], where: _Where) -> list[str]:
    problems = []
    for index, engine in enumerate(config.engines):
        if (variable := engine.api_key_env) is not None and not is_sendable(environ.get(variable, "")):
            what = "is not visible ASCII" if environ.get(variable) else "is not set"
            place = where.place(("engines", index, "api_key_env"))
            problems.append(f"{place}: the environment variable {variable} {what}")
    return problems


class _Where:
    """Words for what is wrong and where."""

    def __init__(self, path: Path | None, lines: Lines) -> None:
        self._path = path
        self._lines = lines
        self.sources: dict[Place, str] = {}
        """Values that are not from the file → where they are from."""

    def place(self, location: Place) -> str:
        """`joulegate.toml:12: limits.body_bytes`; the environment variable or the command line instead of the file."""
        name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).removeprefix(".")
        for end in range(len(location), 0, -1):
            if (source := self.sources.get(location[:end])) is not None:
                return f"{source}: {name}"
        if self._path is None:
            return name
        line = self._lines.of(location)
        return f"{self._path}:{line}: {name}" if line is not None else f"{self._path}: {name}"

    def problem(self, error: Any) -> str:
        """One problem that pydantic found (more than one line if it is several), in our words."""
        location = tuple(error["loc"])
        cause = error.get("ctx", {}).get("error")
        if isinstance(cause, Problems):
            return "\n".join(f"{self.place((*location, *place))}: {what}" for place, what in cause.found)
        return f"{self.place(location)}: {_in_words(error, location)}"


_TABLE = ("must be a table", "type")
_WORDS = {
    "missing": ("is missing", ""),
    "int_type": ("must be a whole number", "value"),
    "int_from_float": ("must be a whole number", "value"),
    "float_type": ("must be a number", "value"),
    "finite_number": ("must be a finite number", "value"),
    "bool_type": ("must be true or false", "value"),
    "string_type": ("must be text", "value"),
    "path_type": ("must be text", "value"),
    "greater_than": ("must be above {gt:g}", "value"),
    "greater_than_equal": ("must be at least {ge:g}", "value"),
    "less_than_equal": ("must be at most {le:g}", "value"),
    "string_too_short": ("must not be empty", ""),
    "string_too_long": ("must have at most {max_length} characters", ""),
    "too_short": ("at least one [[engines]] with a url is needed", ""),
    "model_type": _TABLE,
    "dict_type": _TABLE,
    "tuple_type": ("must be an array of tables", "type"),
}
"""pydantic's kinds of errors → what to say, and whether the value found, its type or nothing can be shown."""
_SECRET = ("api_key", "sha256")
_SHOWN_CHARACTERS = 60


def _in_words(error: Any, location: Place) -> str:
    kind, value = error["type"], error["input"]
    if kind == "extra_forbidden":
        return f"unknown key{_nearest(str(location[-1]), _known_keys(location[:-1]))}"
    if kind == "missing" and location == ("engines",):
        kind = "too_short"
    if kind not in _WORDS:  # our own validators say all that is to say
        return str(error["msg"]).removeprefix("Value error, ")
    words, shown = _WORDS[kind]
    words = words.format(**error.get("ctx", {}))
    if shown == "value" and isinstance(value, str | int | float) and location[-1] not in _SECRET:
        got = str(value).lower() if isinstance(value, bool) else repr(value)
        return f"{words}, not {got if len(got) <= _SHOWN_CHARACTERS else got[:_SHOWN_CHARACTERS] + '…'}"
    return f"{words}, not {_type_in_words(value)}" if shown else words


def _type_in_words(value: Any) -> str:
    names = {str: "text", bool: "true or false", int: "a number", float: "a number", list: "an array", dict: "a table"}
    return names.get(type(value), "a date or time")


def _nearest(word: str, known: list[str]) -> str:
    near = get_close_matches(word, known, n=1)
    return f'; did you mean "{near[0]}"?' if near else f"; known are {', '.join(known)}"


def _known_keys(location: Place) -> list[str]:
    """The keys of the table at this place."""
    model: type[BaseModel] | None = Config
    for part in location:
        if isinstance(part, int) or model is None:
            continue
        model = _table_of(model, part)
    return list(model.model_fields) if model is not None else []


def _table_of(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    field = model.model_fields.get(name)
    if field is None:
        return None
    for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def environment_names() -> dict[str, Place]:
    """Each variable that is read → the place of the value that it sets."""
    places: list[Place] = [("engines",)]
    for name in Config.model_fields:
        table = _table_of(Config, name)
        if table is None:
            places.append((name,))
        elif name not in ("engines", "keys"):
            places += [(name, key) for key in table.model_fields if key != "options"]
    places += [("policy", option) for policy in POLICIES.values() for option in policy.options]
    return {ENVIRONMENT_PREFIX + "__".join(str(part) for part in place).upper(): place for place in places}


_NOT_OURS = re.compile(r"JOULEGATE_((.*_)?SERVICE_(HOST|PORT(_.*)?)|(.*_)?PORT_\d+_(TCP|UDP|SCTP)(_.*)?|BIND)")
"""Kubernetes puts such names into every pod beside a Service named joulegate; BIND is compose.yaml's in deploy/."""


def _take_environment(data: dict[str, Any], environ: Mapping[str, str], where: _Where) -> list[str]:
    names = environment_names()
    problems = []
    for variable in sorted(name for name in environ if name.startswith(ENVIRONMENT_PREFIX)):
        value, place = environ[variable], names.get(variable)
        if place is not None:
            _put(data, place, _parsed(value, place))
            where.sources[place] = variable
        elif not (_NOT_OURS.fullmatch(variable) or (variable == "JOULEGATE_PORT" and "://" in value)):
            problems.append(f"{variable}: unknown environment variable{_nearest(variable, list(names))}")
    return problems


def _parsed(value: str, place: Place) -> Any:
    """The engines' URLs, text as it is, and all else as TOML would read it."""
    if place == ("engines",):
        return [{"url": url.strip()} for url in value.split(",") if url.strip()]
    table = Config if len(place) == 1 else _table_of(Config, str(place[0]))
    field = table.model_fields.get(str(place[-1])) if table is not None else None
    if field is not None and (field.annotation is str or "Path" in str(field.annotation)):
        return value
    try:
        return tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return value


def diff(old: Config, new: Config) -> list[str]:
    """The changed fields that a reload cannot take over."""
    changed = []
    for name in NEEDS_RESTART:
        before, after = getattr(old, name), getattr(new, name)
        if isinstance(before, BaseModel):
            fields = type(before).model_fields
            changed += [f"{name}.{key}" for key in fields if getattr(before, key) != getattr(after, key)]
        elif before != after:
            changed.append(name)
    return changed


def _policy_in_words(config: Config) -> str:
    """Its name, and all its options as they are in force."""
    name, given = config.policy.name, config.policy.options
    values = completed(POLICIES[name].options, given)
    shown = [
        f"{option} = {str(value).lower() if isinstance(value, bool) else value}" for option, value in values.items()
    ]
    return f"{name} ({', '.join(shown)})" if shown else name


def check_config(path: Path, environ: Mapping[str, str]) -> int:
    """`joulegate check-config`: 0 and a summary, or 2 and the problems. Asks nobody on the network."""
    try:
        config = load(path, environ, {})
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    listen = config.listen
    sys.stdout.write(
        f"{path}: OK\n"
        f"listens on {listen.host}:{listen.port}, control plane on {listen.control_host}:{listen.control_port}\n"
        f"policy {_policy_in_words(config)}, {len(config.keys)} keys\n"
        + "".join(f"engine {engine.name}: {engine.url}\n" for engine in config.engines)
    )
    return 0
