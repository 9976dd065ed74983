"""The subcommand `joulegate ab` and its `plan`: what an experiment could find, before anything starts."""

from __future__ import annotations

import argparse
import json
import sys
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxy.ab.live import add_commands as add_live_commands

if TYPE_CHECKING:
    from scheduler.experiments.definition import Arm, Definition, Guardrail
    from scheduler.experiments.plan import Plan

EXIT_USAGE = 2


def add_commands(commands: Any) -> None:
    """`ab` and what it can do, to the subcommands of a parser."""
    ab = commands.add_parser("ab", help="A/B tests of policies on live traffic")
    whats = ab.add_subparsers(required=True, metavar="WHAT")
    plan = whats.add_parser("plan", help="block length, wash-out, duration and the detectable effect; starts nothing")
    plan.add_argument("--arms", required=True, metavar="CONTROL,TREATMENT", help="as passthrough,fifo:max_in_flight=32")
    plan.add_argument("--metric", default="joules_per_workflow", metavar="NAME", help="(default: joules_per_workflow)")
    plan.add_argument("--guardrail", action="append", default=[], metavar="METRIC:+5%", help="may be given again")
    source = plan.add_mutually_exclusive_group(required=True)
    source.add_argument("--calls", type=Path, metavar="LOG", help="recorded traffic: the gateway's call log")
    source.add_argument("--rate", type=_positive, metavar="R", help="instead: workflows a second, with --p95-seconds")
    plan.add_argument("--p95-seconds", type=_positive, metavar="S", help="with --rate: p95 workflow time")
    plan.add_argument(
        "--spread", type=_percent, default=1.0, metavar="P%",
        help="with --rate: standard deviation of a workflow's joules, of their mean (default: 100%%)",
    )  # fmt: skip
    plan.add_argument(
        "--pair-spread", type=_percent, metavar="P%", help="with --rate: that of a pair of blocks, where it is known"
    )
    plan.add_argument("--block-seconds", type=_positive, metavar="S", help="with --rate: (default: 4 wash-outs)")
    plan.add_argument("--hours", type=_positive, default=24.0, metavar="H", help="how long it may take (default: 24)")
    plan.add_argument("--effect", type=_percent, metavar="P%", help="the effect hoped for: refused if it is not found")
    plan.add_argument(
        "--cap-settling-seconds", type=_not_negative, metavar="S",
        help="until a power limit has settled (default: by [caps], where an arm sets limits)",
    )  # fmt: skip
    plan.add_argument("--config", type=Path, metavar="FILE", help="the gateway's: its [caps], power.mode and pace")
    plan.add_argument("--design", choices=("switchback", "split_and_swap"), default="switchback",
                      help="(default: switchback)")  # fmt: skip
    plan.add_argument("--engines", type=_names, default=(), metavar="A,B", help="by name (split_and_swap: needed)")
    plan.add_argument("--id", default="experiment", metavar="ID", help="of the experiment (default: experiment)")
    plan.add_argument("--seed", type=int, default=1, help="decides the order of the arms (default: 1)")
    plan.add_argument("--write", type=Path, metavar="FILE", help="write the definition, as JSON")
    plan.set_defaults(run=_plan)
    add_live_commands(whats)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, not {text!r}") from None
    if not (isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"must be above 0, not {text}")
    return value


def _not_negative(text: str) -> float:
    return 0.0 if text.strip() in ("0", "0.0") else _positive(text)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


def _percent(text: str) -> float:
    return _positive(text.removesuffix("%").rstrip()) / 100.0


def _plan(options: argparse.Namespace) -> int:
    from proxy.ab.settling import settling_of
    from proxy.ab.traffic import TrafficFault
    from proxy.config_file import ConfigError
    from scheduler.experiments.checks import problems
    from scheduler.experiments.definition import ExperimentError
    from scheduler.policies import POLICIES

    try:
        arms, guardrails = _arms_and_guardrails(options)
        settling = settling_of(arms, options.config, options.cap_settling_seconds)
        made, p95 = _made(options, settling.seconds, settling.pace)
        defined = _definition(options, arms, guardrails, made)
    except ExperimentError as error:
        return _refused(error.problems)
    except ConfigError as error:
        return _refused([f"--config: {line}" for line in str(error).splitlines()])
    except (OSError, TrafficFault) as error:
        return _refused([f"--calls: {error}"])
    except ValueError as error:
        return _refused([str(error)])
    known = {name: policy.options for name, policy in POLICIES.items()}
    found = problems(defined, policies=known, p95_workflow_seconds=p95, cap_settling_seconds=settling.seconds)
    if found:
        return _refused(found)
    print(_said(defined, made, settling.says))
    for warning in (*made.warnings, *_slow_guardrails(defined, made)):
        print(f"warning: {warning}", file=sys.stderr)
    if options.effect is not None and made.detectable > options.effect:
        return 1
    if options.write is not None:
        options.write.write_text(json.dumps(defined.as_json(), indent=1) + "\n", encoding="utf-8")
    return 0


