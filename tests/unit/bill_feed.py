"""Windows made up for bills: what was done, by whom, and what the meter said."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scheduler.energy.bill_prices import Tariff
from scheduler.energy.window import CallShare, Energy, Shares, Window
from scheduler.energy.work import NOTHING, Work

if TYPE_CHECKING:
    from scheduler.energy.bill import Bill, Closed

TARIFF = Tariff(
    step=2.0, decode_token=0.05, context_token=1e-5, repeated_token=5e-6, prefill_token=0.02, attention_pair=1e-7,
    idle_watts=100.0, relative_error=0.1,
)  # fmt: skip


def share(
    call_id: str,
    work: Work = NOTHING,
    *,
    correction: Work = NOTHING,
    seconds: float = 1.0,
    ended: bool = False,
    more_steps: float = 0.0,
    prompt_tokens: float = 0.0,
) -> CallShare:
    """A call's part of a window."""
    return CallShare(call_id, work, correction, seconds, ended, more_steps, prompt_tokens)


def window(
    *shares: CallShare, energy: Energy | None = None, joules: float | None = None, start: float = 0.0,
    seconds: float = 2.0, busy: float | None = None, why: tuple[str, ...] = (), source: str = "measured",
    engine: str = "e",
) -> Window:  # fmt: skip
    """A window from `start` on. `joules`: of the GPU, where nothing else is metered."""
    calls = Shares.of(shares)
    work, correction = calls.sums()
    if energy is None:
        energy = Energy(joules)
    busy_seconds = seconds if busy is None else busy
    return Window(
        engine, 1, start, start + seconds, calls, work, correction, busy_seconds, energy, None, False, None,
        source, True, why,
    )  # type: ignore[arg-type]  # fmt: skip


def decoded(tokens: float, batch: float = 1.0, context: float = 0.0) -> Work:
    """So many tokens decoded in steps of `batch` sequences."""
    return Work(steps=tokens / batch, decode_tokens=tokens, context_tokens=context)


def prefilled(tokens: float, steps: float = 1.0) -> Work:
    """A prompt computed."""
    return Work(steps=steps, prefill_tokens=tokens, attention_pairs=tokens * tokens / 2, prompts=1.0)


def closed(bill: Bill, window_: Window, tariff: Tariff | None = TARIFF) -> Closed:
    """Bill a window and check everything."""
    found = bill.close(window_, tariff)
    found.bill.validate()
    bill.validate()
    return found
