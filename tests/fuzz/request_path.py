"""Coverage-guided fuzzing of the request path, with atheris: `python -m tests.fuzz.request_path -max_total_time=60`.

All of the gateway is real; only the two sockets are not. An input is one byte that says how the rest is cut into reads,
and the rest: what a client sends. The engine answers at once. What must hold is what the tests with real sockets ask.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import Any, cast

import atheris

with atheris.instrument_imports(include=["proxy", "backends"]):
    from backends.vllm.connection import EngineConnection
    from proxy.app import App
    from proxy.config_file import load
    from proxy.http.connection import ClientConnection
    from proxy.http.server import Server

from tests.fuzz.oracle import check_answers, check_engine
from tests.fuzz.wire import read_requests

BODY_MAX = 1024
LIMITS = {"body_bytes": BODY_MAX, "header_bytes": 1024, "url_bytes": 128, "header_count": 16}
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n"
_GET = b"GET / HTTP/1.1\r\nhost: x\r\n"
_POST = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n"
SEEDS = [
    b"\x00" + _GET + b"\r\n",
    b"\x03" + _POST + b'content-length: 27\r\n\r\n{"model":"m","stream":true}',
    b"\x07" + _POST + b"transfer-encoding: chunked\r\n\r\n2;a=b\r\n{}\r\n0\r\nx: y\r\n\r\n" + _GET + b"\r\n",
    b"\x01HEAD http://h/a?b HTTP/1.1\r\nhost: x\r\nx-workflow-id: r\r\n\r\n",
    b"\x00OPTIONS * HTTP/1.0\r\nconnection: keep-alive\r\n\r\n" + _GET + b"\r\n",
    b"\x00" + _GET + b"connection: upgrade, close\r\nupgrade: h2c\r\n\r\n" + _GET + b"\r\n",
    b"\x00" + _POST + b'expect: 100-continue\r\ncontent-length: 24\r\n\r\n{"workflow":{"id":"r1"}}',
]
WORDS = [
    "HTTP/1.1",
    "HTTP/1.0",
    "GET",
    "POST",
    "HEAD",
    "CONNECT",
    "PUT",
    "http://[",
    "host:",
    "content-length:",
    "transfer-encoding:",
    "chunked",
    "upgrade:",
    "expect:",
    "connection:",
    "close",
    "keep-alive",
    "100-continue",
    "http://",
    "/w/",
    "/v1/completions",
    "x-workflow-id:",
    "x-workflow-final:",
    "content-type:",
    '"workflow":',
    '"stream":',
    '"stream_options":',
    '"include_usage":',
    "true",
    "null",
    "\\u0077",
    "{}",
    "[]",
    '"id":',
    "content-encoding:",
    "gzip",
]


class Wire:
    """Stands for a transport: what is written is kept; `connection_lost` comes when the round says so."""

    def __init__(self) -> None:
        self.written = bytearray()
        self.ended = self.closing = False

    def write(self, data: bytes) -> None:
        assert not self.ended, "written behind the end"
        if not self.closing:
            self.written += data

    def writelines(self, parts: tuple[bytes, ...]) -> None:
        self.write(b"".join(parts))

    def write_eof(self) -> None:
        self.ended = True

    def can_write_eof(self) -> bool:
        return True

    def close(self) -> None:
        self.closing = True

    abort = close

    def is_closing(self) -> bool:
        return self.closing

    def pause_reading(self) -> None:
        """Reads are few here."""

    resume_reading = pause_reading

    def set_write_buffer_limits(self, high: int) -> None:
        assert high > 0

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, _name: str) -> None:
        return None


class Round:
    """The gateway, and one input after the other. The loop only lends its clock: it never runs meanwhile."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self.loop)
        self.loop.run_until_complete(self._build())

    async def _build(self) -> None:
        self.app = App(load(None, {}, {
            "engines": [{"url": "http://127.0.0.1:1"}], "log": {"path": "/dev/null"}, "limits": LIMITS,
        }))  # fmt: skip
        self.gateway = self.app.gateway
        (self.engine,) = self.gateway.engines.values()

    def __call__(self, data: bytes) -> None:
        """One connection from its beginning to its end."""
        server, pool = self.gateway.server, self.engine.pool
        upstream, wire, engine = Wire(), Wire(), EngineConnection(self.engine.pool)
        engine.connection_made(cast(Any, upstream))
        pool.open_connections.add(engine)
        pool.give_back(engine)
        client = ClientConnection(cast(Server, server))
        client.connection_made(cast(Any, wire))
        step, stream = (data[0] if data else 0) or len(data) or 1, data[1:]
        asked = 0
        for at in range(0, len(stream), step):
            if wire.closing:
                break
            client.data_received(stream[at : at + step])
            while engine.answer is not None:
                head_only = upstream.written[asked:].startswith(b"HEAD ")
                asked = len(upstream.written)
                engine.data_received(ANSWER if head_only else ANSWER + b"{}")
                if engine.closed:  # a HEAD's answer ends its connection
                    engine.connection_lost(None)
                    engine = EngineConnection(pool)
                    engine.connection_made(cast(Any, upstream))
                    upstream.closing = False
                    pool.open_connections.add(engine)
                    pool.give_back(engine)
        client.connection_lost(None)
        engine.connection_lost(None)
        self._judge(stream, bytes(wire.written), bytes(upstream.written))

    def _judge(self, stream: bytes, answers: bytes, sent: bytes) -> None:
        reading = read_requests(stream, BODY_MAX)
        got = read_requests(sent, 1 << 20)
        assert got.end == "clean", f"the engine was sent {sent!r}"
        check_engine(got.requests, reading, bodies=False)
        check_answers(answers, reading, cut_off=True)
        gateway = self.gateway
        assert not gateway.exchanges
        assert not gateway.server.connections
        assert gateway.server.buffered_bytes == 0
        gateway.scheduler.validate()
        gateway.settle()


def main() -> None:
    """Fuzz, beginning with the seeds; libFuzzer's options are passed on. A failing input is printed."""
    one = Round()

    @atheris.instrument_func
    def target(data: bytes) -> None:
        try:
            one(data)
        except BaseException:
            print(f"\nthe input was {data!r}", file=sys.stderr, flush=True)
            raise

    with tempfile.TemporaryDirectory() as folder:
        corpus, words = Path(folder, "corpus"), Path(folder, "words")
        corpus.mkdir()
        for number, seed in enumerate(SEEDS):
            (corpus / str(number)).write_bytes(seed)
        words.write_text("".join([f"{json.dumps(word)}\n" for word in WORDS]))
        options = ["-max_len=1500", f"-dict={words}", f"-artifact_prefix={folder}/", *sys.argv[1:], str(corpus)]
        atheris.Setup([sys.argv[0], *options], target)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
