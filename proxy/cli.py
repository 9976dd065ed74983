"""The `joulegate` command."""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxy.ab.cli import add_commands as add_ab_commands
from proxy.cli_power import add_commands as add_power_commands
from proxy.explain import add_command as add_explain_command

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backends.twin.server.cli import Options
    from backends.vllm.process import VllmProcess
    from proxy.config import Config

EXIT_USAGE = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0 fine, 1 failed while running, 2 wrong arguments or configuration."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    extra: list[str] = []
    if "--" in arguments:  # everything behind it is vLLM's
        cut = arguments.index("--")
        arguments, extra = arguments[:cut], arguments[cut + 1 :]
    options = _parser().parse_args(arguments)
    if extra and not getattr(options, "model", None):
        print("joulegate: arguments behind -- are for vLLM and need `up --model NAME`", file=sys.stderr)
        return EXIT_USAGE
    options.vllm_args = extra
    code: int = options.run(options)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="joulegate", description="An OpenAI-compatible gateway in front of vLLM that knows workflows and joules."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    up = commands.add_parser("up", help="serve in front of a running vLLM, or start one: no configuration needed")
    what = up.add_mutually_exclusive_group()
    what.add_argument("--engine", action="append", metavar="URL", help="a running engine; may be repeated")
    what.add_argument("--model", metavar="NAME", help="start and supervise `vllm serve NAME`; its arguments behind --")
    what.add_argument(
        "--twin", metavar="NAME", help="a simulated engine of this calibration; also without any of these"
    )
    up.add_argument("--vllm-command", default="vllm", metavar="CMD", help="how to call vLLM (default: vllm)")
    up.add_argument("--vllm-port", type=int, default=0, metavar="PORT", help="where it listens (default: a free port)")
    up.add_argument("--policy", metavar="NAME", help="scheduling policy (default: passthrough)")
    _listen_options(up)
    up.set_defaults(run=_up)

    serve = commands.add_parser("serve", help="serve as a configuration file says")
    serve.add_argument("--config", type=Path, required=True, metavar="FILE")
    _listen_options(serve)
    serve.set_defaults(run=_serve)

    check = commands.add_parser("check-config", help="check a configuration file, offline")
    check.add_argument("file", type=Path)
    check.set_defaults(run=_check_config)

    hash_key = commands.add_parser("hash-key", help="make an API key and the line for the configuration")
    hash_key.add_argument("--stdin", action="store_true", help="hash the key given on standard input instead")
    hash_key.set_defaults(run=_hash_key)

    replay = commands.add_parser("replay", help="replay an event log and check that it decides the same")
    replay.add_argument("file", type=Path)
    replay.set_defaults(run=_replay)

    twin = commands.add_parser("twin", help="serve vLLM's API from a simulated engine with a simulated power meter")
    twin.add_argument("--calibration", metavar="NAME", help="a shipped calibration, or a .toml (h200-llama-3.1-8b)")
    twin.add_argument("--card", metavar="CARD", help="instead: a card's datasheet, as h200, with --model")
    twin.add_argument("--model", type=Path, metavar="CONFIG.json", help="with --card: the model's Hugging Face config")
    twin.add_argument(
        "--gpus", type=_count, default=1, metavar="N", help="with --card: cards of one engine (default: 1)"
    )
    twin.add_argument("--max-num-seqs", type=_count, metavar="N", help="sequences in a batch, at most")
    twin.add_argument("--max-num-batched-tokens", type=_count, metavar="TOKENS", help="tokens in a step, at most")
    twin.add_argument("--host", default="127.0.0.1", help="where clients connect (default: 127.0.0.1)")
    twin.add_argument("--port", type=_port, default=8000, help="0 takes a free one (default: 8000)")
    twin.add_argument("--speed", type=_speed, default=1.0, metavar="X", help="X times as fast as real time")
    twin.add_argument("--model-name", metavar="NAME", help="the served name (default: the calibration's model)")
    twin.add_argument("--max-model-len", type=_count, metavar="TOKENS", help="prompt and output together")
    twin.add_argument("--max-num-queued-reqs", type=_count, metavar="N", help="answer 503 to more at once")
    twin.add_argument(
        "--enable-sleep-mode",
        action="store_true",
        help="serve /sleep, /wake_up and /is_sleeping, as vLLM's developer mode",
    )
    twin.add_argument(
        "--wake-seconds", type=_seconds, default=0.0, metavar="S", help="simulated seconds to wake up (default: 0)"
    )
    twin.add_argument(
        "--scheduling-policy", choices=("fcfs", "priority"), default="priority", help="(default: priority)"
    )
    twin.set_defaults(run=_twin)
    add_explain_command(commands)
    add_power_commands(commands)
    add_ab_commands(commands)
    return parser


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, not {text!r}") from None


