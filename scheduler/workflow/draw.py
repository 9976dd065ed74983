"""A workflow as a picture: Graphviz DOT and Mermaid. Nodes have ids of our own, so any name is only ever a label."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scheduler.workflow.node import Node
    from scheduler.workflow.workflow import Workflow

CRITICAL_COLOUR = "#c62828"
STATE_COLOURS = {
    "planned": "#ffffff",
    "ready": "#fff8e1",
    "queued": "#ffecb3",
    "running": "#bbdefb",
    "acting": "#e1bee7",
    "finished": "#c8e6c9",
    "failed": "#ffcdd2",
    "skipped": "#eeeeee",
    "cancelled": "#e0e0e0",
}
_DOT_STYLES = {"declared": "solid", "data": "bold", "inferred": "dashed"}
_MERMAID_ARROWS = {"declared": "-->", "data": "==>", "inferred": "-.->"}
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_MERMAID_SPECIAL = re.compile(r"[^0-9A-Za-z \u00a1-\u2027\u202a-\ud7ff\ue000-\U0010ffff_.:,/+=@-]")


def to_dot(workflow: Workflow, now: float) -> str:
    """Graphviz: the critical path in red, data edges bold, inferred ones dashed with their confidence."""
    critical, ways = _critical(workflow, now)
    lines = [
        f"digraph {_dot_text(workflow.id)} {{",
        "  rankdir=TB;",
        '  node [shape=box, style="filled,rounded", fontname="sans-serif"];',
    ]
    for node in workflow.graph.nodes.values():
        marks = f', color="{CRITICAL_COLOUR}", penwidth=2' if node in critical else ""
        shape = ", shape=hexagon" if node.tool else ""
        label = _dot_text(_label(node))
        lines.append(f'  n{node.number} [label={label}, fillcolor="{STATE_COLOURS[node.state]}"{shape}{marks}];')
    for before, after, edge in workflow.graph.edges():
        marks = f', color="{CRITICAL_COLOUR}", penwidth=2' if (before, after) in ways else ""
        if edge.confidence < 1.0:
            marks += f', label="{edge.confidence:.2g}"'
        lines.append(f"  n{before.number} -> n{after.number} [style={_DOT_STYLES[edge.kind]}{marks}];")
    return "\n".join([*lines, "}", ""])


def to_mermaid(workflow: Workflow, now: float) -> str:
    """A Mermaid flowchart: the critical path in red, data edges thick, inferred ones dotted with their confidence."""
    critical, ways = _critical(workflow, now)
    lines = ["flowchart TD"]
    for node in workflow.graph.nodes.values():
        left, right = ("{{", "}}") if node.tool else ("[", "]")
        lines.append(f'  n{node.number}{left}"{_mermaid_text(_label(node))}"{right}:::{node.state}')
    red: list[str] = []
    for number, (before, after, edge) in enumerate(workflow.graph.edges()):
        label = f"|{edge.confidence:.2g}|" if edge.confidence < 1.0 else ""
        lines.append(f"  n{before.number} {_MERMAID_ARROWS[edge.kind]}{label} n{after.number}")
        if (before, after) in ways:
            red.append(str(number))
    lines += [f"  classDef {state} fill:{colour},stroke:#555" for state, colour in STATE_COLOURS.items()]
    lines.append(f"  classDef critical stroke:{CRITICAL_COLOUR},stroke-width:3px")
    if critical:
        lines.append(f"  class {','.join(f'n{node.number}' for node in critical)} critical")
    if red:
        lines.append(f"  linkStyle {','.join(red)} stroke:{CRITICAL_COLOUR},stroke-width:3px")
    return "\n".join([*lines, ""])


def _critical(workflow: Workflow, now: float) -> tuple[dict[Node, None], set[tuple[Node, Node]]]:
    path = workflow.critical_path(now)
    return dict.fromkeys(path), set(pairwise(path))


def _label(node: Node) -> str:
    if node.output_tokens is not None:
        return f"{node.name} ({node.state}, {node.output_tokens} tokens)"
    return f"{node.name} ({node.state})"


def _dot_text(text: str) -> str:
    """A quoted DOT string in which nothing is an escape sequence of a label."""
    text = _UNPRINTABLE.sub("\ufffd", text)
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _mermaid_text(text: str) -> str:
    """Text inside a quoted Mermaid label: whatever might mean something becomes an entity code."""
    text = _UNPRINTABLE.sub("\ufffd", text)
    return _MERMAID_SPECIAL.sub(lambda found: f"#{ord(found[0])};", text)
