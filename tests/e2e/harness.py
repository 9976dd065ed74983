"""What the end-to-end tests stand on: a scripted engine and a whole gateway, both on real sockets in one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import uvloop

from proxy.app import App
from proxy.config_file import load

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine

    from proxy.config import Config

T = TypeVar("T")
WAIT_SECONDS = 20.0
"""No test waits longer for anything; what is waited for is an event, never time itself."""


def run(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a test's coroutine on uvloop, bounded."""

    async def bounded() -> T:
        async with asyncio.timeout(3 * WAIT_SECONDS):
            return await main()

    return uvloop.run(bounded())


async def until(condition: Callable[[], bool], what: str, seconds: float = WAIT_SECONDS) -> None:
    """Wait until something that has no event of its own is true."""
    try:
        async with asyncio.timeout(seconds):
            while not condition():  # noqa: ASYNC110  # it is not ours to signal
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"never happened: {what}") from None


@dataclass
class EngineRequest:
    """One request as the engine got it, and the means to answer it."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    def header(self, name: str) -> str | None:
        """The value of a header, or None; two of a name fail the test."""
        values = [value for key, value in self.headers if key.lower() == name]
        assert len(values) < 2, f"{name} is there twice: {values}"
        return values[0] if values else None

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    async def send(self, data: bytes) -> None:
        """Write raw bytes."""
        self.writer.write(data)
        await self.writer.drain()

    async def answer(
        self, body: bytes, *, status: str = "200 OK", headers: str = "", kind: str = "application/json"
    ) -> None:
        """A plain answer."""
        await self.send(
            f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n{headers}\r\n".encode() + body
        )

    async def begin_stream(self, kind: str = "text/event-stream; charset=utf-8") -> None:
        """The head of a chunked answer."""
        await self.send(f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\n\r\n".encode())

    async def chunk(self, data: bytes) -> None:
        """One chunk of it."""
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def end_stream(self) -> None:
        """Its regular end."""
        await self.send(b"0\r\n\r\n")

    def reset(self) -> None:
        """Break the connection off as a killed process does."""
        self.writer.transport.abort()


class ScriptedEngine:
    """An HTTP server that answers as the test wants. Health, models and metrics answer by themselves."""

    def __init__(self, answer: Callable[[EngineRequest], Awaitable[None]], models: tuple[str, ...] = ("m",)) -> None:
        self.answer = answer
        self.models = models
        self.healthy = True
        self.requests: list[EngineRequest] = []
        self.probes = 0
        self.connections = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0

    @property
    def url(self) -> str:
        """Its base URL."""
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Listen; a second time on the same port as before."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def kill(self) -> None:
        """Die as a process does: no listener, every connection reset."""
        assert self._server is not None
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        self.connections += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                request = await self._read(reader, writer)
                if not await self._own(request):
                    self.requests.append(request)
                    await self._answer(request)
        self._tasks.discard(task)
        self._writers.discard(writer)
        writer.close()

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> EngineRequest:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.rstrip("\r\n").split("\r\n")
        method, target, _ = first.split(" ")
        headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        length = [int(value) for name, value in headers if name.lower() == "content-length"]
        body = await reader.readexactly(length[0]) if length else b""
        return EngineRequest(method, target, headers, body, reader, writer)

    async def _own(self, request: EngineRequest) -> bool:
        path = request.target
        if path == "/health":
            self.probes += 1
            await request.answer(b"", status="200 OK" if self.healthy else "503 Service Unavailable")
        elif path == "/v1/models" and request.header("user-agent") == "joulegate":
            data = [{"id": name, "object": "model", "max_model_len": 2048} for name in self.models]
            await request.answer(json.dumps({"object": "list", "data": data}).encode())
        elif path == "/metrics" and request.header("user-agent") == "joulegate":
            await request.answer(b'vllm:num_requests_running{engine="0"} 3.0\n', kind="text/plain")
        elif path == "/power" and request.header("user-agent") == "joulegate":  # is it a twin?
            await request.answer(b"{}", status="404 Not Found")
        else:
            return False
        return True

    async def _answer(self, request: EngineRequest) -> None:
        """Answer, while watching whether the peer leaves."""
        watch = asyncio.ensure_future(request.reader.read(1))
        watch.add_done_callback(lambda _: request.gone.set())
        try:
            await self.answer(request)
        finally:
            if not watch.done():
                watch.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await watch
        if watch.done() and not watch.cancelled():
            raise ConnectionResetError


@contextlib.asynccontextmanager
async def engine(
    answer: Callable[[EngineRequest], Awaitable[None]], models: tuple[str, ...] = ("m",)
) -> AsyncIterator[ScriptedEngine]:
    """A running scripted engine."""
    scripted = ScriptedEngine(answer, models)
    await scripted.start()
    try:
        yield scripted
    finally:
        await scripted.kill()


class RunningGateway:
    """A gateway in this event loop."""

    def __init__(self, app: App, port: int, control_port: int) -> None:
        self.app = app
        self.port = port
        self.control_port = control_port
        self.clients: list[Client] = []
        self.faults_expected = 0
        """Of the gateway's own, reported as `internal_error`."""

    async def connect(self) -> Client:
        """A new client connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        client = Client(reader, writer)
        self.clients.append(client)
        return client

    async def request(self, data: bytes) -> Answer:
        """One raw request on a connection of its own."""
        client = await self.connect()
        try:
            await client.send(data)
            return await client.answer()
        finally:
            client.close()

    async def post(self, path: str, body: object, headers: str = "") -> Answer:
        """One JSON request on a connection of its own."""
        return await self.request(post(path, body, headers))

    def idle(self) -> bool:
        """Nothing is left of any call."""
        process = self.app.state()["process"]
        return process["calls"] == process["buffered_bytes"] == process["engine_connections_busy"] == 0


def post(path: str, body: object, headers: str = "") -> bytes:
    """The bytes of a POST request; `body` as JSON, or as it is if it is bytes."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: gateway\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n"
    return head.encode() + headers.encode() + b"\r\n" + data


