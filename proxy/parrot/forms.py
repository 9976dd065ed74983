"""What may the body of a semantic call say?"""

from __future__ import annotations

import re
from typing import Any, Literal, NamedTuple

from proxy.parrot.faults import wrong
from proxy.parrot.sampling import bytes_of, engine_members
from proxy.parrot.template import Placeholder, parse

Objective = Literal["latency", "throughput"]

CRITERIA: dict[str, Objective] = {
    "latency": "latency",
    "throughput": "throughput",
    # The times to the first token and between tokens: whoever names them watches one answer come.
    "TTFT": "latency",
    "TPOT": "latency",
}
NAME_LENGTH_MAX = 256
MODELS_MAX = 64
PIECE_BYTES = 64
"""What a piece of a template takes in memory, beside its text."""
OUTPUTS_MAX = 128
"""In one template: each is asked for with all that stands before it."""
_FUNCTION_NAME = re.compile(r"[A-Za-z0-9_.-]{1,100}")


class Input(NamedTuple):
    """A parameter that is filled in: from a variable, or with a value."""

    name: str
    var_id: str | None
    value: str | None


class Output(NamedTuple):
    """A parameter that a model writes; `members` of the request that asks it to."""

    name: str
    members: dict[str, Any]


class SemanticCall(NamedTuple):
    """A body that can be taken. `pieces` end with the last output."""

    name: str
    """Of the function, as the front end sends it."""
    pieces: tuple[str | Placeholder, ...]
    parameters: dict[str, Input | Output]
    """In the order of the body."""
    models: tuple[str, ...]
    objective: Objective | None
    """Given if it runs without being asked for."""
    held_bytes: int
    """What is kept of it as long as the session lives; without values, which are variables."""


def text_of(body: dict[str, Any], name: str, *, length_max: int | None = None) -> str:
    """A text that must be there."""
    if name not in body:
        raise wrong(name, "is missing")
    value = body[name]
    if not isinstance(value, str):
        raise wrong(name, f"must be a text, not {_kind(value)}")
    if length_max is not None and len(value) > length_max:
        raise wrong(name, f"must have at most {length_max} characters")
    return value


def objective_of(value: Any, path: str) -> Objective:
    """What a criterion means to the scheduler."""
    if not isinstance(value, str) or value not in CRITERIA:
        raise wrong(path, f"must be one of {', '.join(CRITERIA)}")
    return CRITERIA[value]


def semantic_call(body: dict[str, Any]) -> SemanticCall:
    """The body of a semantic call. Raises RequestFault with the path of the first field that cannot be taken."""
    template = text_of(body, "template")
    parameters = _parameters(body)
    pieces = parse(template)
    _check_places(pieces, parameters)
    last = max(at for at, piece in enumerate(pieces) if _is_output(piece, parameters))
    for name in ("remove_pure_fill", "cache_prefix", "fuse_fill"):
        if not isinstance(body.get(name, False), bool):
            raise wrong(name, "must be true or false")
    if body.get("model_type", "token_id") not in ("token_id", "text"):
        raise wrong("model_type", 'must be "token_id" or "text"')
    criterion = body.get("output_criteria")
    function = body.get("func_name")
    models = _models(body.get("models"))
    kept = [bytes_of(parameter.members) for parameter in parameters.values() if isinstance(parameter, Output)]
    kept += [len(name.encode()) for name in models]
    return SemanticCall(
        function if isinstance(function, str) and _FUNCTION_NAME.fullmatch(function) else "call",
        tuple(pieces[: last + 1]),
        parameters,
        models,
        None if criterion is None else objective_of(criterion, "output_criteria"),
        len(template.encode()) + PIECE_BYTES * (last + 1) + sum(kept),
    )


