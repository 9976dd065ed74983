"""What does an answer in a prescribed form look like? JSON of a schema, a tool call, one of several choices."""

from __future__ import annotations

import hashlib
import json
import math
import random
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from backends.twin.server.errors import ApiError
from backends.twin.server.words import COMMON

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backends.twin.server.fields import SamplingFields

DEPTH_MAX = 16
STRING_MAX = 4096
ITEMS_MAX = 64
VALUES_MAX = 10_000
"""Values of one schema; a `$ref`, `anyOf`, `oneOf` or `allOf` that is followed counts as one too."""
CHARACTERS_MAX = 500_000
"""Characters of one schema's values, names included."""
_TYPES = frozenset({"object", "array", "string", "integer", "number", "boolean", "null"})


@dataclass(slots=True)
class _Form:
    """One schema, and what may still be made of it: a short schema can ask for very much."""

    root: dict[str, Any]
    seed: random.Random
    values_left: int = VALUES_MAX
    characters_left: int = CHARACTERS_MAX

    def take(self, *, values: int = 0, characters: int = 0) -> None:
        """Before they are made. ApiError beyond the limits."""
        self.values_left -= values
        self.characters_left -= characters
        if self.values_left < 0:
            raise _not_understood(f"more than {VALUES_MAX} values (the twin's limit)")
        if self.characters_left < 0:
            raise _not_understood(f"more than {CHARACTERS_MAX} characters (the twin's limit)")


def text_of_format(fields: SamplingFields, prompt_ids: Sequence[int]) -> str | None:
    """The whole answer, if a form is prescribed; None for free text. ApiError for forms the twin cannot make."""
    seed = random.Random(hashlib.blake2b(array("I", prompt_ids).tobytes(), digest_size=8).digest())
    wanted, structured = fields.response_format, fields.structured_outputs
    schema: Any = None
    if wanted is not None and wanted.type == "json_schema":
        assert wanted.json_schema is not None
        schema = wanted.json_schema.schema_ or {}
    elif wanted is not None and wanted.type == "json_object":
        schema = {"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}
    elif structured is not None:
        if structured.choice:
            return seed.choice(structured.choice)
        if structured.json_ is not None:
            schema = _schema_of(structured.json_)
        elif structured.json_object:
            schema = {"type": "object"}
        elif structured.regex or structured.grammar or structured.structural_tag:
            raise ApiError(
                "The twin (simulated) makes no text for `regex`, `grammar` or `structural_tag`; it does for `choice`,"
                " `json` and `json_object`",
                param="structured_outputs",
            )
    return None if schema is None else json_of(schema, seed)


def json_of(schema: dict[str, Any], seed: random.Random) -> str:
    """JSON that the schema allows, without white space, as xgrammar writes it. ApiError for what is not understood."""
    try:
        made = _value(schema, _Form(schema, seed), 0)
        return json.dumps(made, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise _not_understood("a value is no JSON") from None
    except RecursionError:
        raise _not_understood("a value is nested too deep") from None


def tool_call_text(name: str, arguments: str) -> str:
    """How a model of the Hermes kind writes a call."""
    return f'<tool_call>\n{{"name": {json.dumps(name)}, "arguments": {arguments}}}\n</tool_call>'


def seeded(prompt_ids: Sequence[int], name: str) -> random.Random:
    """For a part of an answer that is named."""
    return random.Random(hashlib.blake2b(array("I", prompt_ids).tobytes(), digest_size=8).hexdigest() + ascii(name))


def _schema_of(given: str | dict[str, Any]) -> Any:
    if isinstance(given, dict):
        return given
    try:
        return json.loads(given)
    except ValueError:
        raise _not_understood("not JSON") from None


def _not_understood(why: str) -> ApiError:
    return ApiError(f"Failed to transform json schema into a grammar: {why}")


def _value(schema: Any, form: _Form, depth: int) -> Any:
    if depth > DEPTH_MAX:
        raise _not_understood(f"nested deeper than {DEPTH_MAX} (the twin's limit)")
    form.take(values=1)
    if schema is True:
        return "text"
    if not isinstance(schema, dict):
        raise _not_understood("Schema should be an object or bool")
    if "$ref" in schema:
        return _value(_referred(schema["$ref"], form), form, depth + 1)
    if "const" in schema:
        return _given(schema["const"], form)
    if isinstance(schema.get("enum"), list) and schema["enum"]:
        return _given(form.seed.choice(schema["enum"]), form)
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), list) and schema[key]:
            return _value(schema[key][0], form, depth + 1)
    if isinstance(schema.get("allOf"), list) and schema["allOf"]:
        merged: dict[str, Any] = {}
        for part in schema["allOf"]:
            form.take(characters=len(part) + 1 if isinstance(part, dict) else 1)
            merged |= part if isinstance(part, dict) else {}
        return _value(merged, form, depth + 1)
    kind = schema.get("type", "object" if "properties" in schema else "array" if "items" in schema else "string")
    if isinstance(kind, list) and kind:
        kind = kind[0]
    if not isinstance(kind, str) or kind not in _TYPES:
        raise _not_understood(f'Unsupported type "{kind}"')
    if kind == "object":
        return _object(schema, form, depth)
    if kind == "array":
        least = _count(schema, "minItems", 1, ITEMS_MAX)
        most = _count(schema, "maxItems", max(least, 1), 10**9)
        return [_value(schema.get("items", True), form, depth + 1) for _ in range(min(least, most) if most else 0)]
    return _scalar(kind, schema, form)


