"""`joulegate agent`: serve until told to stop, then put every card back."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import web

from backends.power.actuator import Actuator
from backends.power.agent.app import CONNECTIONS_MAX, KEEP_ALIVE_SECONDS, TooMany, application, http_log
from backends.power.agent.desk import LEASE_SECONDS, Desk
from backends.power.device import Unavailable
from backends.power.lease import LeaseFault, default_folder
from backends.power.opening import UnknownGpu, Where, open_device
from backends.power.rapl import ROOT, zones
from backends.power.tokens import BadToken, read_token

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from backends.power.device import PowerDevice

EXPIRE_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says."""

    token_file: Path
    host: str = "127.0.0.1"
    port: int = 8082
    gpus: Sequence[str] = ()
    """empty: all that the driver knows, to be read"""
    actuate: bool = False
    zeusd: str = ""
    rapl_root: Path = ROOT
    lease_folder: Path | None = None
    lease_seconds: float = LEASE_SECONDS


class OptionError(Exception):
    """An option that cannot be used; the message names it."""


def run(options: Options) -> int:
    """Serve. 0 when told to stop, 1 if it cannot. OptionError."""
    import uvloop

    try:
        token = read_token(options.token_file)
    except BadToken as bad:
        raise OptionError(f"--token-file: {bad}") from None
    if options.actuate and not options.gpus:
        raise OptionError("--actuate needs --gpus: a GPU that is not named is never touched")
    try:
        return uvloop.run(_serve(options, token))
    except (OSError, LeaseFault) as error:
        print(f"joulegate agent: {error}", file=sys.stderr)
        return 1


def devices_of(options: Options) -> dict[str, PowerDevice]:
    """The devices, by the names under which they are served. OptionError."""
    devices: dict[str, PowerDevice] = {}
    names = list(options.gpus)
    if not names:
        try:
            from backends.power.nvml import uuids

            names = uuids()
        except Unavailable as none:
            _say(f"no GPUs: {none}")
    for name in names:
        try:
            devices[name] = open_device(name, Where(zeusd=options.zeusd))
        except UnknownGpu as unknown:
            raise OptionError(f"--gpus: {unknown}") from None
    try:
        devices.update({f"rapl:{zone.name}": zone for zone in zones(options.rapl_root)})
    except Unavailable as none:
        _say(f"no processors: {none}")
    return devices


async def _serve(options: Options, token: str) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with serving(options, token):
        await stop.wait()
    return 0


@contextlib.asynccontextmanager
async def serving(options: Options, token: str) -> AsyncIterator[int]:
    """Serve on the running loop until the context ends; gives the port. OSError, LeaseFault, OptionError."""
    devices = await asyncio.to_thread(devices_of, options)
    gpus = {name: device for name, device in devices.items() if device.can_set_limit}
    folder = options.lease_folder or (default_folder() if options.actuate else Path("/nonexistent"))
    actuator = Actuator(gpus, "actuate" if options.actuate else "observe", folder, _say)
    desk = Desk(devices, actuator, options.lease_seconds)
    runner = web.AppRunner(
        application(desk, token),
        access_log=None,
        logger=http_log,
        handle_signals=False,
        keepalive_timeout=KEEP_ALIVE_SECONDS,
        lingering_time=1.0,
        shutdown_timeout=1.0,
    )
    await actuator.start()
    expiring = asyncio.ensure_future(_expire(desk))
    await runner.setup()
    try:
        web_server = runner.server
        assert web_server is not None

        def connection() -> asyncio.BaseProtocol:
            return web_server() if len(web_server.connections) < CONNECTIONS_MAX else TooMany()

        server = await asyncio.get_running_loop().create_server(connection, options.host, options.port)
        port = int(server.sockets[0].getsockname()[1])
        _ready(options, port, devices)
        try:
            yield port
        finally:
            server.close()
    finally:
        expiring.cancel()
        await runner.cleanup()
        await actuator.close()
        desk.close()


async def _expire(desk: Desk) -> None:
    while True:
        await asyncio.sleep(EXPIRE_SECONDS)
        await desk.expire()


def _ready(options: Options, port: int, devices: dict[str, PowerDevice]) -> None:
    what = "reads and sets" if options.actuate else "only reads"
    _say(f"http://{options.host}:{port} {what} {', '.join(devices) or 'nothing'}")
    if not is_loopback(options.host):
        _say("the token crosses the network in clear: put a proxy with TLS before it (docs/power.md says how)")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _say(text: str) -> None:
    print(f"joulegate agent: {text}", file=sys.stderr, flush=True)
