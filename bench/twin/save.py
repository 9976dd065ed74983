"""A calibration as a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backends.twin.calibration import Calibration

DIGITS = 5


def as_toml(calibration: Calibration) -> str:
    """TOML that `calibration.load` reads back, numbers to DIGITS digits."""
    data = calibration.model_dump(exclude_none=True)
    lines = [f"{name} = {_value(value)}" for name, value in data.items() if not isinstance(value, dict)]
    for name, table in data.items():
        if isinstance(table, dict):
            lines += ["", f"[{name}]", *(f"{key} = {_value(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def _value(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(float(f"{value:.{DIGITS}g}"))
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'
