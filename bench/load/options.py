"""Which options have the commands that play a configuration? A name each for what a configuration has."""

from __future__ import annotations

import argparse
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from bench.load.spec import ALIASES, FLOATS, NUMBERS, TABLES, TEXTS, WHOLE, Spec, SpecFault, of
from bench.programs import BenchError

HELP = {
    "workload": "what is played",
    "preset": "its size: published, small or cpu",
    "input_scale": "all prompt lengths times so much",
    "output_scale": "all answer lengths times so much",
    "trace": "a recorded trace, for workload trace",
    "way": "how workflows go in; hinted: call by call with headers, bare: with none",
    "arrivals": "when workflows begin; closed: --users of them, one after the other",
    "rate": "calls a second, on average",
    "cv": "of bursty gaps: coefficient of variation",
    "swing": "of a diurnal rate: peak ÷ trough",
    "period_seconds": "of a diurnal rate: from peak to peak",
    "users": "of closed arrivals",
    "think_seconds": "of closed arrivals: pause of a user",
    "workflows": "of closed arrivals: how many are played (default: 4 a user)",
    "speed": "of a trace: so many times as fast as it was recorded",
    "deadline_ms": "every workflow may take so long",
    "stretch": "every workflow may take so many times its isolated time",
    "workflow_class": "what the gateway is told: interactive, standard or batch",
    "policy": "names with commas between; none: the engine without a gateway",
    "engine": "twin or twin:CALIBRATION (virtual time), or an engine's URL",
    "gateway": "one that runs already, instead of one of the bench's own; its engine's meters: --engine, --gpu",
    "in_flight": "calls at the engine at once: the batch",
    "cap_watts": "power limit of each card; the twin alone",
    "seconds": "of arrivals, each repeat",
    "warm_up_seconds": "of arrivals before each repeat, which are dropped",
    "repeats": "plays of the load",
    "seed": "of workflows, arrivals and the order of the plays",
    "free_running": "answers end by themselves, instead of at the workload's length",
    "tell_lengths": "tell the gateway how long each answer will be (ways hinted and native)",
    "isolated": "for a real engine: the calibration whose isolated times are believed",
}


def add_spec_options(parser: argparse.ArgumentParser, without: tuple[str, ...] = ()) -> None:
    """One for each member of a configuration."""
    usual = Spec()
    names = {name: alias for alias, name in ALIASES.items()}
    for each in fields(Spec):
        if each.name in TABLES or each.name in without:
            continue
        default = getattr(usual, each.name)
        shown = "" if default is None or default is False else f" (default: {default})"
        option = f"--{names.get(each.name, each.name).replace('_', '-')}"
        text = HELP[each.name].replace("%", "%%") + shown
        if isinstance(default, bool):
            parser.add_argument(option, dest=each.name, action="store_true", default=None, help=text)
        else:
            number = each.name in (*NUMBERS, *FLOATS)
            kind = "N" if each.name in WHOLE else "X" if number else "FILE" if each.name == "trace" else "NAME"
            metavar = "{" + ",".join(TEXTS[each.name]) + "}" if each.name in ("workload", "way", "arrivals") else kind
            parser.add_argument(option, dest=each.name, metavar=metavar, help=text)
    for option, dest, what in (
        ("--set", "parameters", "a length of the workload, as chunk_tokens=512 or chain.chunk_tokens=512:2048"),
        ("--mix", "mix", "share of a kind in the composite, as coding=0.1; those not named have none"),
        ("--policy-option", "policy_options", "an option of the policy, as max_in_flight=16"),
    ):
        if dest not in without:
            parser.add_argument(option, dest=dest, metavar="NAME=VALUE", action="append", help=f"{what}; repeatable")


def spec_of(args: argparse.Namespace, **more: Any) -> Spec:
    """The configuration. BenchError that names the options."""
    data: dict[str, Any] = {}
    for each in fields(Spec):
        value = getattr(args, each.name, None)
        if value is None:
            continue
        data[each.name] = _table(each.name, value) if each.name in TABLES else _typed(each.name, value)
    try:
        return of(data | more)
    except SpecFault as fault:
        raise BenchError("\n  ".join(f"{_option(place)}: {what}" for place, what in fault.problems)) from None


def _option(place: tuple[str, ...]) -> str:
    tables = {"parameters": "--set", "mix": "--mix", "policy_options": "--policy-option"}
    if place[0] in tables:
        return " ".join((tables[place[0]], *place[1:]))
    names = {name: alias for alias, name in ALIASES.items()}
    return "--" + names.get(place[0], place[0]).replace("_", "-")


def _typed(name: str, value: Any) -> Any:
    """Numbers from their text; what is none stays text, and is refused with the others."""
    if not isinstance(value, str):
        return value
    return _number(value) if name in (*WHOLE, *NUMBERS, *FLOATS) else value


def _number(text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, int | float) else text


def _table(name: str, entries: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for entry in entries:
        key, equals, text = entry.partition("=")
        if not (key and equals and text):
            raise BenchError(f"{_option((name,))} {entry}: must be NAME=VALUE")
        low, colon, high = text.partition(":")
        found[key] = [_number(low), _number(high)] if colon else _number(text)
    return found


def folder(text: str) -> Path:
    """Where results go. ArgumentTypeError if there is a file of that name."""
    path = Path(text)
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a file; name a folder")
    return path
