"""The report of an experiment: one HTML page that needs nothing else, JSON, and the block table as CSV."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from functools import partial
from html import escape
from typing import TYPE_CHECKING

from bench.experiments import charts, files, shadow
from bench.experiments.analyse import SUSPICIOUS, Analysis, Effect, analyse, as_json
from bench.experiments.answer import WORDS, amount, p_text, percent, sentence
from bench.experiments.style import STYLE
from scheduler.experiments.definition import CONTROL, TREATMENT
from scheduler.experiments.marks import PLANNED, SAYS, pairs_of
from scheduler.experiments.schedule import LEAD_IN, Schedule

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Sequence

    from bench.experiments.files import Recording
    from scheduler.experiments.definition import Definition

NAMES = {
    "joules_per_workflow": "Joules a workflow",
    "joules_per_output_token": "Joules an output token",
    "mean_workflow_seconds": "Mean workflow time",
    "p50_workflow_seconds": "Median workflow time",
    "p95_workflow_seconds": "p95 workflow time",
    "errors": "Failed workflows",
    "deadline_misses": "Missed deadlines",
    "workflows_per_second": "Throughput",
}


def run(args: argparse.Namespace) -> int:
    """Write report.html, report.json and blocks.csv; print the answer."""
    recording = files.read(args.blocks)
    out = args.out or args.blocks.parent
    out.mkdir(parents=True, exist_ok=True)
    found = analyse(recording.definition, recording.rows, recording.shadow_dropped)
    table = files.as_csv(found.rows, list(map(str, recording.definition.arms)))
    (out / "report.html").write_text(page(found, recording), encoding="utf-8")
    (out / "report.json").write_text(json.dumps(as_json(found), indent=1), encoding="utf-8")
    (out / "blocks.csv").write_text(table, encoding="utf-8")
    print(sentence(found))
    for warning in found.warnings:
        print(f"warning: {warning}")
    print(f"{out / 'report.html'}, report.json, blocks.csv")
    return 0


def page(found: Analysis, recording: Recording) -> str:
    """The whole HTML."""
    definition = found.definition
    arms = list(map(str, definition.arms))
    _, left = pairs_of(found.rows, found.primary.metric)
    began = datetime.fromtimestamp(recording.started_at, UTC)
    facts = (
        f"Experiment {definition.id} · {definition.design.replace('_', ' ')} · from {began:%Y-%m-%d %H:%M} UTC ·"
        f" blocks of {definition.block_seconds:g} s, of which {definition.washout_seconds:g} s wash-out ·"
        f" {found.primary.pairs} of {definition.pairs} pairs count"
        + (f" · {recording.pace:g} × real time" if recording.pace != 1.0 else "")
    )
    if definition.design == "shadow":
        facts = facts.replace(f" · {found.primary.pairs} of {definition.pairs} pairs count", "")
        return _html(found, [
            f"<h1>{escape(sentence(found))}</h1><p class=facts>{escape(facts)}</p>", _stopped(recording),
            _warned(found), "<h2>What it would have done</h2>", _shadow(found),
            "<h2>To do it again</h2>", _again(found),
        ])  # fmt: skip
    relative = [(NAMES[name], effect) for name, effect in found.effects.items() if not effect.metric.is_share]
    uncounted = {row.number for row in left}
    lanes = partial(_lanes, definition)
    sections = [
        f"<h1>{escape(sentence(found))}</h1><p class=facts>{escape(facts)}</p>", _stopped(recording), _warned(found),
        f"<p class=legend>{_key(0)} {escape(arms[0])} (control) &nbsp; {_key(1)} {escape(arms[1])} (treatment)</p>",
        "<h2>Effects</h2>", _effects(found),
        charts.both(lambda width: charts.intervals(relative, "effects with their 95 % intervals", width)), _read(found),
        "<h2>Energy by component</h2>", _energy(found), "<h2>p95 workflow time by class</h2>", _classes(found),
        f"<h2>Block by block: {escape(WORDS[found.primary.metric.name])}</h2>",
        charts.both(lambda width: charts.timeline(found.rows, found.primary, arms, uncounted, lanes, width)),
        _whose(definition), _looks(found),
        *(["<h2>Guardrails</h2>", _guardrails(found)] if definition.guardrails else []),
        "<h2>May it be trusted?</h2>", _checks(found, recording), "<h2>To do it again</h2>", _again(found),
    ]  # fmt: skip
    return _html(found, sections)


def _lanes(definition: Definition, number: int) -> tuple[int, ...]:
    """The arms that a block had at once."""
    block = Schedule(definition, 0.0).block(number)
    if number == LEAD_IN or definition.design == "shadow":
        return (CONTROL,)
    if definition.design == "split_and_swap":
        return block.arm_of_side(0), block.arm_of_side(1)
    return (CONTROL, TREATMENT) if definition.design == "interleaved" else (block.arm,)


def _whose(definition: Definition) -> str:
    text = "The band: whose block it was. Hatched: does not count, see below."
    if definition.design == "split_and_swap":
        half = len(definition.engines) // 2
        upper, lower = (", ".join(part) for part in (definition.engines[:half], definition.engines[half:]))
        text = (
            f"The band: which arm {upper} had (above), and which {lower} (below). Hatched: does not count, see below."
        )
    elif definition.design == "interleaved":
        text = "The band: both arms at once. Hatched: does not count, see below."
    return f"<p class=note>{escape(text)}</p>"


def _html(found: Analysis, sections: list[str]) -> str:
    definition = found.definition
    arms = list(map(str, definition.arms))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content='
        f'"light dark"><title>{escape(definition.id)}: {escape(arms[1])} against {escape(arms[0])}</title>'
        f"<style>{STYLE}</style></head><body><main>{''.join(sections)}</main></body></html>\n"
    )


def _shadow(found: Analysis) -> str:
    looked = found.shadow
    return _table(("of calls", "", "95 % interval"), shadow.rows_of(looked)) + (
        f"<p class=note>{looked.total.decisions} calls in {looked.blocks} blocks that count; intervals are over blocks."
        " The other policy decided in a world of its own: calls came as they really came and took as long as they"
        " really took, from when it would have sent them. Joules are of a call's own steps, shared with those that run"
        " beside it, by the energy model; nothing of this was measured.</p>"
    )


def _key(arm: int) -> str:
    square, circle = 'rect x="2" y="2" width="9" height="9"', 'circle cx="6.5" cy="6.5" r="5"'
    shape = f'<{square} class="treatment"/>' if arm else f'<{circle} class="control"/>'
    return f'<svg class=key viewBox="0 0 13 13" aria-hidden="true">{shape}</svg>'


def _stopped(recording: Recording) -> str:
    if recording.stopped_why is not None:
        return f"<p class=warning><strong>Stopped.</strong> {escape(recording.stopped_why)}</p>"
    return "" if recording.ended else "<p class=note>It is still running: look at the always-valid interval.</p>"


def _warned(found: Analysis) -> str:
    return "".join(f"<p class=warning>{escape(text)}</p>" for text in found.warnings)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """`head` and cells are texts; a cell that begins with "<" is HTML already."""
    cells = "".join(f"<th scope=col>{escape(text)}</th>" for text in head)
    body = "".join(
        "<tr>" + "".join(
            f'<{"th scope=row" if place == 0 else "td"} data-label="{escape(head[place], quote=True)}">'
            f"{text if text.startswith('<') else escape(text)}</{'th' if place == 0 else 'td'}>"
            for place, text in enumerate(row)
        ) + "</tr>"
        for row in rows
    )  # fmt: skip
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"


HEAD = ("", "control", "treatment", "effect", "95 % interval", "always valid", "p", "at equal load")


def _cells(name: str, effect: Effect) -> list[str]:
    estimate = effect.estimate
    if estimate is None:
        return [name, *([""] * 2), "unavailable", effect.unavailable, "", "", ""]
    times, unit = (100.0, " %") if effect.metric.is_share else (1.0, f" {effect.metric.unit}")
    ends = "too few pairs"
    if effect.always is not None and all(abs(end) < 1e6 for end in effect.always):
        ends = f"{percent(effect.always[0], effect)} to {percent(effect.always[1], effect)}"
    adjusted = effect.adjusted
    return [
        name, amount(times * estimate.control) + unit, amount(times * estimate.treatment) + unit,
        percent(estimate.effect, effect), f"{percent(estimate.low, effect)} to {percent(estimate.high, effect)}", ends,
        "" if effect.p_value is None else p_text(effect.p_value).removeprefix("p = ").removeprefix("p "),
        "" if adjusted is None else f"{percent(adjusted.low, effect)} to {percent(adjusted.high, effect)}",
    ]  # fmt: skip


def _effects(found: Analysis) -> str:
    names = [found.definition.metric, *(name for name in found.effects if name != found.definition.metric)]
    return _table(HEAD, [_cells(NAMES[name], found.effects[name]) for name in names])


def _energy(found: Analysis) -> str:
    parts = found.primary.components or found.effects["joules_per_workflow"].components
    scope = f"<p>Joules above are of: {', '.join(part.upper() for part in parts)}.</p>" if parts else ""
    sources = sorted({row.energy_source for row in found.rows if row.energy_source != "unavailable"})
    if sources:
        scope += f"<p>Source: {escape(', '.join(sources))}.</p>"
    return scope + _table(
        HEAD, [_cells(f"{name.upper()}, a workflow", effect) for name, effect in found.energy.items()]
    )


def _classes(found: Analysis) -> str:
    return _table(HEAD, [_cells(name, effect) for name, effect in found.by_class.items()])


def _read(found: Analysis) -> str:
    primary = found.primary
    orders = f"all {primary.p_orders} orders" if primary.p_exact else f"{primary.p_orders} random orders of the arms"
    return (
        "<p class=note>Effects are the treatment's against the control's. The 95 % interval is for one look at the end"
        " (delta method over pairs of blocks; for quantiles a bootstrap of pairs); the always-valid one holds however"
        f" often one looks, and is wider for it. p: how often {orders} within pairs give as large an effect. At equal"
        " load: differences of pairs regressed on their arrivals and tokens.</p>"
    )


def _looks(found: Analysis) -> str:
    picture = charts.both(lambda width: charts.sequence(found.primary, width))
    if not picture:
        return ""
    return (
        "<h2>As it went on</h2>" + picture + "<p class=note>The always-valid interval after each pair: with 95 %"
        " probability the effect is within it all the way.</p>"
    )


def _guardrails(found: Analysis) -> str:
    rows = []
    for guardrail in found.definition.guardrails:
        effect = found.effects[guardrail.metric]
        estimate = effect.estimate
        if estimate is None:
            rows.append([str(guardrail), "unavailable", effect.unavailable])
            continue
        best, worst = estimate.low, estimate.high
        if guardrail.relative and effect.metric.is_share:  # a difference, to be held against the control's share
            share = estimate.control or 1e-9
            best, worst = best / share, worst / share
        kept = "kept" if worst <= guardrail.limit else "broken" if best > guardrail.limit else "not shown to be kept"
        unit = "%" if guardrail.relative else "points"
        rows.append([str(guardrail), kept, f"95 % interval: {100 * best:+.1f} to {100 * worst:+.1f} {unit}"])
    return _table(("guardrail", "", "why"), rows)


def _checks(found: Analysis, recording: Recording) -> str:
    rows = []
    if (sample := found.sample) is not None:
        said = f"{sample.control} and {sample.treatment} workflows began; {p_text(sample.p_value)} ({sample.method})"
        rows.append(["Equal traffic", "no" if sample.alarm else "yes", said])
    for name, test in (("Order of the arms", found.order), ("Carry-over between blocks", found.carried)):
        if test is None:
            rows.append([name, "not known", "too few pairs, or not to be had with this metric or design"])
        else:
            said = f"{100 * test.estimate:+.1f} % ({100 * test.low:+.1f} to {100 * test.high:+.1f})"
            said += f"; {p_text(test.p_value)}; {test.says}"
            rows.append([name, "matters" if test.p_value < SUSPICIOUS else "not seen", said])
    for mark, arms in sorted(found.excluded.items()):
        kind = "planned" if mark in PLANNED else "excluded"
        said = f"{arms['control']} of the control, {arms['treatment']} of the treatment; {SAYS.get(mark, mark)}"
        rows.append([f"Blocks: {mark}", kind, said])
    faults = [sum(row.client_faults for row in found.rows if row.arm == arm) for arm in (0, 1)]
    if any(faults):
        said = (
            f"{faults[0]} workflows of the control, {faults[1]} of the treatment; neither timed nor counted as failed"
        )
        rows.append(["Requests that engines refused (4xx)", "apart", said])
    if recording.cache_resets is not None:
        done, missed = recording.cache_resets
        said = f"at the beginning of {done} blocks; of {missed} blocks it was not"
        rows.append(
            ["Prefix cache", "emptied" if not missed else "carried over in part" if done else "carried over", said]
        )
    else:
        rows.append(
            ["Prefix cache", "carried over", "what one arm cached serves the next; the wash-out does not undo it"]
        )
    return _table(("", "", ""), rows)


def _again(found: Analysis) -> str:
    definition = found.definition
    table = files.as_csv(found.rows, list(map(str, definition.arms)))
    link = base64.b64encode(table.encode()).decode()
    whole = json.dumps(as_json(found)).replace("<", chr(92) + "u003c")
    told = json.dumps(definition.as_json(), indent=1, default=str)
    dealt = "The block table has what was counted in each block."
    if definition.design != "shadow":
        dealt = (
            f"Seed {definition.seed}, salt “{escape(definition.the_salt)}”. The first arm of pair <i>n</i> is the"
            f" treatment where the first 64 bits of SHA-256 of “order/{definition.seed}/<i>n</i>” are below a half; the"
            " block table has each block's arm. Resampling and randomisation use the same seed."
        )
    return (
        f"<p>{dealt}</p>"
        f'<p><a download="blocks.csv" href="data:text/csv;base64,{link}">Block table as CSV</a>'
        f" ({len(found.rows)} rows)</p><details><summary>Definition</summary><pre>{escape(told)}</pre></details>"
        f'<script type="application/json" id="report">{whole}</script>'
    )
