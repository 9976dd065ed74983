"""Measured rows, played again on the twin: what would it have measured?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backends.twin.content import Piece
from backends.twin.request import State
from bench.twin import burst
from bench.twin.crowd import Answer, Crowd, Run
from bench.twin.lab import Lab, Sent
from bench.twin.sweep import OUTPUT_TOKENS, PROMPT_TOKENS, coalesce_arrivals, open_arrivals, shape_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from backends.twin.calibration import Calibration
    from workloads.shapes import Part

Row = dict[str, Any]
POLL_SECONDS = 0.02
"""So often the sweep looked whether all prefills were done."""
WINDOW_SECONDS = 5.0
PAUSE_SECONDS = 1.0
"""Idle time between two rows."""


def predict(rows: Sequence[Row], calibration: Calibration) -> Iterator[tuple[Row, Row]]:
    """Each row with what the twin measures for it. The rows of a file share one engine, as they did when measured."""
    arrivals = open_arrivals(rows)
    lab = Lab(calibration)
    for place, row in enumerate(rows):
        play = PLAYERS.get(row["kind"])
        if play is None:
            raise ValueError(f"kind: {row['kind']!r} is none of {', '.join(PLAYERS)}")
        lab.run(until=lab.now + PAUSE_SECONDS)
        lab.sent.clear()
        yield row, play(lab, row, arrivals.get(place, []))


def quantile(values: Sequence[float], share: float) -> float:
    """As the sweep took it: the value at that place of the sorted list."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


def _decode(lab: Lab, row: Row, _: list[float]) -> Row:
    """All in decode: from the end of the last prefill to the first answer's end, at most WINDOW_SECONDS."""
    batch = row["batch"]
    output = row.get("output", 700 if batch <= 32 else 400)
    sent = [lab.send(row["context"], output) for _ in range(batch)]
    while any(each.first_token_at is None for each in sent):
        lab.run(until=lab.now + POLL_SECONDS)
    start, before, joules = lab.now, _tokens(lab, sent), lab.joules
    end = start + min(row.get("window_s", WINDOW_SECONDS), WINDOW_SECONDS)
    while lab.now < end and all(each.finished_at is None for each in sent):
        lab.run(until=lab.now + POLL_SECONDS)
    seconds, tokens, used = lab.now - start, _tokens(lab, sent) - before, lab.joules - joules
    for each in sent:
        lab.abort(each)
    lab.run()
    return {"iter_ms": 1e3 * batch * seconds / tokens, "j_per_tok": used / tokens, "power_w": used / seconds}


def _tokens(lab: Lab, sent: Sequence[Sent]) -> int:
    """Output tokens of the engine up to now, those of the run of steps under way included."""
    engine = lab.engine
    decoding = [each.request for each in sent if each.request.state is State.DECODE]
    under_way = sum(engine.generated(request) - engine.decoding.generated(request) for request in decoding)
    return engine.totals.generation_tokens + under_way


def _prefill(lab: Lab, row: Row, _: list[float]) -> Row:
    tokens, n = row["tokens"], row["n"]
    start, joules = lab.now, lab.joules
    lab.closed_loop(row["conc"], n, lambda done: lab.send(tokens, 1, done=done))
    seconds, used = lab.now - start, lab.joules - joules
    return {
        "ms_per_req": 1e3 * seconds / n,
        "tok_s": n * tokens / seconds,
        "j_per_tok": used / (n * tokens),
        "power_w": used / seconds,
    }


def _closed(lab: Lab, row: Row, _: list[float]) -> Row:
    shape, n = shape_of(row["name"]), row["n"]
    prefix = [Piece(("shared", shape.shared_tokens), shape.shared_tokens)] if shape.shared_tokens else []
    start, joules = lab.now, lab.joules
    totals = lab.engine.totals
    hits, queries = totals.prefix_hits, totals.prefix_queries
    sent = lab.closed_loop(
        row["conc"], n, lambda done: lab.send(shape.prompt_tokens, shape.output_tokens, prefix=prefix, done=done)
    )
    seconds, used = lab.now - start, lab.joules - joules
    latencies = [each.latency_seconds for each in sent]
    return {
        "makespan_s": seconds,
        "p50": quantile(latencies, 0.5),
        "p99": quantile(latencies, 0.99),
        "j_per_req": used / n,
        "power_w": used / seconds,
        "prefix_hit": (totals.prefix_hits - hits) / max(1, totals.prefix_queries - queries),
    }