def _speed(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, not {text!r}") from None
    if not 0.001 <= value <= 10_000:
        raise argparse.ArgumentTypeError(f"must be from 0.001 to 10000, not {text}")
    return value


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, not {text!r}") from None
    if not 0.0 <= value <= 3600.0:
        raise argparse.ArgumentTypeError(f"must be from 0 to 3600, not {text}")
    return value


def _count(text: str) -> int:
    value = _whole(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {text}")
    return value


def _port(text: str) -> int:
    value = _whole(text)
    if not 0 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"must be from 0 to 65535, not {text}")
    return value


def _listen_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", help="where clients connect (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, help="the model API's port (default: 8080)")
    parser.add_argument("--control-port", type=int, help="the control plane's port, loopback only (default: 8081)")


def _overrides(options: argparse.Namespace) -> dict[str, Any]:
    listen = {"host": options.host, "port": options.port, "control_port": options.control_port}
    given: dict[str, Any] = {"listen": {name: value for name, value in listen.items() if value is not None}}
    if getattr(options, "policy", None):
        given["policy"] = {"name": options.policy}
    return given


def _up(options: argparse.Namespace) -> int:
    overrides = _overrides(options)
    process = twin = None
    if options.model:
        from backends.vllm.process import VllmProcess, free_port

        port = options.vllm_port or free_port()
        process = VllmProcess(
            options.model, port=port, command=shlex.split(options.vllm_command), extra_args=options.vllm_args
        )
        overrides["engines"] = [{"url": f"http://127.0.0.1:{port}", "name": "vllm"}]
    elif options.engine:
        overrides["engines"] = [{"url": url} for url in options.engine]
    else:
        from backends.twin.choose import Choice
        from backends.twin.server.cli import Options
        from backends.vllm.process import free_port

        twin = Options(Choice(options.twin), port=free_port())
        overrides["engines"] = [{"url": f"http://127.0.0.1:{twin.port}", "name": "twin"}]
    return _run(None, overrides, process, twin)


def _serve(options: argparse.Namespace) -> int:
    return _run(options.config, _overrides(options), None)


def _run(path: Path | None, overrides: dict[str, Any], process: VllmProcess | None, twin: Options | None = None) -> int:
    import uvloop

    from proxy.budgets import BudgetsFault
    from proxy.config_file import ConfigError, load
    from proxy.energy.store_file import StoreFault

    def read() -> Config:
        return load(path, os.environ, overrides)

    try:
        config = read()
        again = read if path is not None else None
        if twin is not None:
            return _run_with_twin(config, again, twin)
        return uvloop.run(_serve_until_told(config, again, process))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return EXIT_USAGE
    except (BudgetsFault, StoreFault, OSError) as error:
        print(f"joulegate: {error}", file=sys.stderr)
        return 1


def _run_with_twin(config: Config, read: Any, twin: Options) -> int:
    """The embedded engine, on the gateway's own loop: for trying things out where there is no GPU."""
    import uvloop

    from backends.twin.server.cli import OptionError, calibration_of, serving

    async def both() -> int:
        async with serving(twin, calibration):
            return await _serve_until_told(config, read, None)

    try:
        calibration = calibration_of(twin)
    except OptionError as error:
        print(f"joulegate: {str(error).replace('--calibration', '--twin')}", file=sys.stderr)
        return EXIT_USAGE
    return uvloop.run(both())


async def _serve_until_told(config: Config, read: Any, process: VllmProcess | None) -> int:
    from proxy import descriptors
    from proxy.app import App

    descriptors_limit = descriptors.raise_limit()
    if process is not None:
        from backends.vllm.process import VllmFailed

        try:
            print(f"joulegate: starting {process}; this can take minutes", file=sys.stderr, flush=True)
            await process.start()
            await process.ready()
        except (VllmFailed, asyncio.CancelledError) as failed:
            await process.stop()
            print(f"joulegate: {failed}", file=sys.stderr)
            return 1
    app = App(config, read, process)
    descriptors.warn(config, descriptors_limit, app.log.event)
    listen = config.listen

    def ready(port: int, control_port: int) -> None:
        engines = ", ".join(str(engine.url) for engine in config.engines)
        print(
            f"joulegate: http://{listen.host}:{port} in front of {engines}"
            f" (policy {config.policy.name}; control plane http://{listen.control_host}:{control_port})",
            file=sys.stderr,
            flush=True,
        )
        if not config.keys:
            print("joulegate: no API keys configured, so it listens on loopback only", file=sys.stderr, flush=True)

    return await app.run(ready)


def _check_config(options: argparse.Namespace) -> int:
    from proxy.config_file import check_config

    return check_config(options.file, os.environ)


def _hash_key(options: argparse.Namespace) -> int:
    from proxy.keys import generate, hash_key

    if options.stdin:
        print(f'sha256 = "{hash_key(sys.stdin.readline().strip())}"')
        return 0
    key, digest = generate()
    print(f"# the key, shown once; give it to its user:\n# {key}")
    print(f'[[keys]]\nname = "somebody"\nsha256 = "{digest}"')
    return 0


def _replay(options: argparse.Namespace) -> int:
    from proxy.policies import load_plugins
    from scheduler.eventlog import LogCut, LogFault, replay

    load_plugins()
    events = different = 0
    try:
        with options.file.open(encoding="utf-8", errors="replace") as file:
            for line, event, actions, same in replay(file):
                events += 1
                if not same:
                    different += 1
                    print(f"line {line}: {type(event).__name__} led to other actions: {actions}")
    except LogCut as cut:  # normal after a crash or on a full disk
        print(f"joulegate: {cut}", file=sys.stderr)
    except (OSError, LogFault) as error:
        print(f"joulegate: {error}", file=sys.stderr)
        return EXIT_USAGE
    print(f"{events} events replayed, {different} with other actions")
    return 1 if different else 0


def _twin(options: argparse.Namespace) -> int:
    from backends.twin.choose import Choice
    from backends.twin.server.cli import OptionError, Options, run

    try:
        return run(
            Options(
                twin=Choice(options.calibration, options.card, options.model, options.gpus),
                host=options.host,
                port=options.port,
                speed=options.speed,
                model_name=options.model_name,
                max_model_len=options.max_model_len,
                scheduling_policy=options.scheduling_policy,
                max_num_queued_reqs=options.max_num_queued_reqs,
                max_num_seqs=options.max_num_seqs,
                max_num_batched_tokens=options.max_num_batched_tokens,
                sleep_mode=options.enable_sleep_mode,
                wake_seconds=options.wake_seconds,
            )
        )
    except OptionError as error:
        print(f"joulegate: {error}", file=sys.stderr)
        return EXIT_USAGE


if __name__ == "__main__":
    sys.exit(main())
