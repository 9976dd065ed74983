"""The analysis needs packages that the gateway does not: what to say where they are missing."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from bench.programs import BenchError

if TYPE_CHECKING:
    import argparse


def with_extra(module: str, args: argparse.Namespace) -> int:
    """Run that module's `run`. BenchError, with the way out, without the packages of the extra `bench`."""
    try:
        for name in ("scipy", "statsmodels"):
            importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise BenchError(f"{error.name} is missing: pip install 'joulegate[bench]'") from None
    return int(importlib.import_module(module).run(args))