@dataclass
class Answer:
    """An answer as the client got it. `complete`: it ended as HTTP says it should."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    complete: bool = True

    def header(self, name: str) -> str | None:
        """The value of a header, or None; two of a name fail the test."""
        values = [value for key, value in self.headers if key.lower() == name]
        assert len(values) < 2, f"{name} is there twice: {values}"
        return values[0] if values else None

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    def assert_error(self, status: int, reason: str | None = None) -> dict[str, Any]:
        """It is an error of the gateway's in OpenAI's shape; returns the error object."""
        assert self.status == status, (self.status, self.body)
        error = self.json["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert error["message"] and error["type"]
        assert self.header("x-joulegate-reason") == error["code"]
        if reason is not None:
            assert error["code"] == reason, error
        assert "Traceback" not in error["message"]
        return dict(error)


class Client:
    """A raw HTTP client: what is on the wire is what the test sees."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        """Write raw bytes."""
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> Answer:
        """The head of an answer, its body unread; interim answers are passed over."""
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                first, *lines = head.rstrip("\r\n").split("\r\n")
                status = int(first.split(" ")[1])
                if status >= 200:
                    break
        return Answer(
            status, [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)], b""
        )

    async def chunk(self) -> bytes:
        """The next chunk of a chunked body; b"" = its regular end. IncompleteReadError if it is cut off."""
        async with asyncio.timeout(WAIT_SECONDS):
            size = int(await self.reader.readuntil(b"\r\n"), 16)
            data = await self.reader.readexactly(size)
            assert await self.reader.readexactly(2) == b"\r\n"
        return data

    async def answer(self, *, no_body: bool = False) -> Answer:
        """A whole answer."""
        answer = await self.head()
        if no_body or answer.status in (204, 304):
            return answer
        try:
            if (length := answer.header("content-length")) is not None:
                assert answer.header("transfer-encoding") is None
                async with asyncio.timeout(WAIT_SECONDS):
                    answer.body = await self.reader.readexactly(int(length))
            elif answer.header("transfer-encoding") == "chunked":
                while data := await self.chunk():
                    answer.body += data
            else:
                async with asyncio.timeout(WAIT_SECONDS):
                    answer.body = await self.reader.read()
        except asyncio.IncompleteReadError as cut:
            answer.body += cut.partial
            answer.complete = False
        except ConnectionError:
            answer.complete = False
        return answer

    async def closed(self) -> bytes:
        """Wait until the gateway closes the connection; what came before that."""
        async with asyncio.timeout(WAIT_SECONDS):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""

    def close(self) -> None:
        """Leave."""
        self.writer.close()

    def abort(self) -> None:
        """Leave as a killed process does."""
        self.writer.transport.abort()


def configuration(*engines: ScriptedEngine | str, log: str = "/dev/null", **tables: Any) -> Config:
    """What `gateway` runs with."""
    urls = [item if isinstance(item, str) else item.url for item in engines]
    overrides: dict[str, Any] = {
        "engines": [{"url": url} for url in urls],
        "listen": {"port": 0, "control_port": 0},
        "log": {"path": log},
        "health": {"probe_seconds": 0.1, "open_seconds": 0.2},
    }
    for name, table in tables.items():
        if isinstance(table, dict):
            overrides[name] = {**overrides.get(name, {}), **table}
        else:
            overrides[name] = table
    return load(None, {}, overrides)


@contextlib.asynccontextmanager
async def gateway(
    *engines: ScriptedEngine | str, log: str = "/dev/null", **tables: Any
) -> AsyncIterator[RunningGateway]:
    """A whole gateway in front of these engines; `tables` as in the configuration file. At the end nothing is left."""
    app = App(configuration(*engines, log=log, **tables))
    ports: asyncio.Future[tuple[int, int]] = asyncio.get_running_loop().create_future()
    serving = asyncio.ensure_future(app.run(lambda port, control: ports.set_result((port, control))))
    await asyncio.wait([serving, ports], return_when=asyncio.FIRST_COMPLETED)
    if serving.done():
        serving.result()
    running = RunningGateway(app, *ports.result())
    for item in engines:
        if isinstance(item, ScriptedEngine):
            state = app.gateway.engines[f"127.0.0.1:{item.port}"]
            await until(lambda state=state: state.load is not None, "the first probe")  # type: ignore[misc]
    try:
        yield running
        await until(running.idle, f"no call left: {app.state()}")
        app.gateway.scheduler.validate()
        assert app.gateway.faults.count == running.faults_expected
    finally:
        for client in running.clients:
            client.abort()
        app.stop()
        app.stop()
        assert await serving == 0
