"""How is a refusal worded and shaped? As vLLM words and shapes it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic_core import ErrorDetails

ERRORS_SHOWN = 10
Model = TypeVar("Model", bound=BaseModel)
_UNION_TAGS = frozenset({"str", "int", "float", "bool", "none", "dict"})


class ApiError(Exception):
    """An answer other than 200. `param`: the field that is at fault, where there is one."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = "BadRequestError",
        param: str | None = None,
        value: object = None,
    ) -> None:
        """A `value` is said behind the message, as vLLM says it; so is a param that the message does not explain."""
        if value is not None:
            message = f"{message} (parameter={param}, value={value})"
        super().__init__(message)
        self.status, self.kind, self.param = status, kind, param

    def body(self) -> dict[str, Any]:
        """What the client gets."""
        return {
            "error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.status},
        }


class DetailError(Exception):
    """An answer of the web framework's own shape."""

    def __init__(self, detail: str, status: int) -> None:
        super().__init__(detail)
        self.status = status


def bad_parameter(message: str, param: str) -> ApiError:
    """A refusal that names its parameter behind the message."""
    return ApiError(f"{message} (parameter={param})", param=param)


def read_json(body: bytes) -> Any:
    """The body's JSON. ApiError or DetailError as vLLM's web framework makes them."""
    if not body:
        raise _invalid([{"type": "missing", "loc": ("body",), "msg": "Field required", "input": None}])
    try:
        return json.loads(body)
    except json.JSONDecodeError as error:
        detail: dict[str, Any] = {
            "type": "json_invalid",
            "loc": ("body", error.pos),
            "msg": "JSON decode error",
            "input": {},
            "ctx": {"error": error.msg},
        }
        raise _invalid([detail]) from None
    except (UnicodeDecodeError, RecursionError, ValueError):
        raise DetailError("There was an error parsing the body", 400) from None


def checked(model: type[Model], data: Any, within: Sequence[str | int] = ()) -> Model:
    """The data as this model. ApiError lists what is wrong; `within`: where in the body the data was."""
    if data is None:
        raise _invalid([{"type": "missing", "loc": ("body",), "msg": "Field required", "input": None}])
    try:
        return model.model_validate(data)
    except ValidationError as error:
        found = [{**each, "loc": ("body", *within, *each["loc"])} for each in error.errors(include_url=False)]
        raise _invalid(found) from None


def _invalid(errors: Sequence[Any]) -> ApiError:
    lines = [f"  {_line(each)}" for each in errors[:ERRORS_SHOWN]]
    if len(errors) > ERRORS_SHOWN:
        lines.append(f"  ...and {len(errors) - ERRORS_SHOWN} more errors")
    count = f"{len(errors)} validation error{'s' if len(errors) > 1 else ''}:"
    return ApiError("\n".join([count, *lines]), kind="Bad Request", param=_place(errors[0]["loc"]))


def _line(error: ErrorDetails | dict[str, Any]) -> str:
    said = {
        "type": error["type"],
        "loc": _place(error["loc"]),
        "msg": error["msg"],
        "input": _shown(error["input"]),
    }
    if error.get("ctx"):
        said["ctx"] = error["ctx"]
    return str(said)


def _place(location: Sequence[str | int]) -> str:
    """Where in the body; without the tags that tell a union's branches apart."""
    return ".".join(
        str(part)
        for part in location
        if isinstance(part, int) or not (part in _UNION_TAGS or any(sign in part for sign in "[(,"))
    )


def _shown(value: object) -> str:
    if isinstance(value, dict | list):
        return f"<{type(value).__name__} of {len(value)} items>"
    return str(value)[:200]
