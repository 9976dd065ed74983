"""What does reading power cost, and how fast is a limit restored after `kill -9`?

Against the C library of the tests (`--library`, built here with cc), whose calls cost nothing of their own, so that
what is measured is ours; or, reading only, against this host's driver (`--real`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.programs import BenchError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backends.power.sample import Sample

CPU_PERCENT_MAX = 1.0
RESTORE_SECONDS_MAX = 2.0
WAIT_SECONDS = 30.0
LIMIT_MW, CAPPED_MW = 700_000, 300_000
SETTLE_SECONDS = 0.5
"""of the sampler, before it is measured: the first read probes what a card can"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The subcommand's options."""
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 4, 8], help="how many are read (default 1 4 8)")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement (default 20)")
    parser.add_argument("--period", type=float, default=0.1, help="between two reads (default 0.1)")
    parser.add_argument("--kills", type=int, default=20, help="processes that are killed (default 20)")
    parser.add_argument("--library", type=Path, default=Path("tests/native/fake_nvml.c"), help="its source")
    parser.add_argument("--real", action="store_true", help="read this host's driver; nothing is set or killed")


def run(args: argparse.Namespace) -> int:
    """Print all figures; 1 if a bound is not kept."""
    if args.real:
        return _sampling(args, {})
    with _driver(args.library) as environ:
        environ["FAKE_NVML_STATE"] = f"{environ['FAKE_NVML_DIR']}/state"
        return _sampling(args, environ) | _killing(args, environ)


@contextmanager
def _driver(source: Path) -> Iterator[dict[str, str]]:
    if not source.exists():
        raise BenchError(f"{source} is missing: run this in a checkout, or name it with --library, or use --real")
    with tempfile.TemporaryDirectory(prefix="joulegate-power-") as folder:
        library = Path(folder) / "libnvidia-ml.so.1"
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
        (Path(folder) / "state").touch()
        (Path(folder) / "script").write_text("gpus 8\n")
        yield {"LD_LIBRARY_PATH": folder, "FAKE_NVML_DIR": folder}


def _child(environ: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "bench.power_sampling", *arguments]
    quiet = subprocess.DEVNULL if arguments[0] == "hold" else None  # the watchdog says what it restores
    return subprocess.Popen(command, env={**os.environ, **environ}, stdout=subprocess.PIPE, stderr=quiet, text=True)


def _answer(child: subprocess.Popen[str]) -> Any:
    assert child.stdout is not None
    line = child.stdout.readline()
    if not line:
        raise BenchError(f"a child ended with {child.wait()}")
    return json.loads(line)


# --- what reading costs ---


def _sampling(args: argparse.Namespace, environ: dict[str, str]) -> int:
    print(f"a read each {args.period * 1000:g} ms for {args.seconds:g} s; CPU of the whole process, of one core")
    print(f"(for one GPU {CPU_PERCENT_MAX:g} % at most)")
    print(f"  {'GPUs':>4} {'samples':>8} {'CPU %':>7} {'loop %':>7} {'read ms':>8} {'late ms p99':>12}")
    code = 0
    for gpus in args.gpus:
        child = _child(environ, "sample", str(gpus), str(args.seconds), str(args.period))
        found = _answer(child)
        child.wait()
        if "fault" in found:
            raise BenchError(found["fault"])
        print(
            f"  {gpus:4} {found['samples']:8} {found['cpu']:7.2f} {found['loop']:7.2f} {found['read_ms']:8.2f}"
            f" {found['late_ms']:12.2f}"
        )
        if gpus == 1 and found["cpu"] > CPU_PERCENT_MAX:
            print(f"over the bound: one GPU costs {found['cpu']:.2f} % of a core", file=sys.stderr)
            code = 1
    return code


