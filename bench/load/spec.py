"""What is one configuration? Flat names and values, as a command, a sweep's file and a result have them; checked."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backends.twin import calibration as calibrations
from backends.twin.calibration import CalibrationError
from scheduler.policies import POLICIES, option_problems
from workloads import arrivals as arrival_kinds
from workloads.arrivals import Arrivals
from workloads.catalogue import NAMES, Workload, WorkloadFault
from workloads.promises import Promise
from workloads.ways import WAYS

if TYPE_CHECKING:
    from collections.abc import Mapping

AS_IS = "none"
"""In the place of a policy: the engine without a gateway."""
RUNNING = "gateway"
"""In the place of a policy: a gateway that runs already, with a policy of its own."""
TWIN = "twin"
DEFAULT_CALIBRATION = "h200-llama-3.1-8b"
CALLS_MAX = 65_536
Place = tuple[str, ...]


class SpecFault(ValueError):
    """What is wrong with a configuration: (place, words) each."""

    def __init__(self, problems: list[tuple[Place, str]]) -> None:
        super().__init__("; ".join(f"{'.'.join(place)}: {what}" for place, what in problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Spec:
    """One configuration. Seconds and joules as everywhere; None = not given."""

    workload: str = "composite"
    """a kind, composite, or trace"""
    preset: str = "published"
    input_scale: float = 1.0
    output_scale: float = 1.0
    parameters: Mapping[str, Any] = field(default_factory=dict)
    mix: Mapping[str, float] = field(default_factory=dict)
    trace: str | None = None
    """file of a trace, for workload trace"""
    way: str = "hinted"
    arrivals: str = "poisson"
    rate: float = 4.0
    """calls a second"""
    cv: float = 3.0
    swing: float = 4.0
    period_seconds: float = 600.0
    users: int = 16
    think_seconds: float = 0.0
    workflows: int | None = None
    speed: float = 1.0
    deadline_ms: float | None = None
    stretch: float | None = None
    workflow_class: str | None = None
    policy: str = "passthrough"
    policy_options: Mapping[str, Any] = field(default_factory=dict)
    engine: str = TWIN
    """twin, twin:CALIBRATION (virtual time), or the URL of an engine"""
    gateway: str | None = None
    """URL of a gateway that runs already, for policy gateway"""
    in_flight: int | None = None
    """calls at once at the engine: the batch"""
    cap_watts: float | None = None
    """power limit of each card, on the twin alone"""
    seconds: float = 120.0
    """of arrivals"""
    warm_up_seconds: float = 20.0
    repeats: int = 3
    seed: int = 1
    free_running: bool = False
    tell_lengths: bool = False
    """the gateway is told how long answers will be (ways hinted and native)"""
    isolated: str = DEFAULT_CALIBRATION
    """whose isolated times are believed of an engine that is no twin"""

    @property
    def simulated(self) -> bool:
        """In virtual time, without sockets."""
        return self.engine == TWIN or self.engine.startswith(f"{TWIN}:")

    @property
    def calibration(self) -> str:
        """Of the twin, or the one that is believed of the engine."""
        if not self.simulated:
            return self.isolated
        return self.engine.partition(":")[2] or DEFAULT_CALIBRATION

    @property
    def generator(self) -> Workload:
        """What makes its workflows (not for a trace)."""
        return Workload(
            self.workload, self.preset, self.input_scale, self.output_scale, self.parameters, self.mix
        )  # fmt: skip

    @property
    def pattern(self) -> Arrivals:
        """When they begin."""
        return Arrivals(
            self.arrivals, self.rate, self.cv, self.swing, self.period_seconds, self.users, self.think_seconds,
            self.workflows, self.speed,
        )  # fmt: skip

    @property
    def promise(self) -> Promise:
        """What their users are told."""
        return Promise(self.deadline_ms, self.stretch, self.workflow_class)

    def document(self) -> dict[str, Any]:
        """For JSON; `of` reads it again."""
        return asdict(self)

    @property
    def name(self) -> str:
        """Short, for people and files: what is not as usual."""
        usual = Spec()
        parts = [self.workload, self.policy]
        left_out = ("workload", "policy", "repeats")
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name not in left_out and value != getattr(usual, each.name):
                value = Path(value).stem if each.name == "trace" else value
                parts.append(f"{each.name}-{_in_a_name(value)}")
        return "_".join(parts)


def _in_a_name(value: Any) -> str:
    text = value
    if isinstance(value, dict):
        text = ",".join(f"{key}-{_in_a_name(each)}" for key, each in value.items())
    elif isinstance(value, list | tuple):
        text = "-".join(map(_in_a_name, value))
    text = f"{text:g}" if isinstance(text, float) else str(text)
    return "".join(sign if sign.isalnum() or sign in ".,-" else "-" for sign in text)


NUMBERS: dict[str, tuple[float, float]] = {
    "seconds": (1.0, 1e7), "warm_up_seconds": (0.0, 1e6), "cap_watts": (1.0, 1e5),
}  # fmt: skip
WHOLE: dict[str, tuple[int, int]] = {
    "in_flight": (1, CALLS_MAX), "repeats": (1, 1000), "seed": (0, 2**31 - 1), "users": (1, CALLS_MAX),
    "workflows": (1, 10_000_000),
}  # fmt: skip
TEXTS = {
    "workload": (*NAMES, "trace"),
    "way": tuple(WAYS),
    "arrivals": arrival_kinds.KINDS,
    "policy": (AS_IS, RUNNING, *POLICIES),
}
FLOATS = ("input_scale", "output_scale", "rate", "cv", "swing", "period_seconds", "think_seconds", "speed",
          "deadline_ms", "stretch")  # fmt: skip
TABLES = ("parameters", "mix", "policy_options")
ALIASES = {"class": "workflow_class"}


def of(data: Mapping[str, Any]) -> Spec:
    """A configuration from names and values. SpecFault with all that is wrong, each with its place."""
    problems: list[tuple[Place, str]] = []
    values: dict[str, Any] = {}
    known = [each.name for each in fields(Spec)]
    for given, value in data.items():
        name = ALIASES.get(given, given)
        if name not in known:
            near = get_close_matches(given, [*known, *ALIASES], n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"
            problems.append(((given,), f"unknown key{hint}"))
        elif (problem := _wrong(name, value)) is not None:
            problems.append(((given,), problem))
        else:
            values[name] = float(value) if name in (*NUMBERS, *FLOATS) and value is not None else value
    if problems:
        raise SpecFault(problems)
    spec = Spec(**values)
    problems = _impossible(spec)
    if problems:
        raise SpecFault(problems)
    return spec


def _wrong(name: str, value: Any) -> str | None:
    """What is wrong with a value by itself."""
    optional = name in (
        "trace",
        "gateway",
        "workflows",
        "deadline_ms",
        "stretch",
        "workflow_class",
        "in_flight",
        "cap_watts",
    )
    if value is None and optional:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if name in NUMBERS:
        low, high = NUMBERS[name]
        return None if is_number and low <= value <= high else f"must be from {low:g} to {high:g}, not {value!r}"
    if name in FLOATS:
        return None if is_number else f"must be a number, not {value!r}"
    if name in WHOLE:
        least, most = WHOLE[name]
        fine = type(value) is int and least <= value <= most
        return None if fine else f"must be a whole number from {least} to {most}, not {value!r}"
    if name in TABLES:
        return None if isinstance(value, dict) else f"must be a table, not {value!r}"
    if name in ("free_running", "tell_lengths"):
        return None if isinstance(value, bool) else f"must be true or false, not {value!r}"
    if not isinstance(value, str):
        return f"must be text, not {value!r}"
    words = TEXTS.get(name)
    if words is None or value in words:
        return None
    near = get_close_matches(value, words, n=1)
    return f"no {value!r}" + (f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(words)}")


def _impossible(spec: Spec) -> list[tuple[Place, str]]:
    """What does not go together, or is not there."""
    problems: list[tuple[Place, str]] = []
    names = {"kind": "arrivals", "class": "workflow_class", "name": "workload"}
    for part in (spec.pattern, spec.promise, *(() if spec.workload == "trace" else (spec.generator,))):
        try:
            part.check()
            if isinstance(part, Workload):
                part.makers()
        except WorkloadFault as fault:
            problems.append(((names.get(fault.place[0], fault.place[0]), *fault.place[1:]), str(fault)))
    if (spec.workload == "trace") != (spec.trace is not None):
        problems.append((("trace",), "needed by workload trace, and by it alone"))
    if (spec.arrivals == "trace") != (spec.workload == "trace") and spec.arrivals != "closed":
        problems.append((("arrivals",), "the times of a trace are for workload trace, which takes them or closed"))
    if not spec.simulated and not spec.engine.startswith(("http://", "https://")):
        problems.append((("engine",), f"must be twin, twin:CALIBRATION or a URL, not {spec.engine!r}"))
        return problems
    try:
        calibration = calibrations.load(spec.calibration)
        if spec.cap_watts is not None:
            card = calibration.card
            if not spec.simulated:
                problems.append((("cap_watts",), "limits are set on the twin alone; an engine's is observed"))
            elif not card.limit_watts_min <= spec.cap_watts <= card.limit_watts_max:
                bounds = f"{card.limit_watts_min:g} to {card.limit_watts_max:g} W"
                problems.append((("cap_watts",), f"{spec.cap_watts:g} is outside of the card's {bounds}"))
    except CalibrationError as error:
        problems.append((("engine" if spec.simulated else "isolated",), str(error)))
    problems += _policy_problems(spec)
    return problems


def _policy_problems(spec: Spec) -> list[tuple[Place, str]]:
    if spec.policy == RUNNING or spec.gateway is not None:
        return _gateway_problems(spec)
    if spec.policy == AS_IS:
        if spec.way in ("native", "parrot") and not spec.simulated:
            return [(("way",), f"{spec.way} needs a gateway: policy {AS_IS} has none; use hinted or bare")]
        return [(("policy_options",), f"policy {AS_IS} takes none")] if spec.policy_options else []
    found = option_problems(spec.policy, spec.policy_options)
    return [(("policy_options", name), what) for name, what in found]


def _gateway_problems(spec: Spec) -> list[tuple[Place, str]]:
    """Of a gateway that somebody else started: what it does is its own affair."""
    if spec.gateway is None:
        return [(("policy",), f"{RUNNING} is one that runs already: say where, as gateway = its URL")]
    if spec.policy != RUNNING:
        return [
            (("policy",), f"the running gateway has its own: leave it out, or say {RUNNING}, or {AS_IS} for no gateway")
        ]
    if not spec.gateway.startswith(("http://", "https://")):
        return [(("gateway",), f"must be a URL, not {spec.gateway!r}")]
    if spec.simulated:
        return [(("gateway",), "needs the URL of its engine, or none: the twin in virtual time has no sockets")]
    found: list[tuple[Place, str]] = []
    if spec.policy_options:
        found.append((("policy_options",), "the running gateway has its own"))
    if spec.in_flight is not None:
        found.append((("in_flight",), "the running gateway has its own limit"))
    return found
