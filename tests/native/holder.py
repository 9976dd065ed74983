"""A process that sets limits as a gateway does. Run as a module; commands on standard input, a JSON line for each.

    python -m tests.native.holder LEASE_FOLDER GPU [WATCHDOG REDIS_URL]

GPU is names with commas between them, or a lease's `spec`.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path

from backends.power.actuator import Actuator
from backends.power.device import PowerDevice
from backends.power.opening import Where, open_device, reopen
from backends.power.sample import take


async def main() -> None:
    """`limit W`, `clock LOW HIGH`, `look`, `resume`, `watchdog`; the end of input, or SIGTERM, is an orderly end."""
    folder, gpu, watchdog, redis_url = sys.argv[1:] + ["", "", "yes", ""][len(sys.argv) - 1 :]
    devices = {gpu: reopen(json.loads(gpu))} if gpu.startswith("{") else _named(gpu)
    first = next(iter(devices))
    said: list[str] = []
    actuator = Actuator(devices, "actuate", Path(folder), said.append, watchdog=watchdog == "yes", redis_url=redis_url)
    await actuator.start()
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)

    async def commands() -> None:
        while line := (await reader.readline()).decode():
            answer(await obey(line.split()))
        ended.set()

    async def obey(words: list[str]) -> object:
        match words:
            case ["limit", watts]:
                outcomes = await actuator.set_together(list(devices), float(watts))
                return next((one for one in outcomes if one.state != "applied"), outcomes[0])._asdict()
            case ["clock", low, high]:
                return (await actuator.lock_sm_clock_mhz(first, (float(low), float(high))))._asdict()
            case ["look"]:
                actuator.see(await asyncio.to_thread(take, first, devices[first]))
                await asyncio.gather(*actuator._tasks)
                return {**actuator.state()[first], "said": said}
            case ["resume"]:
                actuator.resume(first)
                return {}
            case ["watchdog"]:
                return {"pid": actuator._watchdog.pid if actuator._watchdog else None}
        raise AssertionError(words)

    def answer(fields: object) -> None:
        print(json.dumps(fields), flush=True)

    answer({"said": said})
    task = asyncio.ensure_future(commands())
    await ended.wait()
    task.cancel()
    answer([done._asdict() for done in await actuator.close()])


def _named(gpus: str) -> dict[str, PowerDevice]:
    return {gpu: open_device(gpu, Where()) for gpu in gpus.split(",")}


if __name__ == "__main__":
    asyncio.run(main())
