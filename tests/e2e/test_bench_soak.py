"""The soak notices what a gateway leaves behind, told by a control port of the test's own."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from bench.overhead import ProxyFailedError
from bench.overhead_peers import Proxy
from bench.programs import Programs
from bench.soak import Soak, idle_levels, leftovers, read_state

IDLE = {
    "tasks": 7,
    "client_connections": 0,
    "calls": 0,
    "engine_connections_busy": 0,
    "engine_connections_idle": 1,
    "buffered_bytes": 0,
}


@contextmanager
def control_port(states: list[Any]) -> Iterator[Soak]:
    """Answers each GET with the next state, and with the last one from then on."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(states.pop(0) if len(states) > 1 else states[0]).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            here = Path()
            proxy = Proxy("test", [], 0, "test")
            yield Soak(Programs(here, here), here, proxy, server.server_port, os.getpid(), None, 1)
        finally:
            server.shutdown()
            thread.join()


def state(**changes: int) -> dict[str, Any]:
    return {"process": IDLE | changes}


def test_idle_level_is_the_least_seen() -> None:
    states = [state(tasks=9, engine_connections_idle=5), state(tasks=8), state(tasks=7, engine_connections_idle=3)]
    with control_port(states) as soak:
        levels = idle_levels(soak, quiet_seconds=0.3)
    assert (levels["tasks"], levels["engine_connections_idle"], levels["calls"]) == (7, 1, 0)
    assert levels["open_files"] > 0


@pytest.mark.parametrize(
    ("changes", "left"),
    [
        ({"calls": 1}, {"calls": "1, not 0"}),
        ({"tasks": 8}, {"tasks": "8, not 7"}),
        (
            {"client_connections": 2, "buffered_bytes": 9},
            {"client_connections": "2, not 0", "buffered_bytes": "9, not 0"},
        ),
        ({"engine_connections_busy": 1}, {"engine_connections_busy": "1, not 0"}),
        ({"engine_connections_idle": 0, "tasks": 6}, {}),
    ],
)
def test_what_stays_is_left_over(changes: dict[str, int], left: dict[str, str]) -> None:
    with control_port([state(**changes)]) as soak:
        assert leftovers(soak, IDLE | {"open_files": 10**6}, settle_seconds=0) == left


def test_open_files_are_left_over() -> None:
    with control_port([state()]) as soak:
        assert list(leftovers(soak, IDLE | {"open_files": 1}, settle_seconds=0)) == ["open_files"]


def test_what_falls_in_time_is_not() -> None:
    with control_port([state(calls=3, tasks=9), state(calls=1), state()]) as soak:
        assert leftovers(soak, IDLE | {"open_files": 10**6}, settle_seconds=60) == {}


def test_held_calls_count_where_they_are_told() -> None:
    with control_port([state(held=2)]) as soak:
        assert leftovers(soak, IDLE | {"held": 0, "open_files": 10**6}, settle_seconds=0) == {"held": "2, not 0"}


@pytest.mark.parametrize(
    "answer", [{}, [], {"process": None}, {"process": {"tasks": 1}}, {"process": IDLE | {"calls": "many"}}]
)
def test_a_state_without_counts_is_a_failure(answer: Any) -> None:
    with control_port([answer]) as soak, pytest.raises(ProxyFailedError, match="did not tell the process's counts"):
        read_state(soak)
