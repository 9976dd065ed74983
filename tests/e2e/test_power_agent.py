"""`joulegate agent` as an operator starts it: who may ask, what it answers, and what becomes of the card in the end."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from backends.power.actuator import Actuator
from backends.power.agent_client import AgentDevice
from backends.power.device import HeldElsewhere, Unavailable
from backends.power.lease import leases
from backends.power.opening import AgentAt, Where, open_device
from backends.power.sample import take
from tests.e2e.harness import run
from tests.native.holding import Holder
from tests.native.nvml import FakeDriver, uuid
from tests.vllm.children import Child, joulegate_command, wait_until
from tests.vllm.wire import Answer, ask

TOKEN = "correct-horse-battery-staple"
WAIT_SECONDS = 30.0
HEADERS = {"authorization": f"Bearer {TOKEN}"}
_READY = re.compile(r"joulegate agent: (http://\S+) (reads and sets|only reads) (.*)")


class Agent(Child):
    """A running agent."""

    def __init__(self, driver: FakeDriver, folder: Path, *options: str) -> None:
        self.token_file = folder / "token"
        self.token_file.write_text(TOKEN)
        self.token_file.chmod(0o600)
        command = [*joulegate_command(), "agent", "--token-file", str(self.token_file), "--port", "0"]
        command += ["--lease-dir", str(folder / "agent-leases"), "--rapl-root", str(folder), *options]
        super().__init__(command, folder / "agent.log", {**driver.environment, "PYTHONUNBUFFERED": "1"})
        self.cards: list[AgentDevice] = []
        self.url = self.does = self.serves = ""

    def wait_said(self) -> Agent:
        """Wait for its line that says where it listens."""

        def said() -> bool:
            assert self.running, self.text()
            if found := _READY.search(self.text()):
                self.url, self.does, self.serves = found.groups()
            return bool(found)

        wait_until(said, WAIT_SECONDS, "the agent says where it listens")
        return self

    def card(self, name: str = "0", holder: str = "gateway-1") -> AgentDevice:
        """A card of it; one more for each call."""
        self.cards.append(AgentDevice(self.url, name, self.token_file, holder))
        return self.cards[-1]


@pytest.fixture
def driver(tmp_path: Path) -> FakeDriver:
    return FakeDriver(tmp_path / "driver", "gpus 2", "card 0 draw_watts 650")


@contextlib.contextmanager
def agent(driver: FakeDriver, folder: Path, *options: str) -> Iterator[Agent]:
    child = Agent(driver, folder, *options)
    try:
        yield child.wait_said()
    finally:
        for card in child.cards:
            card.close()
        child.end()
    assert "Traceback" not in child.text()


@pytest.fixture
def acting(driver: FakeDriver, tmp_path: Path) -> Iterator[Agent]:
    with agent(driver, tmp_path, "--gpus", "0", "--actuate", "--lease-seconds", "60") as child:
        yield child


# --- who may ask ---


def error_of(answer: Answer, status: int) -> str:
    assert answer.status == status, answer.body
    code: str = answer.json()["error"]["code"]
    return code


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/devices"), ("GET", "/v1/devices/0"), ("POST", "/v1/devices/0/limit"), ("GET", "/nowhere")],
)
@pytest.mark.parametrize("headers", [{}, {"authorization": f"Bearer {TOKEN}x"}, {"authorization": TOKEN}])
def test_nobody_is_answered_without_the_token(reading: Agent, method: str, path: str, headers: dict[str, str]) -> None:
    assert error_of(ask(reading.url, method, path, {"holder": "x", "watts": 300}, headers), 401) == "no_permission"


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    folder = tmp_path_factory.mktemp("agent")
    (folder / "intel-rapl:0").mkdir()
    (folder / "intel-rapl:0" / "name").write_text("package-0\n")
    (folder / "intel-rapl:0" / "energy_uj").write_text("7000000\n")
    with agent(FakeDriver(folder / "driver", "gpus 2", "card 0 draw_watts 650"), folder) as child:
        yield child


def test_it_serves_all_cards_and_processors_and_only_reads(reading: Agent) -> None:
    assert (reading.does, reading.serves) == ("only reads", f"{uuid(0)}, {uuid(1)}, rapl:package-0")
    listed = ask(reading.url, "GET", "/v1/devices", headers=HEADERS).json()["devices"]
    assert [(one["id"], one["can_set_limit"]) for one in listed] == [
        (uuid(0), False),
        (uuid(1), False),
        ("rapl:package-0", False),
    ]
    assert take("cpu", reading.card("rapl:package-0")).energy_joules == 7.0


def test_a_card_reads_through_it_as_it_does_beside_it(reading: Agent) -> None:
    card = reading.card(uuid(0))
    sample = take("gpu", card)
    assert (sample.device, sample.source, sample.state, sample.missing) == ("gpu", "measured", "ok", {})
    assert (sample.power_watts, sample.temperature_celsius) == (650.0, 47.0)
    assert sample.energy_joules is not None and sample.energy_joules >= 123456.0
    assert card.limits() == sample.limits and card.persistence_mode() is True
    assert (card.name, card.can_set_limit, card.can_lock_clocks) == ("Fake H200", False, False)


def test_it_does_not_set_what_it_was_not_told_to(reading: Agent) -> None:
    card = reading.card(uuid(0))
    with pytest.raises(Unavailable, match="--actuate") as refused:
        card.set_limit_watts(300.0)
    assert refused.value.why == "no_permission"
    with pytest.raises(Unavailable) as absent:
        reading.card("7").power_watts()
    assert absent.value.why == "absent"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'{"holder": "x"}',
        b'{"holder": "x", "watts": "300"}',
        b'{"holder": "x", "watts": NaN}',
        b'{"holder": "x", "watts": -1}',
        b'{"holder": "", "watts": 300}',
        b'{"holder": "x", "watts": 300, "more": 1}',
        b"[" * 4000,
    ],
)
def test_a_body_that_is_none_is_refused(reading: Agent, body: bytes) -> None:
    assert error_of(ask(reading.url, "POST", f"/v1/devices/{uuid(0)}/limit", body, HEADERS), 400) == "invalid"


def test_limits_on_everything(reading: Agent) -> None:
    big = ask(reading.url, "POST", f"/v1/devices/{uuid(0)}/limit", b"x" * 5000, HEADERS)
    assert big.status == 413
    parts = urlsplit(reading.url)
    address = parts.hostname or "", parts.port or 0
    open_ones = [socket.create_connection(address, timeout=WAIT_SECONDS) for _ in range(128)]
    try:
        with socket.create_connection(address, timeout=WAIT_SECONDS) as over:
            assert over.recv(1) == b"", "a connection over the limit is closed"
    finally:
        for one in open_ones:
            one.close()
    wait_until(lambda: _answers(reading), WAIT_SECONDS, "it answers again")


def _answers(agent: Agent) -> bool:
    with contextlib.suppress(OSError):
        return ask(agent.url, "GET", "/v1/devices", headers=HEADERS).status == 200
    return False


def test_what_is_not_http_leaves_one_line_in_its_log(reading: Agent) -> None:
    parts = urlsplit(reading.url)
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=WAIT_SECONDS) as one:
        one.sendall(b"nonsense\r\n\r\n")
        assert one.recv(100).startswith(b"HTTP/1.")
    assert _answers(reading)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--actuate"], "--gpus"),
        (["--gpus", "gpu-one"], "names no GPU"),
        (["--port", "99999"], "65535"),
    ],
)
def test_options_that_make_no_sense(driver: FakeDriver, tmp_path: Path, options: list[str], said: str) -> None:
    child = Agent(driver, tmp_path, *options)
    wait_until(lambda: not child.running, WAIT_SECONDS, "it ends")
    assert child.process.returncode == 2 and said in child.text() and "Traceback" not in child.text()


def test_a_token_that_others_may_read(driver: FakeDriver, tmp_path: Path) -> None:
    (tmp_path / "open").write_text(TOKEN)
    (tmp_path / "open").chmod(0o644)
    child = Agent(driver, tmp_path, "--token-file", str(tmp_path / "open"))
    wait_until(lambda: not child.running, WAIT_SECONDS, "it ends")
    assert child.process.returncode == 2 and "chmod 600" in child.text()


# --- setting ---


def test_a_limit_is_set_and_put_back(acting: Agent, driver: FakeDriver) -> None:
    card = acting.card()
    card.set_limit_watts(400.0)
    assert driver.card().limit_watts == 400.0 == card.limits().requested_watts
    card.lock_sm_clock_mhz(1000.0, 1200.0)
    assert driver.card().lock_high == 1200
    card.let_go()
    assert (driver.card().limit_watts, driver.card().lock_high) == (700.0, 0)
    assert driver.card(1).touched == 0


def test_one_holder_at_a_time(acting: Agent, driver: FakeDriver) -> None:
    first, second = acting.card(holder="gateway-1"), acting.card(holder="gateway-2")
    first.set_limit_watts(400.0)
    with pytest.raises(HeldElsewhere, match="gateway-1 sets the limit"):
        second.set_limit_watts(300.0)
    with pytest.raises(HeldElsewhere, match="gateway-1 sets the limit"):
        second.renew()
    second.let_go()
    assert driver.card().limit_watts == 400.0
    first.renew()
    first.let_go()
    second.set_limit_watts(300.0)
    assert driver.card().limit_watts == 300.0


def test_a_gateway_that_is_not_heard_of_any_more(driver: FakeDriver, tmp_path: Path) -> None:
    """Its host is gone, and with it its watchdog: the agent's own lease runs out."""
    with agent(driver, tmp_path, "--gpus", "0", "--actuate", "--lease-seconds", "1") as child:
        card = child.card()
        card.limits()
        generation = card.generation
        card.set_limit_watts(400.0)
        wait_until(lambda: driver.card().limit_watts == 700.0, WAIT_SECONDS, "the card is put back")
        assert card.limits().requested_watts == 700.0
        assert card.generation > generation, "so the gateway knows that it was not somebody else"


