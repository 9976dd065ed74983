"""What is an experiment? Its arms, its design and the rules that are fixed before it starts."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

if TYPE_CHECKING:
    from collections.abc import Mapping

Design = Literal["switchback", "split_and_swap", "interleaved", "shadow"]
CapMode = Literal["off", "observe", "actuate"]
Reset = Literal["no", "if_possible", "required"]
CONTROL, TREATMENT = 0, 1
"""Places in `arms`."""


class ExperimentError(ValueError):
    """A definition that cannot be used; each line names a field, its numbers and the way out."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Arm:
    """A policy with its options, and what the cap controller may do meanwhile."""

    policy: str
    options: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    cap_mode: CapMode | None = None
    """None: the gateway's own; decided at the start."""
    name: str = ""
    """How reports call it; empty: by its policy and options."""

    def __str__(self) -> str:
        if self.name:
            return self.name
        options = ", ".join(f"{option}={value}" for option, value in sorted(self.options.items()))
        cap = "" if self.cap_mode in (None, "observe") else f", caps {self.cap_mode}"
        return self.policy + (f" ({options})" if options else "") + cap

    def same_as(self, other: Arm) -> bool:
        """Nothing but the name differs."""
        return (self.policy, dict(self.options), self.cap_mode) == (other.policy, dict(other.options), other.cap_mode)


def arm_of(text: str) -> Arm:
    """`fifo:max_in_flight=32`; `caps=actuate` among the options is the cap mode. ExperimentError for anything else."""
    policy, *rest = text.strip().split(":")
    options: dict[str, int] = {}
    cap_mode: Any = None
    for each in rest:
        name, equals, value = each.partition("=")
        if name == "caps" and value in get_args(CapMode):
            cap_mode = value
        elif not equals or not value.isdecimal() or name == "caps":
            raise ExperimentError(
                [f'arms: "{each}" in "{text}" is no OPTION=NUMBER, nor caps={", caps=".join(get_args(CapMode))}']
            )
        else:
            options[name] = int(value)
    if not policy:
        raise ExperimentError([f'arms: "{text}" names no policy; POLICY or POLICY:OPTION=NUMBER is wanted'])
    return Arm(policy, options, cap_mode)


@dataclass(frozen=True, slots=True)
class Guardrail:
    """The treatment may be so much worse than the control in this metric; surely more stops the experiment."""

    metric: str
    limit: float
    """0.05 with `relative`: 5 % above the control. Without: 0.05 = 5 percentage points above it."""
    relative: bool = True

    def allowed(self, control: float) -> float:
        """The highest value that is kept, where the control has this one."""
        return control * (1.0 + self.limit) if self.relative else control + self.limit

    def __str__(self) -> str:
        return f"{self.metric}:+{100 * self.limit:g}{'%' if self.relative else 'pp'}"


_GUARDRAIL = re.compile(r"\s*([a-z0-9_]+)\s*:\s*\+?\s*([0-9]*\.?[0-9]+)\s*(%|pp)\s*")


def guardrail_of(text: str) -> Guardrail:
    """`p95_workflow_seconds:+5%` (relative) or `errors:+0.5pp` (percentage points), else ExperimentError."""
    found = _GUARDRAIL.fullmatch(text)
    if found is None:
        raise ExperimentError(
            [f'guardrails: "{text}" is not METRIC:+5% (of the control) or METRIC:+0.5pp (percentage points)']
        )
    return Guardrail(found[1], float(found[2]) / 100.0, found[3] == "%")


