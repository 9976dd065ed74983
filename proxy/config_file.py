"""Loading the configuration: from file, environment and command line; every problem with its place and the way out."""

from __future__ import annotations

import sys
import tomllib
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from proxy.config import Config
from proxy.config_lines import Lines

if TYPE_CHECKING:
    from collections.abc import Mapping

ENVIRONMENT_PREFIX = "JOULEGATE_"
NEEDS_RESTART = ("listen", "log", "tracing", "event_log", "state_dir")


class ConfigError(Exception):
    """What is wrong, one problem a line."""


def load(path: Path | None, environ: Mapping[str, str], overrides: Mapping[str, Any]) -> Config:
    """The configuration; `overrides` come from the command line and win. Raises ConfigError with all problems."""
    text, data = _read(path)
    where = _Where(path, Lines(text))
    problems = _take_environment(data, environ, where)
    for name, value in overrides.items():
        if isinstance(value, dict):
            table = data.setdefault(name, {})
            if isinstance(table, dict):
                table.update(value)
                continue
        data[name] = value
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False)
        if len(found) > 1:  # a table whose entries are all wrong is not too short as well
            found = [item for item in found if item["type"] != "too_short"]
        problems += [where.problem(item) for item in found]
        raise ConfigError("\n".join(problems)) from None
    if problems:
        raise ConfigError("\n".join(problems))
    return config


def _read(path: Path | None) -> tuple[str, dict[str, Any]]:
    if path is None:
        return "", {}
    try:
        text = path.read_text(encoding="utf-8")
        return text, tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from None


class _Where:
    """Words for where a problem is."""

    def __init__(self, path: Path | None, lines: Lines) -> None:
        self._path = path
        self._lines = lines
        self.variables: dict[tuple[str | int, ...], str] = {}

    def place(self, location: tuple[str | int, ...]) -> str:
        """`joulegate.toml:12: limits.body_bytes`, or the environment variable that it came from."""
        if (variable := self.variables.get(location)) is not None:
            return variable
        name = ".".join(str(part) for part in location) or "configuration"
        if self._path is None:
            return name
        line = self._lines.of(location)
        return f"{self._path}:{line}: {name}" if line is not None else f"{self._path}: {name}"

    def problem(self, error: Any) -> str:
        """One problem as pydantic found it, in our words."""
        location = tuple(error["loc"])
        if error["type"] == "extra_forbidden":
            known = _known_keys(location[:-1])
            return f"{self.place(location)}: unknown key{_nearest(str(location[-1]), known)}"
        if error["type"] == "missing":
            return f"{self.place(location)}: is missing"
        message = error["msg"].removeprefix("Value error, ")
        return "\n".join(f"{self.place(location)}: {line}" for line in message.split("\n"))


def _nearest(word: str, known: list[str]) -> str:
    near = get_close_matches(word, known, n=1)
    return f'; did you mean "{near[0]}"?' if near else f"; known are {', '.join(known)}"


def _known_keys(location: tuple[str | int, ...]) -> list[str]:
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


def environment_names() -> dict[str, tuple[str, ...]]:
    """Each variable that is read → the place of the value that it sets."""
    names: dict[str, tuple[str, ...]] = {}
    for name in Config.model_fields:
        if name in ("engines", "keys"):
            continue
        table = _table_of(Config, name)
        if table is None:
            names[ENVIRONMENT_PREFIX + name.upper()] = (name,)
        else:
            for key in table.model_fields:
                if key != "options":
                    names[f"{ENVIRONMENT_PREFIX}{name}__{key}".upper()] = (name, key)
    names[f"{ENVIRONMENT_PREFIX}POLICY__MAX_IN_FLIGHT"] = ("policy", "max_in_flight")
    return names


def _take_environment(data: dict[str, Any], environ: Mapping[str, str], where: _Where) -> list[str]:
    names = environment_names()
    problems = []
    for variable in sorted(name for name in environ if name.startswith(ENVIRONMENT_PREFIX)):
        value = environ[variable]
        if variable == f"{ENVIRONMENT_PREFIX}ENGINES":
            data["engines"] = [{"url": url.strip()} for url in value.split(",") if url.strip()]
            continue
        place = names.get(variable)
        if place is None:
            problems.append(f"{variable}: unknown environment variable{_nearest(variable, list(names))}")
            continue
        table = data
        for part in place[:-1]:
            table = table.setdefault(part, {})
        table[place[-1]] = _parsed(value)
        where.variables[place] = variable
    return problems


def _parsed(value: str) -> Any:
    """As TOML would read it (number, true, "text"); what TOML cannot read is text."""
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


def check_config(path: Path, environ: Mapping[str, str]) -> int:
    """`joulegate check-config`: 0 and a summary, or 2 and the problems. Asks nobody on the network."""
    try:
        config = load(path, environ, {})
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    listen = config.listen
    sys.stdout.write(
        f"{path}: fine\n"
        f"listens on {listen.host}:{listen.port}, control plane on {listen.control_host}:{listen.control_port}\n"
        f"policy {config.policy.name}, {len(config.keys)} keys\n"
        + "".join(f"engine {engine.name}: {engine.url}\n" for engine in config.engines)
    )
    return 0
