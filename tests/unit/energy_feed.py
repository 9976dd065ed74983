"""What windows are told, by hand; and what must come out of them for a call."""

from __future__ import annotations

import pytest

from scheduler.energy.window import Counters, Energy, MeterSample, Window
from scheduler.energy.windows import WindowMaker, WindowRule
from scheduler.energy.work import NOTHING, Work, call_work


class Feed:
    """A gateway's eyes, by hand: a meter of 300 W, an engine of 100 steps a second."""

    def __init__(self, rule: WindowRule | None = None, *, counters: bool = True) -> None:
        self.maker = WindowMaker("e", 0.0, rule or WindowRule(2.0, 0.0))
        self.windows: list[Window] = []
        self.now = 0.0
        self.joules = 0.0
        self.steps = self.prompts = self.generated = 0.0
        self.with_counters = counters
        self.sample()
        self.probe()

    def _take(self, window: Window | None) -> None:
        if window is not None:
            self.windows.append(window)
        self.maker.validate()

    def sample(self, **changes: object) -> None:
        values: dict[str, object] = {
            "at": self.now,
            "joules": Energy(self.joules),
            "limit_watts": 700.0,
            "throttled": False,
        }
        self._take(self.maker.sample(MeterSample(**{**values, **changes})))  # type: ignore[arg-type]

    def probe(self, running: float | None = None) -> None:
        if self.with_counters:
            counters = Counters(self.now, self.steps, self.prompts, 0.0, self.generated, running, 0.0)
            self._take(self.maker.counters(counters))

    def wait(self, seconds: float, *, step: float = 0.1, samples: bool = True, steps: float = 100.0) -> None:
        for _ in range(round(seconds / step)):
            self.now = round(self.now + step, 6)
            self.joules += 300.0 * step
            self.steps += steps * step
            if round(self.now / 0.5, 6).is_integer():
                self.probe()
            if samples:
                self.sample()

    def call(self, name: str, prompt: int, output: int, seconds: float, *, streamed: bool = True) -> None:
        """A call from now on, told of as a stream is."""
        maker = self.maker
        maker.sent(name, prompt, output, self.now, streamed=streamed)
        self.prompts += prompt
        maker.first_token(name, self.now)
        parts = round(seconds / 0.1)
        for part in range(parts):
            seen = 1 + (output - 1) * part / parts
            if streamed:
                maker.progress(name, seen, self.now)
            self.generated += (output - 1) / parts if part else 1 + (output - 1) / parts
            self.wait(0.1)
        maker.finished(name, prompt, 0, output, self.now)


def total(windows: list[Window], call_id: str) -> Work:
    work = NOTHING
    for window in windows:
        for share in window.calls:
            if share.call_id == call_id:
                work += share.work + share.correction
    return work


def assert_is_the_call(work: Work, prompt: float, cached: float, output: float) -> None:
    """All features but the steps, wherever the context stands."""
    wanted = call_work(prompt, cached, output)
    assert work.decode_tokens == pytest.approx(wanted.decode_tokens)
    assert work.context_tokens + work.repeated_tokens == pytest.approx(wanted.context_tokens)
    assert work.prefill_tokens == pytest.approx(wanted.prefill_tokens)
    assert work.attention_pairs == pytest.approx(wanted.attention_pairs)
    assert work.prompts == pytest.approx(wanted.prompts)
