"""`joulegate-bench demo`: workflows through a gateway to the twin, once for each policy, and a gateway to try after it.

A twin and a gateway of its own for each policy: none finds the other's prompts in the prefix cache.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shlex
import signal
import sys
from collections import Counter
from contextlib import asynccontextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp

from bench.demo_children import READY_SECONDS, Child, ChildDiedError, alongside, is_free
from bench.demo_load import MIX, STRETCH, arrivals
from bench.demo_screen import Screen
from bench.demo_table import BASELINE, HOLDING, Figures, figures, table, verdict
from bench.programs import BenchError
from scheduler.policies import POLICIES
from workloads.player import Player, failures
from workloads.prompts import Manner

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from workloads.player import PlayedCall, PlayedWorkflow

CALIBRATION = "h200-llama-3.1-8b"
PORTS = {"twin": 8000, "gateway": 8080, "control": 8081}
REFRESH_SECONDS = 0.2
_TWIN_READY = re.compile(r"joulegate twin: (?P<twin>http://\S+) simulates vLLM with \S+")
_GATEWAY_READY = re.compile(
    r"joulegate: (?P<gateway>http://\S+) in front of .*control plane (?P<control>http://[^)]+)\)"
)


class Stage(NamedTuple):
    """A twin and a gateway that serve; their addresses."""

    twin: str
    gateway: str
    control: str
    model: str
    children: tuple[Child, Child]


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `demo`."""
    parser.add_argument("--once", action="store_true", help="end after the table, as without a terminal")
    parser.add_argument(
        "--seconds",
        type=_number(2, 600),
        default=50.0,
        metavar="S",
        help="of play, all policies together, 2 to 600 (default: 50)",
    )
    parser.add_argument(
        "--speed",
        type=_number(0.1, 50),
        default=5.0,
        metavar="X",
        help="simulated seconds a second, 0.1 to 50 (default: 5); the higher, the more of this machine is in the times",
    )
    parser.add_argument("--seed", type=_whole(0, 2**32 - 1), default=1, metavar="N", help="of arrivals and texts")
    parser.add_argument(
        "--port", metavar="PORT", type=_whole(0, 65535), help="the gateway's (default: 8080, or a free one)"
    )
    parser.add_argument(
        "--control-port",
        metavar="PORT",
        type=_whole(0, 65535),
        help="its control plane's (default: 8081, or a free one)",
    )
    parser.add_argument(
        "--policies",
        type=_policies,
        default=[HOLDING],
        metavar="NAMES",
        help=f"run beside {BASELINE}, with commas between (default: {HOLDING}; there are: {', '.join(POLICIES)})",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures of every policy there")


def _number(low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"must be a number from {low:g} to {high:g}, not {text!r}")
        return value

    return parse


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and low <= int(text) <= high):
            raise argparse.ArgumentTypeError(f"must be a whole number from {low} to {high}, not {text!r}")
        return int(text)

    return parse


