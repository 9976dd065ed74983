"""What values and tables of the configuration are made of."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Count = Annotated[int, Field(gt=0, le=2**40, strict=True)]
Seconds = Annotated[float, Field(gt=0, le=1e8, strict=True, allow_inf_nan=False)]
Port = Annotated[int, Field(ge=0, le=65_535, strict=True)]
Switch = Annotated[bool, Field(strict=True)]
Name = Annotated[str, Field(max_length=128)]
OptionalPath = Annotated[Path | None, BeforeValidator(lambda value: None if value == "" else value)]
"""An empty text means none, so that an environment variable can take a path away."""


class Table(BaseModel):
    """A table of the file: unknown keys are refused, nothing is changed after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)
