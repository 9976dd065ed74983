"""One writer among several hosts: the fence against a real Redis."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from backends.power.cap import Cap
from backends.power.lease import LeaseFault, LeaseHeld, open_folder
from backends.power.redis_fence import RedisFence, connect
from tests.native.devices import FakeDevice
from tests.vllm.children import wait_until

redis = pytest.importorskip("redis", reason="the redis package is not installed: pip install 'joulegate[redis]'")
START_SECONDS = 20.0


class Clock:
    """Time that a test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    if (program := shutil.which("redis-server")) is None:
        pytest.skip("redis-server is not installed: apt-get install redis-server")
    path = tmp_path_factory.mktemp("redis") / "s"
    command = [program, "--port", "0", "--unixsocket", str(path), "--save", "", "--appendonly", "no"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=path.parent)
    url = f"unix://{path}"
    wait_until(lambda: answers(url), START_SECONDS, "Redis answers")
    yield url, process
    process.kill()
    process.wait()


def answers(url: str) -> bool:
    client = redis.Redis.from_url(url)
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False
    finally:
        client.close()


@pytest.fixture
def client(server: tuple[str, subprocess.Popen[bytes]]) -> Iterator[Any]:
    connected = connect(server[0])
    connected.flushall()
    yield connected
    connected.close()


def test_one_writer_and_tokens_that_grow(client: Any) -> None:
    first, second = RedisFence(client, "GPU-1", "one"), RedisFence(client, "GPU-1", "two")
    assert first.acquire() == 1
    first.check()
    with pytest.raises(LeaseHeld, match="one sets its limit"):
        second.acquire()
    with pytest.raises(LeaseFault):
        second.check()
    second.release()
    first.check()
    first.release()
    assert second.acquire() == 2
    with pytest.raises(LeaseFault):
        first.check()
    assert RedisFence(client, "GPU-2", "two").acquire() == 1


def test_many_at_once_and_one_gets_it(client: Any) -> None:
    won: list[str] = []
    start = threading.Barrier(8)

    def compete(name: str) -> None:
        start.wait()
        try:
            RedisFence(client, "GPU-1", name).acquire()
        except LeaseHeld:
            return
        won.append(name)

    threads = [threading.Thread(target=compete, args=(str(number),)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1


def test_a_process_that_was_stopped_for_long_finds_out_before_it_writes(client: Any) -> None:
    clock = Clock()
    fence = RedisFence(client, "GPU-1", "one", clock=clock)
    fence.acquire()
    clock.now = 9.9
    fence.check()
    fence.renew()
    clock.now = 19.8
    fence.check()
    clock.now = 20.0
    with pytest.raises(LeaseFault, match="not renewed in time"):
        fence.check()


def test_an_expired_key_is_the_next_ones(client: Any) -> None:
    first, second = RedisFence(client, "GPU-1", "one", 0.05), RedisFence(client, "GPU-1", "two")
    first.acquire()
    wait_until(lambda: not client.exists("joulegate:power:GPU-1"), START_SECONDS, "the key expires")
    second.acquire()
    for refused in (first.check, first.renew):
        with pytest.raises(LeaseFault):
            refused()
    first.release()
    second.check()


def test_without_redis_nothing_is_set_and_what_was_set_is_put_back_in_time(
    server: tuple[str, subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    clock = Clock()
    connected = connect(server[0])
    connected.flushall()
    gone: list[bool] = []

    def fence_of(device: str) -> RedisFence:
        return RedisFence(_MayBeGone(connected, gone), device, "one", clock=clock)

    device = FakeDevice()
    cap = Cap("gpu", device, open_folder(tmp_path / "leases"), None, fence_of)
    assert cap.set_limit_watts(400.0).state == "applied"
    gone.append(True)
    outcome = cap.set_limit_watts(300.0)
    assert outcome.state == "failed" and "Redis cannot be asked" in outcome.detail and device.limit_watts == 400.0
    clock.now = 9.0
    assert cap.renew() is None and device.limit_watts == 400.0
    clock.now = 10.1
    lost = cap.renew()
    assert lost is not None and "the lease was lost" in lost.detail and device.limit_watts == 700.0
    assert cap.set_limit_watts(300.0).state == "failed" and device.limit_watts == 700.0
    gone.clear()
    assert cap.set_limit_watts(300.0).state == "applied"
    cap.restore()
    assert connected.get("joulegate:power:fake") is None
    connected.close()


class _MayBeGone:
    """A client whose server can be taken away."""

    def __init__(self, client: Any, gone: list[bool]) -> None:
        self._client, self._gone = client, gone

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if self._gone:
            raise redis.ConnectionError("gone")
        method: Callable[..., Any] = getattr(self._client, name)
        return method


def test_a_url_that_is_none_is_said() -> None:
    with pytest.raises(LeaseFault, match=r"power\.redis_url"):
        connect("nonsense")
