"""vLLM's sleep mode over HTTP: does it sleep, put it to sleep, wake it up.

vLLM serves `/sleep`, `/wake_up` and `/is_sleeping` with VLLM_SERVER_DEV_MODE=1 only, and can do what they say where it
was started with --enable-sleep-mode. At level 1 the weights go to the host's memory and the KV cache is forgotten.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import orjson

from backends.vllm.fetch import FetchFailed, fetch

if TYPE_CHECKING:
    from backends.vllm.pool import EnginePool

HOW = "vLLM has it with --enable-sleep-mode and VLLM_SERVER_DEV_MODE=1"
SLEEP = "/sleep?level=1&mode=wait"
"""`mode=wait`: what others than we have running there ends first; without it vLLM aborts that."""
WAKE_UP = "/wake_up"
IS_SLEEPING = "/is_sleeping"
SAID_CHARACTERS = 200
ABSENT = frozenset((404, 405, 501))


class Asleep(NamedTuple):
    """What an engine says of itself. `asleep` None: nothing, `detail` why; `able` False: it has no sleep mode."""

    asleep: bool | None
    able: bool = True
    detail: str = ""


async def is_sleeping(pool: EnginePool, prefix: str, fields: bytes, timeout_seconds: float) -> Asleep:
    """Ask it. `prefix`: of its paths."""
    try:
        status, body = await fetch(pool, prefix + IS_SLEEPING, fields, timeout_seconds)
    except FetchFailed as failed:
        return Asleep(None, detail=str(failed))
    if status in ABSENT:
        return Asleep(None, able=False, detail=f"{status} for GET {IS_SLEEPING}; {HOW}")
    if status != 200:
        return Asleep(None, detail=f"{status} for GET {IS_SLEEPING}")
    try:
        said = orjson.loads(body)["is_sleeping"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        said = None
    if not isinstance(said, bool):
        return Asleep(None, detail=f"GET {IS_SLEEPING} does not say whether it sleeps")
    return Asleep(said)


async def sleep(pool: EnginePool, prefix: str, fields: bytes, timeout_seconds: float) -> str:
    """Put it to sleep; "" when it sleeps, else why not."""
    return await _move(pool, prefix, SLEEP, fields, timeout_seconds, asleep=True)


async def wake_up(pool: EnginePool, prefix: str, fields: bytes, timeout_seconds: float) -> str:
    """Wake it up; "" when it is awake, else why not."""
    return await _move(pool, prefix, WAKE_UP, fields, timeout_seconds, asleep=False)


async def _move(
    pool: EnginePool, prefix: str, path: str, fields: bytes, timeout_seconds: float, *, asleep: bool
) -> str:
    try:
        status, body = await fetch(pool, prefix + path, fields, timeout_seconds, "POST")
    except FetchFailed as failed:
        return str(failed)
    if status in ABSENT:
        return f"{status} for POST {path}; {HOW}"
    if status >= 300:
        return f"{status} for POST {path}: {body[:SAID_CHARACTERS].decode(errors='replace')}"
    said = await is_sleeping(pool, prefix, fields, timeout_seconds)  # its answer to the POST differs by version
    if said.asleep is asleep:
        return ""
    return said.detail or f"POST {path} was answered {status}, and it {'is awake' if asleep else 'sleeps'} all the same"
