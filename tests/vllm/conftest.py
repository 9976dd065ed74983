"""One real vLLM and one gateway before it, shared by the whole run; a traceback in the gateway's log fails the test."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.e2e.twin_process import Twin
from tests.vllm.children import MAX_MODEL_LEN, MAX_NUM_SEQS, VLLM, Door, Gateway, free_port
from tests.vllm.wire import wait_idle


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of a real vLLM; JOULEGATE_TEST_ENGINE_URL names one that runs already."""
    if url := os.environ.get("JOULEGATE_TEST_ENGINE_URL"):
        yield url
        return
    server = VLLM(tmp_path_factory.mktemp("engine") / "vllm.log", free_port(), ["--max-num-seqs", str(MAX_NUM_SEQS)])
    try:
        server.wait_healthy()
        yield server.url
    finally:
        server.end()


@pytest.fixture(scope="session")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of a twin at real time, so that each token is an event of its own."""
    child = Twin(tmp_path_factory.mktemp("twin") / "log", "--max-model-len", str(MAX_MODEL_LEN))
    try:
        yield child.wait_ready_to_serve().url
    finally:
        child.end()


@pytest.fixture(scope="session")
def door(engine: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    """The gateway before that vLLM; JOULEGATE_TEST_GATEWAY_URL names one that runs already."""
    if url := os.environ.get("JOULEGATE_TEST_GATEWAY_URL"):
        yield Door(url, os.environ.get("JOULEGATE_TEST_CONTROL_URL"), None)
        return
    child = Gateway(tmp_path_factory.mktemp("gateway") / "joulegate.log", ["--engine", engine])
    try:
        child.wait_ready_to_serve()
        yield Door(child.url, child.control_url, child.log)
    finally:
        child.end()


@pytest.fixture(scope="session")
def gateway(door: Door) -> str:
    """The base URL of the gateway's data plane."""
    return door.url


@pytest.fixture(autouse=True)
def no_traceback(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test does to the shared gateway, no traceback may stand in its log afterwards."""
    if "door" not in request.fixturenames:
        yield
        return
    shared: Door = request.getfixturevalue("door")
    before = len(shared.text())
    yield
    printed = shared.text()[before:]
    assert "Traceback (most recent call last)" not in printed, printed


@pytest.fixture
def idle_engine(engine: str) -> str:
    """The shared vLLM with nothing left over from the test before."""
    wait_idle(engine, 30)
    return engine
