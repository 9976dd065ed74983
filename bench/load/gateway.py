"""How does the bench start a gateway for a configuration? As a child of its own, from a configuration file."""

from __future__ import annotations

import asyncio
import json
import re
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp

from bench.demo_children import READY_SECONDS, Child, alongside
from bench.programs import BenchError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from bench.load.engine import Engine
    from bench.load.spec import Spec

READY = re.compile(r"joulegate: (?P<url>http://\S+) in front of .*control plane (?P<control>http://[^)]+)\)")
MANY = 1_000_000
LONG_SECONDS = 1e6


def configuration(
    spec: Spec, engine: Engine, gpus: Sequence[str], api_key_env: str | None, event_log: Path | None = None
) -> str:
    """joulegate.toml: the policy, the in-flight limit, and room for everything that the bench sends. Before anything is
    learned the engine is believed to be as the calibration that tells its isolated times."""
    engine_table: dict[str, Any] = {"name": "engine", "url": engine.url, "max_connections": 65_536}
    if engine.twin_cards is None:  # a twin tells what it is
        engine_table["energy_prior"] = spec.calibration
    if spec.in_flight is not None:
        engine_table["max_in_flight"] = spec.in_flight
    if gpus:
        engine_table["gpus"] = list(gpus)
    if api_key_env is not None:
        engine_table["api_key_env"] = api_key_env
    tables: dict[str, dict[str, Any]] = {
        "listen": {"port": 0, "control_port": 0},
        "policy": {"name": spec.policy, **spec.policy_options},
        "limits": {"client_connections": 65_536, "queue_calls": MANY, "buffered_bytes": 2**33},
        "timeouts": {"queue_seconds": LONG_SECONDS, "first_byte_seconds": LONG_SECONDS},
    }
    if event_log is not None:
        tables["event_log"] = {"path": str(event_log.absolute())}
    lines = []
    for name, table in tables.items():
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
    lines += ["[[engines]]", *(f"{key} = {json.dumps(value)}" for key, value in engine_table.items())]
    return "\n".join(lines) + "\n"


@asynccontextmanager
async def gateway(
    spec: Spec, engine: Engine, gpus: Sequence[str], api_key_env: str | None, event_log: Path | None = None
) -> AsyncIterator[tuple[str, Child]]:
    """(its URL, the child), when it has found its engine well. `event_log`: file that it writes. ChildDiedError,
    BenchError."""
    with tempfile.TemporaryDirectory(prefix="joulegate-bench-") as folder:
        path = Path(folder) / "joulegate.toml"
        path.write_text(configuration(spec, engine, gpus, api_key_env, event_log), encoding="utf-8")
        child = await Child.start("gateway", ["serve", "--config", str(path)], READY)
        try:
            said = await child.ready()
            await alongside(_serving(said["url"]), (child,))
            yield said["url"], child
        finally:
            await child.end()


async def _serving(url: str) -> None:
    until = asyncio.get_running_loop().time() + READY_SECONDS
    async with aiohttp.ClientSession() as session:
        while True:
            async with session.get(f"{url}/v1/models") as answer:
                if answer.status == 200:
                    return
            if asyncio.get_running_loop().time() > until:
                raise BenchError(f"the gateway found no engine within {READY_SECONDS:g} s")
            await asyncio.sleep(0.05)
