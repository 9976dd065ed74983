"""docs/configuration.md and examples/joulegate.toml say what the models say."""

from __future__ import annotations

import ast
import inspect
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

from proxy.config import Config
from proxy.config_file import load
from scheduler.policies import POLICIES

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo
    from typing_extensions import TypeIs

ROOT = Path(__file__).resolve().parents[2]


def documented_tables() -> str:
    """The tables of docs/configuration.md, from the models and the texts below their fields."""
    modules = {inspect.getfile(field) for field in map(table_of, Config.model_fields.values()) if field is not None}
    sources = [Path(path).read_text() for path in sorted(modules)]
    classes = {node.name: node for text in sources for node in ast.parse(text).body if isinstance(node, ast.ClassDef)}
    texts: dict[tuple[str, str], str] = {}
    for name, node in classes.items():
        for field, text in zip(node.body, node.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
                assert isinstance(text.value, ast.Constant)
                texts[name, field.target.id] = " ".join(str(text.value.value).split())
    parts = [table("", Config, texts)]
    for name, field in Config.model_fields.items():
        model = table_of(field)
        if model is not None:
            heading = f"[[{name}]]" if name in ("engines", "keys") else f"[{name}]"
            parts.append(f"## `{heading}`\n\n{model.__doc__}\n\n{table(name, model, texts)}")
    return "\n".join(parts)


def table_of(field: FieldInfo) -> type[BaseModel] | None:
    """The table, or the kind of table, that a field of the configuration is."""
    kinds = (field.annotation, *getattr(field.annotation, "__args__", ()))
    return next((kind for kind in kinds if is_model(kind)), None)


def is_model(kind: object) -> TypeIs[type[BaseModel]]:
    """Whether it is a table of ours."""
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def table(name: str, model: type[BaseModel], texts: dict[tuple[str, str], str]) -> str:
    """One table of the documentation."""
    rows = ["| key | default | meaning |", "| --- | --- | --- |"]
    for key, field in model.model_fields.items():
        kinds = (field.annotation, *getattr(field.annotation, "__args__", ()))
        if any(is_model(kind) for kind in kinds):
            continue
        assert (model.__name__, key) in texts, f"{model.__name__}.{key} has no text below it"
        default = "needed" if field.is_required() else "-" if field.default is None else f"`{in_toml(field.default)}`"
        text = texts[model.__name__, key]
        if (name, key) == ("policy", "name"):
            text += ": " + " or ".join(f"`{policy}`" for policy in POLICIES)
        if (name, key) != ("policy", "options"):
            rows.append(f"| `{key}` | {default} | {text} |")
            continue
        for policy in POLICIES.values():
            for option, is_what in policy.options.items():
                text = f"of `{policy.name}`: {is_what.meaning}; {is_what.range_words()}"
                rows.append(f"| `{option}` | `{in_toml(is_what.default)}` | {text} |")
    return "\n".join(rows) + "\n"


def in_toml(value: object) -> str:
    """A default as it would stand in the file."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(in_toml, value))}]"
    if isinstance(value, int | float):
        return f"{value:g}" if value != int(value) else str(int(value)) if value < 10_000 else f"{int(value):_}"
    return f'"{value}"'


class TestDocuments:
    def test_the_documentation_is_what_the_models_say(self) -> None:
        text = (ROOT / "docs" / "configuration.md").read_text()
        begin, end = "<!-- from the models: begin -->\n", "<!-- from the models: end -->"
        assert text.partition(begin)[2].partition(end)[0].strip() == documented_tables().strip()

    def test_the_example_is_taken_and_shows_real_keys_and_defaults(self) -> None:
        path = ROOT / "examples" / "joulegate.toml"
        config = load(path, {}, {})
        assert len(config.engines) == len(config.keys) == 2
        # With what is commented out in force as well, it must still be taken, and the defaults must be the defaults.
        shown = re.sub(r"^# (?=[a-z_]+ = )", "", path.read_text(), flags=re.MULTILINE)
        assert shown != path.read_text()
        every = load_text(shown, {"VLLM_API_KEY": "k"})
        for name in ("listen", "limits", "timeouts", "log"):
            assert getattr(every, name) == getattr(config, name)


def load_text(text: str, environ: dict[str, str]) -> Config:
    """Load a text that has no file."""
    return load(None, environ, tomllib.loads(text))
