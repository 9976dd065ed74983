"""The `joulegate-bench` command. Each subcommand's module is imported only when it is asked for."""

from __future__ import annotations

import argparse
import importlib
import sys
from typing import TYPE_CHECKING

from bench.programs import BenchError

if TYPE_CHECKING:
    from collections.abc import Sequence

# name: (module with add_options and run, one line of help)
COMMANDS = {
    "demo": ("bench.demo", "workflows through a gateway to a simulated engine: joules, times, and a gateway to try"),
    "run": ("bench.load.run", "a workload under one or more policies: joules, times, a result file with every call"),
    "sweep": (
        "bench.load.sweep",
        "grids of configurations from a file, over all cores; goes on where it was broken off",
    ),
    "characterize": (
        "bench.load.characterize",
        "the study in one command: what batch, cap, lengths and deadlines cost",
    ),
    "report": ("bench.load.report", "results as one page without network: energy against latency, batch, cap, lengths"),
    "compare": ("bench.load.compare", "two results of the same load, repeat by repeat: ratios with intervals"),
    "export": ("bench.load.export", "a workload's calls as prompts for `vllm bench serve` and `guidellm`"),
    "beside": ("bench.load.beside", "results of a real engine, and what the twin says of the same plays"),
    "record": ("bench.load.record", "a gateway's log as a trace: lengths, times, graphs, hashes of prefixes; no text"),
    "replay": ("bench.load.replay", "a recorded trace, played as any workload is"),
    "player-speed": (
        "bench.load.player_speed",
        "how late the player sends with thousands of streams open, on one core",
    ),
    "overhead": ("bench.overhead", "CPU, latency and memory of the gateway beside nginx and vllm-router"),
    "workflow-speed": (
        "bench.workflow_speed",
        "what the graph costs: a large submission, slack after each finished call",
    ),
    "inference": ("bench.inference", "workflows found by content alone: microseconds, precision, recall, memory"),
    "energy-model": ("bench.energy.model", "the live energy model on the twin: errors, coverage, drift"),
    "energy-log": ("bench.energy.log", "the live energy model on recorded traffic: a gateway's event logs"),
    "energy-bill": ("bench.energy.bill", "bills of calls and workflows against the twin's true split of each step"),
    "energy-cost": ("bench.energy.bill_cost", "CPU time that energy costs the gateway's loop, a call"),
    "energy-caps": ("bench.energy.caps", "the cap controller against the best fixed cap in hindsight"),
    "policies": ("bench.policies.table", "every policy on the same traffic: joules, deadlines, share of the room used"),
    "policies-small": ("bench.policies.small", "joule on 200 small instances beside the optimum, found by search"),
    "policies-mixed": ("bench.policies.mixed", "half batch, half interactive: is the latter half any slower?"),
    "policy-cost": (
        "bench.policies.cost",
        "what a call event costs the scheduler under each policy, and the longest one",
    ),
    "experiments": ("bench.experiments.check", "is an A/B test right? its error rates on thousands of simulated ones"),
    "experiment-report": ("bench.experiments.report", "an experiment's blocks as one page: answer, effects, checks"),
    "power-sampling": ("bench.power_sampling", "what reading a card every 100 ms costs"),
    "twin-check": ("bench.twin.check", "measured rows played again on the twin: times, joules, errors"),
    "twin-speed": ("bench.twin.speed", "how fast virtual time passes on the twin, a call early and late"),
    "twin-live": ("bench.twin.live", "workflows on a real engine beside its card's energy counter, for twin-check"),
    "soak": ("bench.soak", "many streams through one gateway process: does memory grow, is anything left?"),
}


def build_parser(wanted: str | None) -> argparse.ArgumentParser:
    """The parser of the whole command; only the wanted subcommand knows its options."""
    parser = argparse.ArgumentParser(prog="joulegate-bench", description="Benchmarks of the Joulegate gateway.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, text) in COMMANDS.items():
        sub = subparsers.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if name == wanted:
            importlib.import_module(module).add_options(sub)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand; returns 0 when all is well, 1 when the bench found a fault, 2 when it could not run."""
    argv = list(sys.argv[1:] if argv is None else argv)
    wanted = next((word for word in argv if word in COMMANDS), None)
    args = build_parser(wanted).parse_args(argv)
    args.argv = argv
    if not sys.platform.startswith("linux"):
        print("joulegate-bench: it reads CPU time and memory from Linux; run it there", file=sys.stderr)
        return 2
    try:
        return int(importlib.import_module(COMMANDS[args.command][0]).run(args))
    except BenchError as error:
        print(f"joulegate-bench: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
