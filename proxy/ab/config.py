"""The table `[experiments]` of the configuration."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from proxy.config_types import Table


class ExperimentsConfig(Table):
    """Experiments on live traffic."""

    pace: Annotated[float, Field(ge=1, le=1000, strict=True)] = 1.0
    """seconds of an experiment in a real one: `--speed` of a twin that runs faster, else 1"""
