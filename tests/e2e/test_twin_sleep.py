"""The twin's sleep mode over real sockets."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from backends.twin import calibration
from backends.twin.calibration import CalibrationError, checked
from tests.e2e.twin_process import COMPLETIONS, Twin, completion, good, refused, sample
from tests.vllm.children import wait_until
from tests.vllm.wire import OpenStream, ask

PATIENCE_SECONDS = 20.0


def asleep(url: str) -> bool:
    """What it says."""
    said: bool = good_get(url, "/is_sleeping")["is_sleeping"]
    return said


def good_get(url: str, path: str) -> dict[str, bool]:
    """The JSON of a page."""
    answer = ask(url, "GET", path)
    assert answer.status == 200, answer.body
    page: dict[str, bool] = answer.json()
    return page


def test_without_the_option_there_is_no_such_thing(tmp_path: Path) -> None:
    twin = Twin(tmp_path / "log").wait_ready_to_serve()
    try:
        for method, path in (("POST", "/sleep"), ("POST", "/wake_up"), ("GET", "/is_sleeping")):
            assert ask(twin.url, method, path).status == 404
    finally:
        twin.end()


def test_it_sleeps_until_it_is_woken_and_what_comes_waits(tmp_path: Path) -> None:
    twin = Twin(tmp_path / "log", "--enable-sleep-mode", "--speed", "20").wait_ready_to_serve()
    try:
        url = twin.url
        assert not asleep(url)
        good(url, COMPLETIONS, completion("a long text " * 40))
        assert ask(url, "POST", "/sleep?level=1").json() == {"status": "sleeping", "level": 1}
        assert asleep(url) and sample(url, "vllm:engine_sleep_state", sleep_state="awake") == 0.0
        assert ask(url, "GET", "/health").status == 200, "it is not dead"
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(good, url, COMPLETIONS, completion("a long text " * 40))
            wait_until(lambda: ask(url, "GET", "/load").json()["server_load"] == 1, PATIENCE_SECONDS, "it is here")
            assert not waiting.done()
            assert ask(url, "POST", "/wake_up").json()["status"] == "awake"
            assert waiting.result()["usage"]["completion_tokens"] == 30
        assert not asleep(url) and sample(url, "vllm:engine_sleep_state", sleep_state="awake") == 1.0
        assert "level=2" in refused(ask(url, "POST", "/sleep?level=2"))
    finally:
        twin.end()
    assert "Traceback" not in twin.text()


def test_what_runs_ends_first(tmp_path: Path) -> None:
    twin = Twin(tmp_path / "log", "--enable-sleep-mode").wait_ready_to_serve()
    try:
        with OpenStream(twin.url, COMPLETIONS, completion(max_tokens=100)) as stream, ThreadPoolExecutor(1) as pool:
            events = stream.events()
            next(events)
            assert "mode=wait" in refused(ask(twin.url, "POST", "/sleep?level=1&mode=abort"))
            sleeping = pool.submit(ask, twin.url, "POST", "/sleep?level=1&mode=wait")
            assert list(events)[-1] == b"[DONE]"
            assert sleeping.result().status == 200
        assert asleep(twin.url)
    finally:
        twin.end()


@pytest.mark.parametrize("known", [True, False])
def test_asleep_it_draws_what_its_calibration_says_and_idle_power_where_that_says_nothing(
    tmp_path: Path, known: bool
) -> None:
    shipped = calibration.load("h200-llama-3.1-8b")
    assert shipped.card.asleep_watts is None, "nobody has measured it"
    text = (calibration.FOLDER / "h200-llama-3.1-8b.toml").read_text()
    own = tmp_path / "own.toml"
    own.write_text(text.replace("[card]\n", "[card]\nasleep_watts = 50.0\n", 1) if known else text)
    twin = Twin(tmp_path / "log", "--enable-sleep-mode", "--speed", "100", calibration=str(own)).wait_ready_to_serve()

    def now() -> dict[str, float]:
        page: dict[str, float] = ask(twin.url, "GET", "/power").json()
        return page

    try:
        assert ask(twin.url, "POST", "/sleep").status == 200
        since = now()["time_seconds"]
        wait_until(lambda: now()["time_seconds"] > since + 20, PATIENCE_SECONDS, "it has slept")
        assert now()["power_watts"] == pytest.approx(50.0 if known else shipped.card.idle_watts, rel=0.01)
    finally:
        twin.end()


def test_a_calibration_cannot_say_that_sleep_costs_more_than_idling() -> None:
    data = calibration.load("h200-llama-3.1-8b").model_dump()
    data["card"]["asleep_watts"] = 1000.0
    with pytest.raises(CalibrationError, match="asleep_watts is over idle_watts"):
        checked(data, "x")
