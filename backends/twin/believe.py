"""What is to be believed of an engine whose card and model are known by name? The nearest thing that was measured."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from backends.twin import calibration as calibrations
from backends.twin.calibration import CalibrationError
from backends.twin.choose import DEFAULT, Choice, choose
from backends.twin.prior import prior_of
from backends.twin.roofline import datasheets

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from scheduler.energy.model.prior import Prior

GUESS_UNCERTAINTY = 1.5
"""Relative: a model of unknown size on a card of unknown kind may cost a tenth or ten times as much. Data decide."""
_WORDS = re.compile(r"[a-z]+|\d+(?:\.\d+)?")


def believe(card: str | None, gpus: int, models: Sequence[Mapping[str, Any]], named: str = "") -> tuple[Prior, str]:
    """A prior, and in words where it is from.

    `card`: as its driver says it; `models`: entries of /v1/models; `named`: a calibration by name or file, or
    CARD:CONFIG.json, as the operator says. CalibrationError for a name that means nothing.
    """
    if named:
        kind, _, config = named.partition(":")
        asked = Choice(card=kind, model=Path(config), gpus=gpus) if config else Choice(named)
        calibration = choose(asked)
        return prior_of(calibration), f"{calibration.name}, as configured"
    ids = [str(entry.get(name) or "") for entry in models for name in ("id", "root")]
    kind_of_card = _card(card)
    for name in calibrations.names():
        found = calibrations.load(name)
        same_card = kind_of_card is not None and _card(found.card.name) == kind_of_card and found.card.gpus == gpus
        if same_card and any(_same_model(name.partition("-")[2], model_id) for model_id in ids):
            return prior_of(found), f"the shipped calibration {name}"
    for entry in models:
        path = Path(str(entry.get("root") or "")) / "config.json"
        if kind_of_card is not None and path.is_file():
            try:
                calibration = choose(Choice(card=kind_of_card, model=path, gpus=gpus))
            except CalibrationError:
                continue
            return prior_of(calibration), f"the roofline of {calibration.name}"
    guess = prior_of(calibrations.load(DEFAULT))
    doubtful = replace(
        guess,
        time_uncertainty=GUESS_UNCERTAINTY,
        energy_uncertainty=GUESS_UNCERTAINTY,
        idle_uncertainty=GUESS_UNCERTAINTY,
        cap_uncertainty=0.5,
    )
    return doubtful, f"{DEFAULT}, for want of anything nearer: learned from what is measured"


def _card(name: str | None) -> str | None:
    """The card's key in cards.toml, by the name that its driver or its maker gives it."""
    if name is None:
        return None
    words = set(_WORDS.findall(name.lower()))
    return next((key for key in datasheets() if set(_WORDS.findall(key.replace("-", " "))) <= words), None)


def _same_model(short: str, model_id: str) -> bool:
    """`llama-3.1-8b` is meta-llama/Llama-3.1-8B-Instruct, and no other size of it."""
    words = set(_WORDS.findall(model_id.lower()))
    return all(word in words for word in _WORDS.findall(short.partition("-tp")[0]))