@dataclass(frozen=True, slots=True)
class Definition:
    """All that is decided before the start. Times are in seconds; `checks.problems` says what is wrong with one."""

    id: str
    arms: tuple[Arm, ...]
    """The control, then the treatment."""
    metric: str = "joules_per_workflow"
    design: Design = "switchback"
    pool: str = "default"
    """The engines that the experiment has for itself."""
    engines: tuple[str, ...] = ()
    """Of the pool, by name. `split_and_swap` needs an even number: the first half is one side, the second the other."""
    models: tuple[str, ...] = ()
    """Whose calls are the pool's, where it is a part of the gateway's engines: those that it serves, if left out."""
    block_seconds: float = 300.0
    washout_seconds: float = 60.0
    """At the beginning of each block; nothing of it is counted. From p95 workflow time + settling of the caps on."""
    pairs: int = 144
    """Of blocks that are to be had, those of the ramp-up not counted."""
    seed: int = 1
    """Decides the order in each pair."""
    salt: str = ""
    """Goes into the hash of workflow ids; empty: the experiment's id."""
    ramp_up: tuple[float, ...] = ()
    """Shares of the workflows that get the treatment in the first pairs of blocks, a pair each; those are guarded
    and not analysed."""
    guardrails: tuple[Guardrail, ...] = ()
    guardrail_error: float = 0.001
    """Chance that a guardrail stops an experiment although the treatment is within its limit."""
    guardrail_workflows: int = 30
    """No guardrail speaks before so many of the treatment and of the control are known."""
    effect_independent: bool = False
    """The operator declares that the arms share nothing on an engine: `interleaved` needs that."""
    aa: bool = False
    """Both arms are the same on purpose: a test of the method on this traffic."""
    reset_prefix_cache: Reset = "no"
    """The engines' prefix caches are emptied at the beginning of each block; `required`: a block does not count where
    that was not done. Else what one arm cached serves the next."""
    clock_tolerance_seconds: float = 1.0
    """The wall clock may move so far against the steady one before a block is marked."""
    spread: float = 0.1
    """Expected standard deviation of a pair's log ratio, as `plan` said it: it tunes the confidence sequence, which is
    right for any."""

    @property
    def the_salt(self) -> str:
        """What is hashed beside a workflow's id."""
        return self.salt or self.id

    @property
    def lead_in_seconds(self) -> float:
        """One block of control before the first pair: guardrails compare with it, engines get warm in it."""
        return self.block_seconds

    @property
    def blocks(self) -> int:
        """Of all pairs, those of the ramp-up too."""
        return 2 * (len(self.ramp_up) + self.pairs)

    @property
    def duration_seconds(self) -> float:
        """From the start to the end of the last block."""
        return self.lead_in_seconds + self.blocks * self.block_seconds

    def as_json(self) -> dict[str, Any]:
        """For a file; `definition_of` reads it."""
        return {**asdict(replaced(self)), "guardrails": [str(guardrail) for guardrail in self.guardrails]}


def replaced(definition: Definition) -> Definition:
    """The same with plain dictionaries for the arms' options, which `asdict` can copy."""
    from dataclasses import replace

    return replace(definition, arms=tuple(replace(arm, options=dict(arm.options)) for arm in definition.arms))


def definition_of(values: Mapping[str, Any]) -> Definition:
    """From JSON or TOML: guardrails are texts, arms are tables or the names of policies. ExperimentError names each
    field that is unknown, missing or of another kind; whether the values make sense is `checks.problems`' question."""
    known = {each.name: each for each in fields(Definition)}
    errors = [f"{name}: unknown field; the fields are {', '.join(known)}" for name in values if name not in known]
    errors += [f"{name}: is required" for name in ("id", "arms") if name not in values]
    given: dict[str, Any] = {}
    for name, value in values.items():
        if name in known:
            try:
                given[name] = _READERS.get(str(known[name].type), _same)(value)
            except ExperimentError as error:
                errors += error.problems
            except (TypeError, ValueError, AttributeError, KeyError) as error:
                errors.append(f"{name}: {value!r} does not fit {known[name].type} ({error})")
    if errors:
        raise ExperimentError(errors)
    return Definition(**given)


def _same(value: Any) -> Any:
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("a text is wanted")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError("a number is wanted")
    return float(value)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError("a whole number is wanted")
    return value


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError("true or false is wanted")
    return value


def _arm(value: Any) -> Arm:
    if isinstance(value, str):
        return Arm(value)
    names = {each.name for each in fields(Arm)}
    if unknown := set(value) - names:
        raise ValueError(f"unknown in an arm: {', '.join(sorted(unknown))}; there are {', '.join(sorted(names))}")
    mode = value.get("cap_mode")
    if mode is not None and mode not in get_args(CapMode):
        raise ValueError(f"cap_mode is one of {', '.join(get_args(CapMode))}")
    options = {_text(key): _whole(number) for key, number in value.get("options", {}).items()}
    return Arm(_text(value["policy"]), options, cast("CapMode | None", mode), _text(value.get("name", "")))


def _reset(value: Any) -> Any:
    if value not in get_args(Reset):
        raise ValueError(f"it is one of {', '.join(get_args(Reset))}")
    return value


def _design(value: Any) -> Any:
    if value not in get_args(Design):
        raise ValueError(f"a design is one of {', '.join(get_args(Design))}")
    return value


_READERS: dict[str, Any] = {
    "str": _text,
    "float": _number,
    "int": _whole,
    "bool": _truth,
    "Design": _design,
    "Reset": _reset,
    "tuple[Arm, ...]": lambda value: tuple(map(_arm, value)),
    "tuple[str, ...]": lambda value: tuple(map(_text, value)),
    "tuple[float, ...]": lambda value: tuple(map(_number, value)),
    "tuple[Guardrail, ...]": lambda value: tuple(guardrail_of(_text(text)) for text in value),
}