def _send_at(lab: Lab, times: Sequence[float]) -> None:
    start = lab.now
    for at in times:
        lab.time.at(start + at, lambda: _send_one(lab))


def _send_one(lab: Lab) -> None:
    lab.send(PROMPT_TOKENS, OUTPUT_TOKENS)


def _open(lab: Lab, row: Row, arrivals: list[float]) -> Row:
    """Energy is counted from the first to the last arrival; latencies are those of all."""
    start, joules = lab.now, lab.joules
    _send_at(lab, arrivals)
    lab.run(until=start + arrivals[-1])
    seconds, used = lab.now - start, lab.joules - joules
    lab.run()
    sent = lab.sent
    # TTFT is vLLM's own: it ends in the engine's process, not at the client.
    waits = [each.request.first_token_at - each.sent_at for each in sent if each.request.first_token_at is not None]
    gaps = [each.finished_at - each.first_token_at for each in sent if each.finished_at and each.first_token_at]
    latencies = [each.latency_seconds for each in sent]
    return {
        "p50": quantile(latencies, 0.5),
        "p99": quantile(latencies, 0.99),
        "ttft_ms": 1e3 * sum(waits) / len(waits),
        "itl_ms": 1e3 * sum(gaps) / (len(gaps) * (OUTPUT_TOKENS - 1)),
        "j_per_out_tok": used / (len(sent) * OUTPUT_TOKENS),
        "power_w": used / seconds,
    }


def _coalesce(lab: Lab, row: Row, _: list[float]) -> Row:
    arrivals, sent_at = coalesce_arrivals(row["rate"], row["hold_s"])
    start, joules = lab.now, lab.joules
    _send_at(lab, sent_at)
    lab.run()
    seconds, used = lab.now - start, lab.joules - joules
    latencies = [
        each.finished_at - start - at
        for at, each in zip(arrivals, lab.sent, strict=True)
        if each.finished_at is not None
    ]
    return {
        "dur_s": seconds,
        "p50": quantile(latencies, 0.5),
        "p99": quantile(latencies, 0.99),
        "j_per_req": used / len(arrivals),
        "power_w": used / seconds,
    }


class _Stage:
    """The twin as a stage for a crowd of users."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab

    @property
    def now(self) -> float:
        return self._lab.now

    def at(self, time: float, action: Callable[[], None]) -> None:
        self._lab.time.at(time, action)

    def send(self, prompt: tuple[Part, ...], output_tokens: int, done: Callable[[Answer], None]) -> None:
        pieces = [Piece(part.text, part.tokens) for part in prompt]
        tokens = sum(piece.tokens for piece in pieces)

        def answered(sent: Sent) -> None:
            done(Answer(sent.sent_at, sent.first_token_at, sent.request.cached_tokens))

        self._lab.send(tokens, output_tokens, prefix=pieces, done=answered)


def _workflows(lab: Lab, row: Row, _: list[float]) -> Row:
    joules = lab.joules
    crowd = Crowd(_Stage(lab), Run.of(row), lab.engine.calibration)
    lab.run()
    assert crowd.done
    ends = max(live.finished_at for live in crowd.live if live.finished_at is not None)
    return crowd.summary(lab.joules - joules, ends)


PLAYERS: dict[str, Callable[[Lab, Row, list[float]], Row]] = {
    "decode": _decode,
    "prefill": _prefill,
    "closed": _closed,
    "open": _open,
    "coalesce": _coalesce,
    "burst": burst.play,
    "workflows": _workflows,
}