async def _sample(gpus: int, seconds: float, period: float) -> dict[str, Any]:
    """In a child: read for so long; what it cost."""
    from backends.power.nvml import NvmlDevice
    from backends.power.sample import take
    from backends.power.sampler import Sampler

    devices = {str(index): NvmlDevice(str(index)) for index in range(gpus)}
    if (first := take("0", devices["0"])).state != "ok":
        return {"fault": f"GPU 0: {first.state}: {first.detail}"}
    times: list[float] = []
    sampler = Sampler(devices, period, lambda samples: _note(samples, times))
    sampler.start()
    await asyncio.sleep(SETTLE_SECONDS)
    times.clear()
    cpu, loop, begun = time.process_time(), time.thread_time(), time.monotonic()
    await asyncio.sleep(seconds)
    cpu, loop = time.process_time() - cpu, time.thread_time() - loop
    spent = time.monotonic() - begun
    count = len(times)
    await sampler.close()
    reads = [_timed(devices["0"]) for _ in range(50)]
    gaps = sorted(abs(after - before - period) for before, after in zip(times[::gpus], times[gpus::gpus], strict=False))
    return {
        "samples": count,
        "cpu": 100 * cpu / spent,
        "loop": 100 * loop / spent,
        "read_ms": 1000 * sorted(reads)[len(reads) // 2],
        "late_ms": 1000 * gaps[len(gaps) * 99 // 100],
    }


def _note(samples: list[Sample], times: list[float]) -> None:
    times.extend(sample.at_seconds for sample in samples)


def _timed(device: Any) -> float:
    from backends.power.sample import take

    begun = time.perf_counter()
    take("0", device)
    return time.perf_counter() - begun


# --- how fast a limit is restored ---


def _killing(args: argparse.Namespace, environ: dict[str, str]) -> int:
    taken = sorted(_kill_one(environ) for _ in range(args.kills))
    if not taken:
        return 0
    p50, most = taken[len(taken) // 2], taken[-1]
    print(f"\nkill -9 until the limit is as it was found, {len(taken)} times: at most {RESTORE_SECONDS_MAX:g} s")
    print(f"  p50 {1000 * p50:.1f} ms, max {1000 * most:.1f} ms")
    if most > RESTORE_SECONDS_MAX:
        print(f"over the bound: a limit was restored after {most:.2f} s", file=sys.stderr)
        return 1
    return 0


def _kill_one(environ: dict[str, str]) -> float:
    state = Path(environ["FAKE_NVML_STATE"])
    with tempfile.TemporaryDirectory(prefix="joulegate-leases-") as folder:
        child = _child(environ, "hold", folder)
        outcome = _answer(child)
        if outcome["state"] != "applied" or _limit_mw(state) != CAPPED_MW:
            raise BenchError(f"the limit was not set: {outcome}")
        begun = time.perf_counter()
        child.send_signal(signal.SIGKILL)
        while _limit_mw(state) != LIMIT_MW:
            if time.perf_counter() - begun > WAIT_SECONDS:
                raise BenchError(f"not restored within {WAIT_SECONDS:g} s")
            time.sleep(0.0005)
        taken = time.perf_counter() - begun
        child.wait()
        while list(Path(folder).glob("*.json")):  # the watchdog is still at it
            time.sleep(0.001)
    return taken


def _limit_mw(state: Path) -> int:
    with state.open("rb") as file:
        data = file.read(8)
    return int(struct.unpack("<q", data)[0]) if len(data) == 8 else 0


async def _hold(folder: str) -> None:
    """In a child: set a limit and wait to be killed."""
    from backends.power.actuator import Actuator
    from backends.power.nvml import NvmlDevice

    actuator = Actuator({"0": NvmlDevice("0")}, "actuate", Path(folder), lambda text: None)
    await actuator.start()
    outcome = await actuator.set_limit_watts("0", CAPPED_MW / 1000)
    print(json.dumps(outcome._asdict()), flush=True)
    await asyncio.Event().wait()


def _main() -> int:
    if sys.argv[1:2] == ["sample"]:
        gpus, seconds, period = int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])
        print(json.dumps(asyncio.run(_sample(gpus, seconds, period))), flush=True)
        return 0
    if sys.argv[1:2] == ["hold"]:
        asyncio.run(_hold(sys.argv[2]))
        return 0
    parser = argparse.ArgumentParser(prog="python -m bench.power_sampling", description=__doc__)
    add_options(parser)
    try:
        return run(parser.parse_args())
    except BenchError as error:
        print(f"power-sampling: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(_main())
