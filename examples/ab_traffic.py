"""Traffic to try an experiment on: one-call workflows at random times, each with a deadline. Python alone is enough.

python examples/ab_traffic.py http://127.0.0.1:8080 MODEL --seconds 285 --rate 12
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor


def ask(url: str, body: dict[str, object], workflow: str, deadline_ms: int) -> int:
    """One call that is a whole workflow; returns its output tokens."""
    headers = {
        "content-type": "application/json", "x-workflow-id": workflow, "x-workflow-final": "true",
        "x-workflow-deadline-ms": str(deadline_ms),
    }  # fmt: skip
    request = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode(), headers)  # noqa: S310
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
        tokens: int = json.load(answer)["usage"]["completion_tokens"]
        return tokens


async def main() -> None:
    """Calls at random times, whatever became of those before."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("model")
    parser.add_argument("--seconds", type=float, default=285.0)
    parser.add_argument("--rate", type=float, default=12.0, help="calls a second")
    parser.add_argument("--deadline-ms", type=int, default=1500)
    options = parser.parse_args()
    rng, loop = random.Random(1), asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(256))
    run = f"{rng.randrange(2**32):x}-{loop.time():.0f}"
    ends, calls = loop.time() + options.seconds, []
    while loop.time() < ends:
        body = {
            "model": options.model, "prompt": "tell me " * rng.randrange(20, 400), "ignore_eos": True,
            "max_tokens": rng.randrange(50, 400),
        }  # fmt: skip
        name = f"{run}-{len(calls)}"
        calls.append(asyncio.ensure_future(asyncio.to_thread(ask, options.url, body, name, options.deadline_ms)))
        await asyncio.sleep(rng.expovariate(options.rate))
    tokens = await asyncio.gather(*calls)
    sys.stdout.write(f"{len(tokens)} workflows, {sum(tokens)} output tokens\n")


if __name__ == "__main__":
    asyncio.run(main())
