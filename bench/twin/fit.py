"""A calibration fitted to measured rows: few physical parameters, least squares of logarithms, the twin in the loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from backends.twin.calibration import Calibration
from bench.programs import BenchError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from bench.twin.figures import Comparison

ROW_ERROR = 0.03
"""What a row is trusted to: larger errors count less than their square, since measured rows have outliers."""
EVALUATIONS_MAX = 40
STEP = 0.02
FITTED_GROUPS = ("time", "energy")


class Parameter(NamedTuple):
    """A number of the calibration, and how far from its start it may go."""

    path: tuple[str, str]
    low: float
    high: float
    off: float | None = None
    """How far its start may be off, relatively; None: as the start says of itself."""


def _terms(*names: str) -> list[Parameter]:
    return [Parameter((table, name), 0.2, 5.0) for name in names for table in ("time", "energy")]


DECODE = [
    *_terms("step", "decode_token", "context_token"),
    Parameter(("cap", "onset"), 0.7, 1.15),
    Parameter(("cap", "decode_exponent"), 0.3, 1.8),
]
"""What rows of decode tell."""
HOST_OFF = 1.0
"""Hosts of one kind of card differ by a factor of two and three (docs/twin-accuracy.md)."""
HOST = [
    Parameter(("frontend", "input_seconds"), 0.1, 5.0, HOST_OFF),
    Parameter(("frontend", "output_seconds"), 0.1, 5.0, HOST_OFF),
    Parameter(("engine", "prompt_step_seconds"), 0.3, 4.0, HOST_OFF),
]
PREFILL = [
    *_terms("prefill_token", "attention_pair"),
    Parameter(("cap", "prefill_exponent"), 0.3, 1.8),
    *HOST,
]
SHARED = _terms("repeated_token")
"""What closed rows with a shared prefix tell."""
CURVE = _terms("step", "decode_token")
"""What rows of throughput at a few batch sizes tell: the rest stays as the start has it."""


def parameters_for(kinds: Iterable[str], *, shared: bool) -> list[Parameter]:
    """Those that rows of these kinds can tell anything of."""
    found: list[Parameter] = []
    kinds = set(kinds)
    if "mlenergy" in kinds:
        return CURVE
    if "decode" in kinds:
        found += DECODE
    if "prefill" in kinds:
        found += PREFILL
    if shared:
        found += SHARED
    if not found:
        raise BenchError("--fit: rows of decode, prefill, or ML.ENERGY are needed to fit a calibration to")
    return found


def fit(
    start: Calibration,
    parameters: Sequence[Parameter],
    predict: Callable[[Calibration], Sequence[Comparison]],
) -> Calibration:
    """The calibration whose predicted times and energies come nearest to the measured ones, `start` being the prior
    whose `uncertainty` says how far it may be off. Raises BenchError without scipy."""
    try:
        import numpy as np
        from scipy.optimize import least_squares
    except ImportError:
        raise BenchError("--fit needs scipy: pip install 'joulegate[bench]'") from None
    data = start.model_dump()
    # The start is a prior: what few rows cannot tell stays near it, what many rows say overrules it.
    parameters = [each for each in parameters if each not in HOST or _value(data, each)]  # a prior may leave them out
    trust = np.array([ROW_ERROR / (each.off or getattr(start.uncertainty, _group(each))) for each in parameters])
    first = [_value(data, parameter) for parameter in parameters]
    if 0.0 in first:
        zero = parameters[first.index(0.0)].path
        raise BenchError(f"--fit: {'.'.join(zero)} is 0 in {start.name}, which nothing can be scaled from")

    def at(x: Any) -> Calibration:
        # From 1 on, because the step of the numeric derivative is relative to x.
        values = [value * float(np.exp(each - 1)) for value, each in zip(first, x, strict=True)]
        return with_values(start, parameters, values)

    def residuals(x: Any) -> Any:
        found = predict(at(x))
        errors = [np.log(each.predicted / each.measured) for each in found if each.group in FITTED_GROUPS]
        return np.array([*errors, *((x - 1) * trust)])

    best = least_squares(
        residuals,
        np.ones(len(parameters)),
        bounds=([1 + np.log(each.low) for each in parameters], [1 + np.log(each.high) for each in parameters]),
        loss="soft_l1",
        f_scale=ROW_ERROR,
        diff_step=STEP,
        x_scale=0.3,
        max_nfev=EVALUATIONS_MAX,
    )
    return at(best.x)


def _value(data: dict[str, Any], parameter: Parameter) -> float:
    table, name = parameter.path
    return float(data[table][name])


def _group(parameter: Parameter) -> str:
    return "energy" if parameter.path[0] == "energy" else "time"


def with_values(start: Calibration, parameters: Sequence[Parameter], values: Sequence[float]) -> Calibration:
    """The calibration with these values in place of its own."""
    data = start.model_dump()
    for parameter, value in zip(parameters, values, strict=True):
        table, name = parameter.path
        data[table][name] = value
    return Calibration.model_validate(data)
