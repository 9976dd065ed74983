"""What must stand in a measured row before it can be played again? Other members may stand there too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from bench.programs import BenchError
from bench.twin.sweep import shape_of

if TYPE_CHECKING:
    from collections.abc import Sequence


class _Row(BaseModel):
    model_config = ConfigDict(extra="allow", allow_inf_nan=False)


class DecodeRow(_Row):
    """All `batch` sequences decode, `context` tokens each at the start."""

    batch: PositiveInt
    context: PositiveInt
    window_s: PositiveFloat | None = None
    output: PositiveInt | None = None


class PrefillRow(_Row):
    """`conc` clients send `n` prompts of so many `tokens`, one token out."""

    tokens: PositiveInt
    conc: PositiveInt
    n: PositiveInt


class ClosedRow(_Row):
    """`conc` clients send `n` calls of the shape that `name` says."""

    name: str
    conc: PositiveInt
    n: PositiveInt

    @field_validator("name")
    @classmethod
    def _a_shape(cls, name: str) -> str:
        shape_of(name)
        return name


class OpenRow(_Row):
    """`n` arrivals at random, `rate` a second."""

    rate: PositiveFloat
    n: PositiveInt


class CoalesceRow(_Row):
    """Arrivals at random, sent together each `hold_s` seconds; 0 = at once."""

    rate: PositiveFloat
    hold_s: NonNegativeFloat
    n: PositiveInt


class BurstRow(_Row):
    """`n` calls sent in one instant, each `written_s` behind it, beside `background` sequences that decode."""

    n: PositiveInt
    prompt_tokens: PositiveInt
    shared_tokens: NonNegativeInt
    cached: bool
    output_tokens: PositiveInt
    background: NonNegativeInt
    background_tokens: PositiveInt
    idle_s: NonNegativeFloat
    written_s: list[NonNegativeFloat]

    @model_validator(mode="after")
    def _each_is_written(self) -> Self:
        if len(self.written_s) != self.n:
            raise ValueError("written_s has not n times")
        return self


class WorkflowsRow(_Row):
    """A run of `twin-live`."""

    workload: str
    rate: PositiveFloat
    rule: str
    rule_options: list[float]
    arrival_seconds: PositiveFloat
    seed: int
    salt: str = ""


MODELS: dict[str, type[_Row]] = {
    "decode": DecodeRow,
    "prefill": PrefillRow,
    "closed": ClosedRow,
    "open": OpenRow,
    "coalesce": CoalesceRow,
    "burst": BurstRow,
    "workflows": WorkflowsRow,
}


def check_rows(rows: Sequence[dict[str, Any]], where: str) -> None:
    """Raises BenchError that names the file, the row and the field."""
    for number, row in enumerate(rows):
        kind = row["kind"]
        model = MODELS.get(kind) if isinstance(kind, str) else None
        if model is None:
            raise BenchError(f"{where}: row {number}: kind: {kind!r} is none of {', '.join(MODELS)}")
        try:
            model.model_validate(row)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            raise BenchError(f"{where}: row {number} ({kind}): {field}: {first['msg']}") from None