def _refused(problems: list[str]) -> int:
    for problem in problems:
        print(f"joulegate: {problem}", file=sys.stderr)
    return EXIT_USAGE


def _made(options: argparse.Namespace, settling: float, pace: float) -> tuple[Plan, float]:
    """The plan, and the p95 workflow time that it is for."""
    from scheduler.experiments.plan import from_rate, from_traffic

    seconds = options.hours * 3600.0
    if options.calls is not None:
        from proxy.ab.traffic import COST, workflows_of

        with options.calls.open("rb") as lines:
            traffic = [each._replace(began_at=each.began_at * pace, seconds=each.seconds * pace)
                       for each in workflows_of(lines)]  # fmt: skip
        made = from_traffic(
            traffic, seconds, cost_is=COST, cap_settling_seconds=settling, effect=options.effect,
            split=options.design == "split_and_swap",
        )  # fmt: skip
        return made, made.washout_seconds - settling
    if options.p95_seconds is None:
        raise ValueError("--rate needs --p95-seconds: the wash-out is made of it")
    made = from_rate(
        options.rate, seconds, p95_workflow_seconds=options.p95_seconds, workflow_spread=options.spread,
        pair_spread=options.pair_spread, block_seconds=options.block_seconds, cap_settling_seconds=settling,
        effect=options.effect,
    )  # fmt: skip
    return made, options.p95_seconds


def _arms_and_guardrails(options: argparse.Namespace) -> tuple[list[Arm], list[Guardrail]]:
    from scheduler.experiments.definition import ExperimentError, arm_of, guardrail_of

    wrong: list[str] = []
    arms, guardrails = [], []
    for text in options.arms.split(","):
        try:
            arms.append(arm_of(text))
        except ExperimentError as error:
            wrong += error.problems
    for text in options.guardrail:
        try:
            guardrails.append(guardrail_of(text))
        except ExperimentError as error:
            wrong += error.problems
    if wrong:
        raise ExperimentError(wrong)
    return arms, guardrails


def _definition(
    options: argparse.Namespace, arms: list[Arm], guardrails: list[Guardrail], made: Plan
) -> Definition:  # fmt: skip
    from scheduler.experiments.definition import Definition

    return Definition(
        options.id, tuple(arms), metric=options.metric, design=options.design, engines=options.engines,
        block_seconds=made.block_seconds, washout_seconds=made.washout_seconds, pairs=made.pairs, seed=options.seed,
        guardrails=tuple(guardrails), spread=min(max(made.spread, 1e-4), 10.0),
        aa=len(arms) == 2 and arms[0].same_as(arms[1]),
    )  # fmt: skip


def _slow_guardrails(defined: Definition, made: Plan) -> list[str]:
    from scheduler.experiments.guardrails import workflows_to_notice

    needed = workflows_to_notice(defined)
    whole = made.workflows_per_block * made.block_seconds / (made.block_seconds - made.washout_seconds)
    if not defined.guardrails or whole >= needed:
        return []
    text = f"{whole:.0f} workflows in a block: a guardrail needs about {needed} to see a p95 that doubles within one"
    return [text]


def _said(defined: Definition, made: Plan, settling: str) -> str:
    control, treatment = map(str, defined.arms)
    design = "" if defined.design == "switchback" else f" ({defined.design})"
    lines = [
        f"{treatment} against {control}, by {defined.metric}{design}",
        f"  blocks      {made.block_seconds:g} s, the first {made.washout_seconds:g} s of each are the wash-out",
        *([f"  caps        {settling}"] if settling else []),
        f"  pairs       {made.pairs}, in an order that seed {defined.seed} decides",
        f"  duration    {made.duration_seconds / 3600:.1f} h, with a block of {control} first",
        f"  workflows   {made.workflows_per_block:.0f} in the measured part of a block",
        f"  spread      {100 * made.spread:.1f} % a pair, from {made.basis}",
        f"  detectable  {100 * made.detectable:.1f} % with 80 % probability, at the 5 % level",
    ]
    lines += [f"  guardrail   {guardrail}" for guardrail in defined.guardrails]
    return "\n".join(lines)