def test_kill_9_of_the_agent(acting: Agent, driver: FakeDriver, tmp_path: Path) -> None:
    acting.card().set_limit_watts(400.0)
    assert driver.card().limit_watts == 400.0
    os.kill(acting.process.pid, signal.SIGKILL)
    wait_until(lambda: driver.card().limit_watts == 700.0, WAIT_SECONDS, "the card is put back")
    wait_until(lambda: leases(tmp_path / "agent-leases") == [], WAIT_SECONDS, "the lease is removed")
    sample = take("gpu", acting.card())
    assert (sample.state, sample.energy_joules) == ("unreachable", None)


def test_sigterm_of_the_agent(acting: Agent, driver: FakeDriver, tmp_path: Path) -> None:
    acting.card().set_limit_watts(400.0)
    os.kill(acting.process.pid, signal.SIGTERM)
    assert acting.process.wait(WAIT_SECONDS) == 0
    assert driver.card().limit_watts == 700.0 and leases(tmp_path / "agent-leases") == []


def test_a_card_that_hangs_is_said_by_the_agent(acting: Agent, driver: FakeDriver) -> None:
    assert take("gpu", acting.card()).state == "ok"
    driver.add("card 0 hang power")
    assert take("gpu", acting.card()).state == "hanging"
    driver.script("gpus 2")
    wait_until(lambda: take("gpu", acting.card()).state == "ok", WAIT_SECONDS, "it is back")


