"""What does a characterisation play? The text of a sweep's file: batch, cap, lengths and deadlines of each workload."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from backends.twin import calibration as calibrations
from backends.twin.calibration import CalibrationError
from bench.load.spec import AS_IS, DEFAULT_CALIBRATION, TWIN
from bench.programs import BenchError

WORKLOADS = ("chain", "copilot", "coding", "composite")
POLICIES = (AS_IS, "parrot", "joule")
RATES = {"chain": 4.0, "copilot": 2.0, "coding": 2.0, "composite": 4.0}
"""Calls a second of the open arrivals."""
STRETCHES = (1.5, 3.0, 10.0)
LONG = 10.0
USUAL_RATE = 4.0
LENGTHS = ("prompt lengths", "answer lengths")
TOLD = {"way": "native", "tell_lengths": True}
"""How workflows go in where there is a gateway: declared, as Parrot has them."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much is played."""

    repeats: int
    seconds: float
    warm_up_seconds: float
    users: int
    workflows: dict[str, int]
    """Of closed arrivals, by workload."""
    batches: tuple[int, ...]
    caps: tuple[float, ...]
    """Between the card's least and its usual limit: 0 is the least."""
    scales: tuple[float, ...]
    parameters: dict[str, dict[str, Any]]
    """Of a workload, where it is cut."""
    stretches: tuple[float, ...] = STRETCHES
    long: float = LONG
    """Deadline of what is not about deadlines, times a workflow's isolated time."""
    lengths_of_all: bool = True
    """Lengths vary under every policy; else with vLLM as it is, of which the findings are."""


_ONE_ROUND = {"coding": {"rounds": 1}, "composite": {"coding.rounds": 1}}
_HALF = {"rounds": 1, "files": [2, 2], "design_tokens": 350, "code_tokens": [250, 410], "revision_tokens": [255, 318]}
_SHORT: dict[str, dict[str, Any]] = {
    "chain": {"chunks": [6, 8]},
    "coding": _HALF,
    "composite": {"chain.chunks": [6, 8], **{f"coding.{name}": value for name, value in _HALF.items()}},
}
"""So short that a real engine plays them all in about an hour."""
QUICK = Size(3, 60.0, 10.0, 16, {"chain": 32, "copilot": 96, "coding": 16, "composite": 64}, (1, 2, 4, 8, 16),
             (0.0, 0.2, 0.5), (0.5, 2.0), _ONE_ROUND)  # fmt: skip
FULL = Size(5, 300.0, 30.0, 16, {"chain": 64, "copilot": 192, "coding": 32, "composite": 192}, (1, 2, 4, 8, 16),
            (0.0, 0.1, 0.2, 0.4, 0.6, 0.8), (0.25, 0.5, 2.0, 4.0), {})  # fmt: skip
LIVE_QUICK = Size(2, 25.0, 5.0, 8, {"chain": 8, "copilot": 16, "coding": 4, "composite": 8}, (2, 8), (), (0.5, 2.0),
                  _SHORT, (3.0,), 3.0, lengths_of_all=False)  # fmt: skip
LIVE = Size(3, 90.0, 10.0, 16, {"chain": 16, "copilot": 48, "coding": 16, "composite": 48}, (1, 4, 16), (), (0.5, 2.0),
            _ONE_ROUND)  # fmt: skip
OTHER_WORKFLOWS = 48
"""Of closed arrivals, of a workload that has no number of its own."""
TRACED_SECONDS = 300.0
"""Of a trace, so much is played with --quick."""


def size_of(engine: str, *, quick: bool) -> Size:
    """For the twin in virtual time, or for an engine by the clock."""
    virtual = engine == TWIN or engine.startswith(f"{TWIN}:")
    return (QUICK if quick else FULL) if virtual else (LIVE_QUICK if quick else LIVE)


def sweep_text(
    size: Size, engine: str, workloads: tuple[str, ...], policies: tuple[str, ...], more: dict[str, Any]
) -> str:
    """A sweep's file. `more`: members of every configuration. BenchError for an unknown calibration."""
    caps = _caps(size, engine)
    top = {
        "engine": engine,
        "seconds": size.seconds,
        "warm_up_seconds": size.warm_up_seconds,
        "repeats": size.repeats,
        **more,
    }
    lines = ["# Made by joulegate-bench characterize; `joulegate-bench sweep` plays it as well.", *_pairs(top)]
    as_is_alone = ("alone",) if size.lengths_of_all else ("alone", *LENGTHS)
    for workload in workloads:
        for title, base, axes in _grids(size, workload, caps):
            for told, those in (({}, [AS_IS]), (TOLD, [policy for policy in policies if policy != AS_IS])):
                if not those or (told and title in as_is_alone):
                    continue
                lines += ["", f"# {workload}: {title}", "[[grid]]"]
                values = {"workload": workload, **told, **base}
                lines += _pairs({name: [value] for name, value in values.items()} | {"policy": those} | axes)
    return "\n".join(lines) + "\n"


def _grids(size: Size, workload: str, caps: list[float]) -> list[tuple[str, dict[str, Any], dict[str, list[Any]]]]:
    """(what for, fixed members, lists) each."""
    own = {f"parameters.{name}": value for name, value in size.parameters.get(workload, {}).items()}
    closed = {"arrivals": "closed", "users": size.users, "stretch": size.long, **own}
    alone = closed | {"users": 1}
    if workload != "trace":  # of which as much is played as its seconds hold
        count = size.workflows.get(workload, OTHER_WORKFLOWS)
        closed, alone = closed | {"workflows": count}, alone | {"workflows": max(2, count // 8)}
    full = {"in_flight": size.batches[-1]}
    rate = {"rate": RATES[workload]} if RATES.get(workload, USUAL_RATE) != USUAL_RATE else {}
    opened = {"arrivals": "trace" if workload == "trace" else "poisson", **own, **rate}
    found: list[tuple[str, dict[str, Any], dict[str, list[Any]]]] = [
        ("batch", closed, {"in_flight": list(size.batches)}),
        ("alone", alone, {"in_flight": [size.batches[0], size.batches[-1]]}),
        ("deadlines", opened, {"stretch": list(size.stretches)}),
    ]
    if caps:
        found.append(("cap", closed | full, {"cap_watts": caps}))
        found.append(("cap, with times of their own", opened | {"stretch": size.long}, {"cap_watts": caps}))
    if workload != "trace":
        for title, name in zip(LENGTHS, ("input_scale", "output_scale"), strict=True):
            found.append((title, closed | full, {name: list(size.scales)}))
    return found


def _caps(size: Size, engine: str) -> list[float]:
    if not size.caps:
        return []
    try:
        card = calibrations.load(engine.partition(":")[2] or DEFAULT_CALIBRATION).card
    except CalibrationError as error:
        raise BenchError(f"--engine {engine}: {error}") from None
    low, high = card.limit_watts_min, card.limit_watts_default
    return [round(low + share * (high - low)) for share in size.caps]


def _pairs(values: dict[str, Any]) -> list[str]:
    return [f"{json.dumps(name) if '.' in name else name} = {_toml(value)}" for name, value in values.items()]


def _toml(value: Any) -> str:
    """JSON's numbers, texts, booleans and lists are TOML's."""
    return json.dumps(value)