def _given(value: Any, form: _Form) -> Any:
    """A value that stands in the schema."""
    form.take(characters=len(json.dumps(value)))
    return value


def _object(schema: dict[str, Any], form: _Form, depth: int) -> dict[str, Any]:
    properties = schema.get("properties", {})
    if not isinstance(properties, dict):
        raise _not_understood("properties must be an object")
    required = schema.get("required", [])
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        raise _not_understood("required must be an array of strings")
    form.take(characters=sum(len(name) + 1 for names in (properties, required) for name in names))
    # Where nothing is required, all are given: an empty object would say little of a client's code.
    wanted = set(required or properties)
    names = [name for name in properties if name in wanted]
    made = {name: _value(properties[name], form, depth + 1) for name in names}
    others = [name for name in required if name not in properties]
    form.take(values=len(others), characters=len("text") * len(others))
    made.update(dict.fromkeys(others, "text"))
    return made


def _scalar(kind: str, schema: dict[str, Any], form: _Form) -> Any:
    if kind == "null":
        return None
    if kind == "boolean":
        return form.seed.random() < 0.5
    if kind == "string":
        text = " ".join(form.seed.choices(COMMON, k=3))
        least = _count(schema, "minLength", 0, STRING_MAX)
        most = _count(schema, "maxLength", STRING_MAX, 10**9)
        text = (text + "e" * (least - len(text)))[:most]
        form.take(characters=len(text))
        return text
    low, high = _bound(schema, "minimum", "exclusiveMinimum", 1), _bound(schema, "maximum", "exclusiveMaximum", -1)
    value = form.seed.randint(1, 99)
    if low is not None and value < low:
        value = int(-(-low // 1))
    if high is not None and value > high:
        value = int(high // 1)
    return value


def _bound(schema: dict[str, Any], inclusive: str, exclusive: str, step: int) -> float | None:
    """A bound for whole numbers, None if there is none that is finite. ApiError for one that no float can hold."""
    for name, more in ((inclusive, 0), (exclusive, step)):
        given = schema.get(name)
        try:
            if isinstance(given, int | float) and math.isfinite(given):
                return given + more
        except OverflowError:
            raise _not_understood(f"{name} is too large a number") from None
    return None


def _count(schema: dict[str, Any], key: str, default: int, most: int) -> int:
    given = schema.get(key, default)
    if not isinstance(given, int) or given < 0:
        raise _not_understood(f"{key} must be a non-negative integer")
    if given > most:
        raise _not_understood(f"{key} of {given} is more than {most} (the twin's limit)")
    return given


def _referred(reference: Any, form: _Form) -> Any:
    found: Any = form.root
    if not isinstance(reference, str) or not reference.startswith("#"):
        raise _not_understood(f"cannot follow $ref {reference!r}")
    form.take(characters=len(reference))
    for part in reference.lstrip("#").strip("/").split("/") if reference != "#" else ():
        if not isinstance(found, dict) or part not in found:
            raise _not_understood(f"cannot follow $ref {reference!r}")
        found = found[part]
    return found
