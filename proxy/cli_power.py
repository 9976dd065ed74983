"""The subcommands `joulegate power …` and `joulegate agent`: their options."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from backends.power.cli import Options
    from proxy.power_config import PowerConfig

EXIT_USAGE = 2


def add_commands(commands: Any) -> None:
    """Both, to the subcommands of a parser."""
    power = commands.add_parser("power", help="what GPUs and processors draw, and limits put back; without a gateway")
    whats = power.add_subparsers(required=True, metavar="WHAT")
    for name, text in (
        ("status", "what every device says, and who sets which limit"),
        ("restore", "put back the limits that an ended process has left changed"),
    ):
        what = whats.add_parser(name, help=text)
        what.add_argument("--config", type=Path, metavar="FILE", help="take [power] and the engines' GPUs from it")
        what.add_argument("--lease-dir", type=Path, metavar="DIR", help="where leases lie (default: as the gateway's)")
        what.add_argument("--json", action="store_true", help="print JSON")
        what.set_defaults(run=_power, what=name, gpus=None)
        if name == "status":
            what.add_argument("--gpus", type=_names, metavar="GPU,…", help="only these (default: all of this host)")
    _add_agent(commands)


def _add_agent(commands: Any) -> None:
    agent = commands.add_parser("agent", help="serve this host's power devices to a gateway elsewhere")
    agent.add_argument(
        "--token-file", type=Path, required=True, metavar="F", help="its first line is asked of everyone"
    )
    agent.add_argument("--host", default="127.0.0.1", help="where gateways connect (default: 127.0.0.1)")
    agent.add_argument("--port", type=_port, default=8082, help="0 takes a free one (default: 8082)")
    agent.add_argument("--gpus", type=_names, default=(), metavar="GPU,…", help="UUIDs, indexes or PCI bus ids")
    agent.add_argument("--actuate", action="store_true", help="let gateways set limits of the --gpus (default: read)")
    agent.add_argument("--lease-dir", type=Path, metavar="DIR", help="where leases lie")
    agent.add_argument(
        "--lease-seconds", type=_lease_seconds, default=10.0, metavar="S",
        help="a gateway that is not heard of for so long loses the card, which is put back (default: 10)",
    )  # fmt: skip
    agent.add_argument("--zeusd", default="", metavar="ADDR", help="set limits through it: unix:/path or http://…")
    agent.add_argument("--rapl-root", type=Path, default=Path("/sys/class/powercap"), metavar="DIR")
    agent.set_defaults(run=_agent)


def _power(options: argparse.Namespace) -> int:
    from pydantic import ValidationError

    from backends.power import cli

    try:
        chosen = _chosen(options)
    except ValidationError as wrong:
        for fault in wrong.errors():
            print_error(f"{options.config}: {'.'.join(map(str, ('power', *fault['loc'])))}: {fault['msg']}")
        return EXIT_USAGE
    except (OSError, ValueError) as error:
        print_error(f"{options.config}: {error}")
        return EXIT_USAGE
    return cli.status(chosen) if options.what == "status" else cli.restore(chosen)


def _chosen(options: argparse.Namespace) -> Options:
    """What the command line says, and for the rest the file. OSError, ValueError."""
    from backends.power.cli import Options

    config, gpus = _of_file(options.config)
    return Options(
        gpus=options.gpus if options.gpus is not None else gpus,
        where=config.where(),
        rapl_root=config.rapl_root,
        lease_folder=options.lease_dir or config.lease_dir,
        as_json=options.json,
    )


def _of_file(file: Path | None) -> tuple[PowerConfig, tuple[str, ...]]:
    """[power], and every GPU that an engine names. The rest of the file may be wrong: limits must be restorable."""
    import tomllib

    from proxy.power_config import PowerConfig

    if file is None:
        return PowerConfig(), ()
    tables = tomllib.loads(file.read_text())
    config = PowerConfig.model_validate(tables.get("power", {}))
    engines = [engine for engine in tables.get("engines", []) if isinstance(engine, dict)]
    named = [engine.get("gpus") for engine in engines]
    gpus = [str(gpu) for names in named if isinstance(names, list) for gpu in names]
    return config, tuple(dict.fromkeys(gpus))


def _agent(options: argparse.Namespace) -> int:
    from backends.power.agent.cli import OptionError, Options, run

    try:
        return run(
            Options(
                token_file=options.token_file,
                host=options.host,
                port=options.port,
                gpus=options.gpus,
                actuate=options.actuate,
                zeusd=options.zeusd,
                rapl_root=options.rapl_root,
                lease_folder=options.lease_dir,
                lease_seconds=options.lease_seconds,
            )
        )
    except OptionError as error:
        print_error(str(error))
        return EXIT_USAGE


def print_error(text: str) -> None:
    """Say it where errors go."""
    sys.stderr.write(f"joulegate: {text}\n")


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names or len(names) > 256:
        raise argparse.ArgumentTypeError("must be 1 to 256 names with commas between them")
    return names


def _lease_seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, not {text!r}") from None
    if not 1 <= value <= 300:
        raise argparse.ArgumentTypeError(f"must be from 1 to 300, not {text}")
    return value


def _port(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, not {text!r}") from None
    if not 0 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"must be from 0 to 65535, not {text}")
    return value
