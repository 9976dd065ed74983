"""`joulegate ab start|status|stop|list|report`: experiments of a running gateway, by its control plane."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

if TYPE_CHECKING:
    import argparse

EXIT_USAGE = 2
TIMEOUT_SECONDS = 30.0
ANALYSIS = "joulegate-bench"


class Refused(Exception):
    """The gateway said no, or nothing."""

    def __init__(self, problems: list[str], code: int = 1) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
        self.code = code


def add_commands(whats: Any) -> None:
    """To the subcommands of `ab`."""
    start = whats.add_parser("start", help="start an experiment: a definition as `ab plan --write` makes it")
    start.add_argument("file", type=Path, metavar="FILE", help="the definition, JSON")
    status = whats.add_parser("status", help="how far it is, by which arm, and what its guardrails say")
    status.add_argument("id", metavar="ID")
    stop = whats.add_parser("stop", help="back to the control at once")
    stop.add_argument("id", metavar="ID")
    listed = whats.add_parser("list", help="all experiments that this gateway has files of")
    report = whats.add_parser("report", help=f"the answer, by {ANALYSIS} experiment-report (extra `bench`)")
    report.add_argument("id", metavar="ID")
    report.add_argument("--out", type=Path, metavar="FOLDER", help="for blocks and report (default: ID)")
    for parser, run in ((start, _start), (status, _status), (stop, _stop), (listed, _list), (report, _report)):
        parser.add_argument(
            "--control", default="http://127.0.0.1:8081", metavar="URL", help="the gateway's control plane"
        )
        parser.set_defaults(run=_guarded(run))
    for parser in (status, listed):
        parser.add_argument("--json", action="store_true", help="as the gateway says it")


def _guarded(run: Any) -> Any:
    def guarded(options: argparse.Namespace) -> int:
        try:
            code: int = run(options)
        except Refused as refused:
            for problem in refused.problems:
                print(f"joulegate: {problem}", file=sys.stderr)
            return refused.code
        return code

    return guarded


def _ask(options: argparse.Namespace, method: str, path: str, body: object = None) -> bytes:
    parts = urlsplit(options.control)
    if parts.scheme != "http" or not parts.hostname:
        raise Refused([f"--control must be like http://127.0.0.1:8081, not {options.control}"], EXIT_USAGE)
    connection = HTTPConnection(parts.hostname, parts.port or 80, timeout=TIMEOUT_SECONDS)
    try:
        content = None if method == "GET" else json.dumps(body)
        connection.request(method, path, content, {"content-type": "application/json"})
        answer = connection.getresponse()
        content_read = answer.read()
        if answer.status < 300:
            return content_read
        error = json.loads(content_read)["error"]
    except (OSError, HTTPException, ValueError, KeyError) as failed:
        raise Refused([f"no answer from {options.control}: {failed}"]) from None
    finally:
        connection.close()
    raise Refused(error.get("problems") or [error["message"]], EXIT_USAGE if answer.status == 400 else 1)


def _path(options: argparse.Namespace, what: str = "") -> str:
    return f"/admin/experiments/{quote(options.id, safe='')}{what}"


def _start(options: argparse.Namespace) -> int:
    try:
        wanted = json.loads(options.file.read_bytes())
    except (OSError, ValueError) as error:
        raise Refused([f"{options.file}: {error}"], EXIT_USAGE) from None
    told = json.loads(_ask(options, "POST", "/admin/experiments", wanted))
    minutes = (told["ends_at"] - told["started_at"]) / 60 / told["pace"]
    lasts = f"{minutes / 60:.1f} h" if minutes >= 90 else f"{minutes:.0f} min"
    finds = f"an effect of {100 * told['detectable']:.1f} % is found with 80 % probability"
    print(
        f"{told['id']} has started: {told['arms'][1]} against {told['arms'][0]}, {lasts},"
        f" until {_when(told['ends_at'] / told['pace'])}; {'it only looks on' if told['design'] == 'shadow' else finds}"
    )
    return 0


def _status(options: argparse.Namespace) -> int:
    told = json.loads(_ask(options, "GET", _path(options)))
    print(json.dumps(told, indent=2) if options.json else "\n".join(in_words(told)))
    return 0


def _stop(options: argparse.Namespace) -> int:
    told = json.loads(_ask(options, "POST", _path(options, "/stop"), {}))
    print("\n".join(in_words(told)))
    return 0


def _list(options: argparse.Namespace) -> int:
    found = json.loads(_ask(options, "GET", "/admin/experiments"))["experiments"]
    if options.json:
        print(json.dumps(found, indent=2))
    elif not found:
        print("no experiments")
    else:
        print("\n".join(in_words(told)[0] for told in found))
    return 0


def _report(options: argparse.Namespace) -> int:
    blocks = _ask(options, "GET", _path(options, "/blocks"))
    out = options.out or Path(options.id)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "blocks.jsonl").write_bytes(blocks)
    except OSError as error:
        raise Refused([str(error)]) from None
    beside = Path(sys.executable).with_name(ANALYSIS)
    command = str(beside) if beside.is_file() else which(ANALYSIS)
    if command is None:
        how = f"{ANALYSIS} is not installed here: pip install 'joulegate[bench]', then"
        raise Refused([f"{how} {ANALYSIS} experiment-report {out / 'blocks.jsonl'}"])
    return subprocess.run([command, "experiment-report", str(out / "blocks.jsonl")], check=False).returncode


def in_words(told: dict[str, Any]) -> list[str]:
    """A status as lines for people; the first says what it is."""
    why = told.get("stopped_why") or told.get("detail")
    lines = [f"{told['id']} is {told['state']}" + (f": {why}" if why else "")]
    if "arms" in told:
        lines.append(f"  arms        {told['arms'][1]} against {told['arms'][0]}, by {told['metric']}")
    if "block" in told:
        part = "lead-in" if told["lead_in"] else f"block {told['block'] + 1} of {told['blocks']}"
        washout = ", in its wash-out" if told["in_washout"] else ""
        arm = told["arm"]
        if (other := told.get("arm_of_second_half")) is not None and not told["lead_in"]:
            arm = f"{arm} on the first half of the engines, {other} on the second"
        elif told["design"] == "interleaved" and not told["lead_in"]:
            arm = "both arms at once"
        if told["ramp_up"]:
            arm += ", of which the treatment's workflows are a share (ramp-up)"
        lines.append(f"  now         {part}: {arm}{washout}; {told['seconds_to_next_block']:.0f} s to the next")
        lines.append(f"  until       {_when(told['ends_at'] / told['pace'])}")
    if (done := told.get("blocks_done")) is not None:
        arms = f"{done['control']} of the control and {done['treatment']} of the treatment"
        lines.append(f"  blocks      {done['control'] if told.get('design') == 'shadow' else arms} count")
    marked = dict(told.get("marked", ()))
    without = marked.pop("energy_unavailable", 0)
    if marked:
        lines.append("  do not      " + ", ".join(f"{count} {reason}" for reason, count in sorted(marked.items())))
    if without:
        lines.append(f"  no joules   of {without}, whether they count or not: those have times alone")
    if (shadow := told.get("shadow")) is not None:
        dropped = told["shadow_dropped"]
        lines.append(f"  shadow      decided the same for {shadow['same']:.0f} of {shadow['decisions']:.0f} calls"
                     + ("" if dropped is None else f"; it raised and is asked no more: {dropped}"))  # fmt: skip
    for verdict in told.get("guardrails", ()):
        bad, known = verdict["treatment_bad"], verdict["treatment_known"]
        lines.append(
            f"  guardrail   {verdict['guardrail']}: {bad} of {known} in this block are over it; evidence"
            f" {verdict['evidence']:.1f}, it stops at {verdict['needed']:.1f}"
        )
    return lines


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
