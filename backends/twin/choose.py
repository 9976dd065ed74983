"""Which twin is asked for: a calibration by name or file, or a card and a model that nobody has measured?"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from backends.twin import calibration as calibrations
from backends.twin import roofline
from backends.twin.calibration import Calibration, CalibrationError, EngineLimits
from backends.twin.model_config import read_model

if TYPE_CHECKING:
    from pathlib import Path

DEFAULT = "h200-llama-3.1-8b"


class Choice(NamedTuple):
    """Options of a command; None = not given."""

    calibration: str | None = None
    card: str | None = None
    model: Path | None = None
    gpus: int = 1
    async_scheduling: bool = True


def choose(choice: Choice) -> Calibration:
    """The calibration. Raises CalibrationError that names the option and the way out."""
    if choice.card is None:
        if choice.model is not None:
            raise CalibrationError("--model: needs --card")
        try:
            return calibrations.load(choice.calibration or DEFAULT)
        except CalibrationError as error:
            raise CalibrationError(f"--calibration: {error}") from None
    if choice.calibration is not None:
        raise CalibrationError("--card: not together with --calibration")
    if choice.model is None:
        raise CalibrationError("--card: needs --model CONFIG.json")
    try:
        shape = read_model(choice.model)
    except CalibrationError as error:
        raise CalibrationError(f"--model: {error}") from None
    return roofline.prior(choice.card, shape, choice.gpus, async_scheduling=choice.async_scheduling)


def with_batch(found: Calibration, max_num_seqs: int | None, max_num_batched_tokens: int | None) -> Calibration:
    """Another batch size than the calibration's. Raises CalibrationError where vLLM would refuse it too."""
    given = {"max_num_seqs": max_num_seqs, "max_num_batched_tokens": max_num_batched_tokens}
    changes = {name: value for name, value in given.items() if value is not None}
    if not changes:
        return found
    engine = found.engine.model_dump() | changes
    if engine["max_num_batched_tokens"] < engine["max_num_seqs"]:
        raise CalibrationError(
            f"--max-num-batched-tokens: {engine['max_num_batched_tokens']} is below --max-num-seqs"
            f" ({engine['max_num_seqs']}), which vLLM refuses"
        )
    return found.model_copy(update={"engine": EngineLimits.model_validate(engine)})
