"""`joulegate-bench run`: a configuration played several times, on the twin in virtual time or on a real engine."""

from __future__ import annotations

import random
import sys
import time
from typing import TYPE_CHECKING, Any

from bench.load.cell import Keeper, play_virtual
from bench.load.environment import environment
from bench.load.figures import table
from bench.load.load import load_of
from bench.load.options import add_spec_options, folder, spec_of
from bench.load.progress import Progress
from bench.load.results import ResultFault, need_pyarrow
from bench.load.spec import AS_IS, RUNNING
from bench.programs import BenchError

if TYPE_CHECKING:
    import argparse

    from bench.load.spec import Spec

INTERRUPTED = 130


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `run`."""
    add_spec_options(parser)
    add_live_options(parser)
    parser.add_argument("--out", type=folder, default="results", metavar="FOLDER", help="(default: results)")


def add_live_options(parser: argparse.ArgumentParser) -> None:
    """What only a real engine needs."""
    parser.add_argument("--gpu", metavar="NAME[,NAME]", help="a real engine's cards: an index, a UUID, a bus id")
    parser.add_argument(
        "--idle-seconds", type=float, default=5.0, metavar="S", help="its idle power is read for so long (default: 5)"
    )
    parser.add_argument("--model", metavar="NAME", help="a real engine's model (default: the first that it serves)")
    parser.add_argument(
        "--event-logs", type=folder, metavar="FOLDER", help="keep the gateway's event log of each play there"
    )
    parser.add_argument("--api-key-env", metavar="VARIABLE", help="environment variable with a real engine's API key")


def run(args: argparse.Namespace) -> int:
    """Play and print. 0; 1 where calls failed; 130 after Ctrl-C. BenchError for what cannot be played."""
    return play_all(specs_of(args), args)


def specs_of(args: argparse.Namespace, **own: Any) -> list[Spec]:
    """A configuration for each policy that is named, with `own` members in all. Where a gateway runs already, `none` is
    its engine without it. BenchError."""
    usual = spec_default() if args.gateway is None else RUNNING
    policies = [policy.strip() for policy in dict.fromkeys(str(args.policy or usual).split(","))]
    args.policy = None
    if args.gateway is not None and args.engine is None:
        args.engine = args.gateway
    direct: dict[str, Any] = {"gateway": None} if args.gateway is not None else {}
    if len(policies) > 1 and args.way in ("native", "parrot"):
        direct["way"] = "bare"  # there is nobody to tell; alone it is refused
    return [spec_of(args, **own, policy=policy, **(direct if policy == AS_IS else {})) for policy in policies]


def spec_default() -> str:
    """The policy that is played if none is named."""
    from bench.load.spec import Spec

    return Spec().policy


def labels_of(specs: list[Spec]) -> list[str]:
    """The policy of each, and whatever else is not the same for all."""
    documents = [spec.document() for spec in specs]
    differ = [name for name in documents[0] if any(each[name] != documents[0][name] for each in documents)]
    names = [name for name in differ if name != "policy"]
    return [" ".join([each["policy"], *(f"{name}={each[name]}" for name in names)]) for each in documents]


def order_of(specs: list[Spec]) -> list[tuple[int, int]]:
    """(configuration, repeat) each: all configurations once in a random order, then again in another."""
    rng = random.Random(f"order {specs[0].seed}")
    order = []
    for repeat in rng.sample(range(1, specs[0].repeats + 1), specs[0].repeats):
        order += [(arm, repeat) for arm in rng.sample(range(len(specs)), len(specs))]
    return order


def play_all(specs: list[Spec], args: argparse.Namespace) -> int:
    """Configurations that differ in little, interleaved; a result each."""
    need_pyarrow()
    if not specs[0].simulated:
        from bench.load.live import play_all_live

        return play_all_live(specs, args)
    from bench.load.virtual import about

    order = order_of(specs)
    meta = meta_of(args, order, gpu=False) | {"time_source": "simulated", "isolated_source": isolated(specs[0])}
    keepers = [Keeper(spec, args.out, meta | {"engine": about(spec)}) for spec in specs]
    progress = Progress(len(order))
    try:
        for arm, repeat in order:
            spec = specs[arm]
            progress.next(f"{spec.policy}, repeat {repeat}")
            calls = load_of(spec, repeat).calls
            outcome = play_virtual(spec, repeat, lambda over, calls=calls: progress.at(over / calls, f"{over} calls"))  # type: ignore[misc]
            keepers[arm].add(outcome)
            if not outcome.complete:
                raise KeyboardInterrupt
            progress.done(f"{len(outcome.rows['call'])} calls")
    except KeyboardInterrupt:
        return broken_off(keepers, progress)
    return tell(keepers, progress)


def isolated(spec: Spec) -> str:
    """Where isolated times come from."""
    kind = "simulated" if spec.simulated else "modelled"
    return f"{kind}: each workflow alone on the twin of {spec.calibration}, shared prefixes cached"


def meta_of(args: argparse.Namespace, order: list[tuple[int, int]], *, gpu: bool) -> dict[str, Any]:
    """What all results of a command have in common."""
    return {
        "created_unix_seconds": time.time(),
        "environment": environment(args.argv, gpu=gpu),
        "order": [list(pair) for pair in order],
    }


def broken_off(keepers: list[Keeper], progress: Progress) -> int:
    """After Ctrl-C: everything is marked; what was done is shown."""
    for keeper in keepers:
        if keeper.done < keeper.spec.repeats:
            keeper.interrupted()
    progress.screen.raw("")
    tell([keeper for keeper in keepers if keeper.done], progress)
    print("joulegate-bench: interrupted; what was done is kept and marked so", file=sys.stderr)
    return INTERRUPTED


def tell(keepers: list[Keeper], progress: Progress) -> int:
    """The short table, what is to be known beside it, and where the results are."""
    from bench.load.results import read_meta

    screen = progress.screen
    if not keepers:
        return 1
    metas = [read_meta(keeper.path) for keeper in keepers]
    screen.raw("")
    labels = labels_of([keeper.spec for keeper in keepers])
    named = list(zip(labels, [keeper.summary for keeper in keepers], strict=True))
    for number, line in enumerate(table(named)):
        screen.raw(line, bold=not number)
    screen.raw("")
    n = keepers[0].done
    spread = f"± is the 95 % interval over {n} repeats" if n > 1 else "one repeat: no interval"
    source = metas[0].get("energy", {}).get("source", "unavailable")
    screen.say(f"Mean over repeats; {spread}. Times are {metas[0]['time_source']}, joules are {source}.")
    for code, text in sorted({(note["code"], note["text"]) for meta in metas for note in meta["notes"]}):
        screen.say(f"note: {text} ({code})")
    for keeper in keepers:
        screen.raw(f"result: {keeper.path}")
    return int(any(note["code"] == "failed_calls" for meta in metas for note in meta["notes"]))


__all__ = ["BenchError", "ResultFault", "add_options", "run"]
