"""`joulegate explain CALL_ID`: why did a call run when and where it did, and what came of it?"""

from __future__ import annotations

import json
import sys
from http.client import HTTPConnection, HTTPException
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

if TYPE_CHECKING:
    import argparse

TIMEOUT_SECONDS = 10.0


def add_command(commands: Any) -> None:
    """The subcommand."""
    explain = commands.add_parser("explain", help="why a call ran when and where it did, from a running gateway")
    explain.add_argument("call_id", metavar="CALL_ID", help="`id` of x-joulegate-decision and of the call log")
    explain.add_argument(
        "--control", default="http://127.0.0.1:8081", metavar="URL", help="the gateway's control plane"
    )
    explain.add_argument("--json", action="store_true", help="the whole record as JSON")
    explain.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Ask and print: 0; 1 if the call is not known or nobody answers."""
    parts = urlsplit(options.control)
    if parts.scheme != "http" or not parts.hostname:
        print(f"joulegate: --control must be like http://127.0.0.1:8081, not {options.control}", file=sys.stderr)
        return 2
    connection = HTTPConnection(parts.hostname, parts.port or 80, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("GET", f"/admin/decisions/{quote(options.call_id, safe='')}")
        answer = connection.getresponse()
        told = json.loads(answer.read())
    except (OSError, HTTPException, ValueError) as error:
        print(f"joulegate: no answer from {options.control}: {error}", file=sys.stderr)
        return 1
    finally:
        connection.close()
    if answer.status != 200:
        print(f"joulegate: {told['error']['message']}", file=sys.stderr)
        return 1
    print(json.dumps(told, indent=2) if options.json else "\n".join(in_words(told)))
    return 0


def in_words(told: dict[str, Any]) -> list[str]:
    """A record as lines for people."""
    place = f", node {told['node']} of workflow {told['workflow']}" if told["node"] else ""
    place = place or (f", of workflow {told['workflow']}" if told["workflow"] else "")
    lines = [f"{told['call_id']} (key {told['key']}{place}) is {told['state']}"]
    held, sent, came, regret = told["held"], told["sent"], told["came_of_it"], told["regret"]
    if held is not None:
        lines.append(f"held from {_seconds(held['after_seconds'])} after it came, looked at {held['times']} times")
        lines += [f"  at first: {_why(held['first'])}", f"  at last: {_why(held['last'])}"]
    if sent is not None:
        lines.append(
            f"sent {_seconds(sent['after_seconds'])} after it came to {sent['engine']} by {told['policy']}, rule"
            f" {sent['rule']}, beside {sent['calls_beside']} calls, priority {_or_none(sent['priority'])},"
            f" attempt {sent['attempts']}"
        )
        if sent["why"] is not None:
            lines.append(f"  {_why(sent['why'])}")
        for other in sent["other_engines"]:
            lines.append(f"  instead of {other['engine']}, which had {other['calls']} calls")
    if came is not None:
        lines.append(
            f"{came['outcome']} {_seconds(came['seconds_after_arrival'])} after it came:"
            f" {_or_none(came['prompt_tokens'])} prompt and {_or_none(came['output_tokens'])} output tokens,"
            f" {_joules(came['joules'])} ({came['joules_source']})"
        )
    if regret is not None:
        lines.append(
            f"beyond what was predicted of the alternative: {_seconds(regret['seconds'])}, {_joules(regret['joules'])}"
        )
    return lines


def _why(why: dict[str, Any]) -> str:
    parts = [why["rule"]]
    for name, words in (("slack_seconds", "slack"), ("hold_seconds", "to hold")):
        if why[name] is not None:
            parts.append(f"{words} {_seconds(why[name])}")
    for name, words in (("now", "now"), ("later", "later")):
        if (way := why[name]) is not None:
            parts.append(f"{words}: {_seconds(way['seconds'])}, {_joules(way['joules'])}")
    return "; ".join(parts)


def _seconds(value: float | None) -> str:
    return "unknown time" if value is None else f"{value:.3f} s"


def _joules(value: float | None) -> str:
    return "unknown joules" if value is None else f"{value:.2f} J"


def _or_none(value: object) -> str:
    return "no" if value is None else str(value)