def test_a_gateway_sets_a_card_through_the_agent(acting: Agent, driver: FakeDriver, tmp_path: Path) -> None:
    """The whole way, with its own lease; and a restart of the agent is nobody else's hand."""

    async def main() -> None:
        where = Where({"a": AgentAt(acting.url, acting.token_file)}, holder="gateway-1")
        device = open_device("agent:a/0", where)
        said: list[str] = []
        actuator = Actuator({"agent:a/0": device}, "actuate", tmp_path / "leases", said.append, watchdog=False)
        await actuator.start()
        outcome = await actuator.set_limit_watts("agent:a/0", 100.0)
        assert outcome[1:6] == ("applied", 100.0, 200.0, 200.0, 200.0), said
        (lease,) = leases(tmp_path / "leases")
        assert TOKEN not in lease.file.read_text()
        driver.somebody_sets(450.0)
        actuator.see(take("agent:a/0", device))
        outcome = await actuator.set_limit_watts("agent:a/0", 300.0)
        assert outcome.state in ("yielded", "held_elsewhere")
        await actuator.close()
        assert driver.card().limit_watts == 450.0
        device.close()

    run(main)


def test_kill_9_of_a_gateway_that_sets_through_the_agent(acting: Agent, driver: FakeDriver, tmp_path: Path) -> None:
    """Its own watchdog tells the agent, long before the agent's lease runs out."""
    spec = json.dumps(dict(acting.card().spec))
    holder = Holder(driver, tmp_path / "leases", gpu=spec)
    try:
        assert holder.ask("limit 300")["applied_watts"] == 300.0 == driver.card().limit_watts
        holder.end(signal.SIGKILL)
        wait_until(lambda: driver.card().limit_watts == 700.0, WAIT_SECONDS, "the card is put back")
        wait_until(lambda: leases(tmp_path / "agent-leases") == [], WAIT_SECONDS, "the agent's lease is removed")
        wait_until(lambda: leases(tmp_path / "leases") == [], WAIT_SECONDS, "its own lease is removed")
    finally:
        holder.leave()


def test_an_answer_that_is_no_sample_is_not_believed(tmp_path: Path) -> None:
    """Whatever listens there."""
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    with socket.create_server(("127.0.0.1", 0)) as server:
        card = AgentDevice(f"http://127.0.0.1:{server.getsockname()[1]}", "0", token, "me")
        answers: list[Any] = [{"energy_joules": 1}, ["x"], "text"]
        for content in answers:
            found = _answered(server, card, json.dumps(content).encode())
            assert found.state == "no_data" and found.energy_joules is None
        huge = _answered(server, card, b'"' + b"x" * 300_000 + b'"')
        assert huge.state == "unreachable" and "more than 262144 bytes" in huge.detail


def _answered(server: socket.socket, card: AgentDevice, content: bytes) -> Any:
    from threading import Thread

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(65536)
            head = f"HTTP/1.1 200 OK\r\ncontent-length: {len(content)}\r\nconnection: close\r\n\r\n"
            with contextlib.suppress(OSError):
                connection.sendall(head.encode() + content)

    thread = Thread(target=serve)
    thread.start()
    found = take("gpu", card)
    card.close()
    thread.join()
    return found


def test_http_is_spoken_to_the_letter(reading: Agent) -> None:
    parts = urlsplit(reading.url)
    connection = HTTPConnection(parts.hostname or "", parts.port, timeout=WAIT_SECONDS)
    try:
        for _ in range(3):  # one kept connection
            connection.request("GET", "/v1/devices", headers=HEADERS)
            assert connection.getresponse().read().startswith(b'{"devices"')
        connection.request("GET", "/v1/nowhere", headers=HEADERS)
        assert connection.getresponse().status == 404
    finally:
        connection.close()