def _parameters(body: dict[str, Any]) -> dict[str, Input | Output]:
    if "parameters" not in body:
        raise wrong("parameters", "is missing")
    entries = body["parameters"]
    if not isinstance(entries, list):
        raise wrong("parameters", f"must be a list, not {_kind(entries)}")
    parameters: dict[str, Input | Output] = {}
    for at, entry in enumerate(entries):
        path = f"parameters[{at}]"
        if not isinstance(entry, dict):
            raise wrong(path, f"must be an object, not {_kind(entry)}")
        parameter = _parameter(entry, path)
        if parameter.name in parameters:
            raise wrong(f"{path}.name", f"{parameter.name!r} is there already; each name may stand once")
        parameters[parameter.name] = parameter
    return parameters


def _parameter(entry: dict[str, Any], path: str) -> Input | Output:
    name = entry.get("name")
    if not isinstance(name, str) or not 0 < len(name) <= NAME_LENGTH_MAX:
        raise wrong(f"{path}.name", f"must be a text of at most {NAME_LENGTH_MAX} characters")
    is_output = entry.get("is_output")
    if not isinstance(is_output, bool):
        raise wrong(f"{path}.is_output", "must be true or false")
    var_id, value, sampling = entry.get("var_id"), entry.get("value"), entry.get("sampling_config")
    if is_output:
        if var_id is not None:
            raise wrong(f"{path}.var_id", "must not stand at an output: each output gets a new variable")
        if value is not None:
            raise wrong(f"{path}.value", "must not stand at an output: a model writes it")
        return Output(name, engine_members(sampling, f"{path}.sampling_config"))
    if sampling is not None:
        raise wrong(f"{path}.sampling_config", "must not stand at an input")
    if (var_id is None) is (value is None):
        raise wrong(path, "an input must have exactly one of var_id and value")
    if var_id is not None and not isinstance(var_id, str):
        raise wrong(f"{path}.var_id", f"must be a text, not {_kind(var_id)}")
    if isinstance(value, bool) or not isinstance(value, str | int | float | None):
        raise wrong(f"{path}.value", f"must be a text or a number, not {_kind(value)}")
    return Input(name, var_id, None if value is None else str(value))


def _check_places(pieces: list[str | Placeholder], parameters: dict[str, Input | Output]) -> None:
    """Every placeholder has a parameter, every output one place, and something stands before the first."""
    missing = {name for name, parameter in parameters.items() if isinstance(parameter, Output)}
    if not missing:
        raise wrong("parameters", "there is no output among them, so nothing would be generated")
    if len(missing) > OUTPUTS_MAX:
        raise wrong("parameters", f"there are {len(missing)} outputs among them, {OUTPUTS_MAX} are allowed", 413)
    for at, piece in enumerate(pieces):
        if isinstance(piece, str):
            continue
        name = piece.name
        if name not in parameters:
            raise wrong("template", f"{{{{{name[:NAME_LENGTH_MAX]}}}}} at character {piece.at} has no parameter")
        if isinstance(parameters[name], Output):
            if name not in missing:
                raise wrong("template", f"the output {{{{{name}}}}} stands twice; a variable is written once")
            if at == 0:
                raise wrong("template", f"it begins with the output {{{{{name}}}}}: there is nothing to go on from")
            missing.remove(name)
    for at, name in enumerate(parameters):
        if name in missing:
            raise wrong(f"parameters[{at}].name", f"the output {name!r} does not stand in the template")


def _is_output(piece: str | Placeholder, parameters: dict[str, Input | Output]) -> bool:
    return isinstance(piece, Placeholder) and isinstance(parameters[piece.name], Output)


def _models(value: Any) -> tuple[str, ...]:
    models = [] if value is None else value
    if not isinstance(models, list) or len(models) > MODELS_MAX or not all(isinstance(name, str) for name in models):
        raise wrong("models", f"must be a list of at most {MODELS_MAX} names")
    return tuple(models)


def _kind(value: Any) -> str:
    return {
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "an object",
    }.get(type(value), "null")