def _policies(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in POLICIES:
            near = get_close_matches(name, POLICIES, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(POLICIES)}{hint}")
    return names


def run(args: argparse.Namespace) -> int:
    """Play, print, and unless told otherwise go on serving. 0; 1 if a call failed or a child died; 128 + the signal."""
    for option, port, other in (("--port", args.port, None), ("--control-port", args.control_port, args.port)):
        if port and port == other:
            raise BenchError(f"{option} {port}: is --port's already; choose another or leave it out")
        if port and not is_free(port):
            raise BenchError(f"{option} {port}: somebody listens there; choose another, or leave it out for a free one")
    if args.json is not None:
        try:
            args.json.open("a", encoding="utf-8").close()
        except OSError as error:
            raise BenchError(f"--json {args.json}: {error.strerror}; name a file that can be written") from None
    demo = Demo(args)
    try:
        return asyncio.run(_until_told(demo))
    except (ChildDiedError, aiohttp.ClientError, TimeoutError) as error:
        demo.screen.raw("")
        print(f"joulegate-bench: {str(error) or type(error).__name__}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # as of `| head`: nobody reads on, so what is still buffered is nobody's
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


async def _until_told(demo: Demo) -> int:
    """The exit code of the demo, or of the signal that ended it before its table."""
    told: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def tell(number: int) -> None:
        if not told.done():  # a second Ctrl-C must not cut off the ending of the children
            told.set_result(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, tell, number)
    work = asyncio.create_task(demo.run())
    await asyncio.wait((work, told), return_when=asyncio.FIRST_COMPLETED)
    if work.done():
        return work.result()
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    if told.result() == signal.SIGINT:
        demo.screen.raw("")  # behind the terminal's ^C
    return 128 + told.result() if demo.exit_code is None else demo.exit_code


class Demo:
    """One run of the demo."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.screen = Screen()
        self.policies = list(dict.fromkeys([BASELINE, *args.policies]))
        self.play_seconds = args.seconds / len(self.policies)
        self.arrivals = arrivals(args.seed, self.play_seconds * args.speed, args.speed, CALIBRATION)
        self.exit_code: int | None = None
        """Known when the table is there."""
        self._addresses: tuple[str, ...] = ()

    async def run(self) -> int:
        """All of it. ChildDiedError when a child ends too early."""
        self._greet()
        runs: list[Figures] = []
        failed: list[tuple[str, PlayedCall]] = []
        for number, policy in enumerate(self.policies, 1):
            async with self._stage(policy) as stage:
                self._tell_addresses(stage)
                label = f"{number}/{len(self.policies)} {policy:{max(map(len, self.policies))}}"
                measured, played = await alongside(self._play(policy, stage, label), stage.children)
                runs.append(measured)
                failed += [(policy, call) for call in failures(played)]
                if number == len(self.policies):
                    self._report(runs, failed)
                    self.exit_code = 1 if failed else 0
                    if self.screen.terminal and not self.args.once:
                        self._invite(policy, stage)
                        await alongside(asyncio.Event().wait(), stage.children)
        assert self.exit_code is not None
        return self.exit_code

    # --- what is said ---

    def _greet(self) -> None:
        args, say = self.args, self.screen.say
        kinds = Counter(arrival.workflow.kind for arrival in self.arrivals)
        calls = sum(len(arrival.workflow.calls) for arrival in self.arrivals)
        say("Joulegate demo: all simulated. No GPU is used; times and joules are a model's.", bold=True)
        say()
        say(f"  engine    joulegate twin, calibration {CALIBRATION}, at {args.speed:g} × real time", hang=12)
        mix = ", ".join(f"{kinds[kind]} {kind}" for kind in MIX)
        say(f"  load      {len(self.arrivals)} workflows ({mix}), {calls} calls, from seed {args.seed}", hang=12)
        horizon = self.play_seconds * args.speed
        names = ", ".join(self.policies)
        say(f"  deadlines each has {STRETCH:g} times as long as it takes alone", hang=12)
        say(f"  policies  {names}: the same load for each, {self.play_seconds:g} s = {horizon:g} simulated s", hang=12)

    def _tell_addresses(self, stage: Stage) -> None:
        addresses = (stage.twin, stage.gateway, stage.control)
        if addresses == self._addresses:
            return
        self._addresses = addresses
        places = []
        for (name, usual), address in zip(PORTS.items(), addresses, strict=True):
            moved = not address.endswith(f":{usual}") and not is_free(usual)
            places.append(f"{name} {address.removeprefix('http://')}" + (f" ({usual} is taken)" if moved else ""))
        self.screen.say(f"  listening {', '.join(places)}", hang=12)
        self.screen.say()

    def _report(self, runs: list[Figures], failed: list[tuple[str, PlayedCall]]) -> None:
        screen = self.screen
        head, *lines = table(runs)
        screen.say()
        screen.raw(f"  {head}", bold=True)
        for line in lines:
            screen.raw(f"  {line}")
        screen.say()
        seconds = f"{runs[0].horizon_seconds:.0f}"
        screen.say(f"  Of a workflow; joules by the twin's counter over {seconds} simulated s, idle included.")
        for sentence in verdict(runs):
            screen.say(f"  {sentence}")
        if failed:
            policy, call = failed[0]
            screen.say(f"  {len(failed)} calls failed, the first under {policy}: {call.node}: {call.error}")
        if self.args.json is not None:
            document = {
                "source": "simulated",
                "calibration": CALIBRATION,
                **{name: getattr(self.args, name) for name in ("seconds", "speed", "seed")},
                "policies": [
                    {
                        **each._asdict(),
                        "joules_per_workflow": each.joules_per_workflow,
                        "tokens_per_second": each.tokens_per_second,
                    }
                    for each in runs
                ],
            }
            self.args.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")

    def _invite(self, policy: str, stage: Stage) -> None:
        screen = self.screen
        messages = json.dumps([{"role": "user", "content": "What is a joule?"}])
        body = f'{{"model": {json.dumps(stage.model)}, "max_tokens": 40,\n         "messages": {messages}}}'
        screen.say()
        screen.say(f"The gateway (policy {policy}) stays at {stage.gateway} until Ctrl-C. Try:", bold=True)
        screen.say()
        screen.raw(f"  curl {stage.gateway}/v1/chat/completions \\")
        screen.raw("    -H 'content-type: application/json' -H 'x-workflow-id: my-first' \\")
        screen.raw(f"    -d {shlex.quote(body)}")
        screen.say()
        screen.raw(f"  what the scheduler sees  {stage.control}/admin/state")
        screen.raw(f"  metrics                  {stage.control}/metrics")
        screen.raw(f"  the twin's power meter   {stage.twin}/power")
        screen.say()
        screen.say("Is joule worth it on your own traffic? Plan an A/B experiment (docs/experiments.md):", hang=2)
        screen.raw("  joulegate ab plan --arms passthrough,joule --rate 5 --p95-seconds 25")

    # --- what is done ---

    @asynccontextmanager
    async def _stage(self, policy: str) -> AsyncIterator[Stage]:
        """A fresh twin with a gateway of this policy in front of it; both are gone at the end."""
        if self.screen.terminal:
            self.screen.progress(policy, 0, "starting the twin and the gateway")
        children: list[Child] = []
        ports = self._ports()
        try:
            options = ["--calibration", CALIBRATION, "--speed", f"{self.args.speed:g}", "--port", str(ports["twin"])]
            twin = await Child.start("twin", ["twin", *options], _TWIN_READY)
            children.append(twin)
            url = (await twin.ready())["twin"]
            options = ["--engine", url, "--policy", policy, "--port", str(ports["gateway"])]
            options += ["--control-port", str(ports["control"])]
            gateway = await Child.start("gateway", ["up", *options], _GATEWAY_READY)
            children.append(gateway)
            said = await alongside(gateway.ready(), (twin,))
            async with aiohttp.ClientSession() as session:
                model = await alongside(_model(session, said["gateway"]), (twin, gateway))
            yield Stage(url, said["gateway"], said["control"], model, (twin, gateway))
        finally:
            await asyncio.gather(*(child.end() for child in children))

    def _ports(self) -> dict[str, int]:
        """What to listen on; 0 = let the kernel choose, since the usual one is taken."""
        given = {"gateway": self.args.port, "control": self.args.control_port}
        asked = {port for port in given.values() if port}
        chosen = {}
        for name, usual in PORTS.items():
            port = given.get(name)
            chosen[name] = port if port is not None else usual if usual not in asked and is_free(usual) else 0
        return chosen

    async def _play(self, policy: str, stage: Stage, label: str) -> tuple[Figures, list[PlayedWorkflow]]:
        """The load through the gateway; the twin's counter before it and at the horizon's end."""
        loop = asyncio.get_running_loop()
        calls = sum(len(arrival.workflow.calls) for arrival in self.arrivals)
        over: list[PlayedCall] = []
        manner = Manner(tell_lengths=True)
        player = Player(stage.gateway, stage.model, way="native", manner=manner, on_call=over.append)
        began = loop.time()

        def news() -> str:
            failed = sum(not call.good for call in over)
            answered = f"{len(over) - failed} of {calls} calls, {player.running} under way"
            return f"{answered}, {failed} failed" if failed else answered

        async def show() -> None:
            while True:
                self.screen.progress(label, min(1.0, (loop.time() - began) / self.play_seconds), news())
                await asyncio.sleep(REFRESH_SECONDS)

        showing = asyncio.create_task(show())
        try:
            async with aiohttp.ClientSession(raise_for_status=True) as session:
                before = await _power(session, stage.twin)
                played = await player.play(self.arrivals)
                await asyncio.sleep(began + self.play_seconds - loop.time())
                after = await _power(session, stage.twin)
        finally:
            showing.cancel()
            await asyncio.gather(showing, return_exceptions=True)
        self.screen.settle(label, news())
        measured = figures(
            policy,
            played,
            speed=self.args.speed,
            joules=after["energy_joules"] - before["energy_joules"],
            horizon_seconds=self.play_seconds * self.args.speed,
            measured_seconds=after["time_seconds"] - before["time_seconds"],
            deadlines=[arrival.deadline_seconds or float("inf") for arrival in self.arrivals],
        )
        return measured, played


async def _model(session: aiohttp.ClientSession, gateway: str) -> str:
    """The served model's name, once the gateway has found its engine well."""
    until = asyncio.get_running_loop().time() + READY_SECONDS
    while True:
        async with session.get(f"{gateway}/v1/models") as answer:
            if answer.status == 200:
                return str((await answer.json())["data"][0]["id"])
        if asyncio.get_running_loop().time() > until:
            raise TimeoutError(f"the gateway found no model at the twin within {READY_SECONDS:g} s")
        await asyncio.sleep(0.05)


async def _power(session: aiohttp.ClientSession, twin: str) -> dict[str, Any]:
    async with session.get(f"{twin}/power") as answer:
        reading: dict[str, Any] = await answer.json()
        return reading
