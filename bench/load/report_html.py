"""What is the page made of? Parts of HTML that need no network, on a screen, a phone and paper."""

from __future__ import annotations

import base64
from html import escape
from typing import TYPE_CHECKING

from bench.load.drawing import draw
from bench.programs import BenchError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from bench.load.drawing import Drawing
    from bench.load.figures import Interval

STYLE = """
:root{color-scheme:light dark;--line:#8886;--soft:#8881}
*{box-sizing:border-box}
body{font:16px/1.5 system-ui,sans-serif;max-width:72rem;margin:auto;padding:1rem;background:#fff;color:#1a1a1a}
h1{line-height:1.2;margin:.5rem 0}h2{margin:2.5rem 0 .5rem;border-bottom:2px solid var(--line)}h3{margin:1.5rem 0 .3rem}
p,li{max-width:48rem}nav a{margin-right:1rem;white-space:nowrap}a{color:inherit}
.plots{columns:26rem;column-gap:1rem}
figure{margin:0 0 1rem;padding:.5rem;break-inside:avoid;border:1px solid var(--line);border-radius:.4rem;min-width:0}
img{display:block;width:100%;max-width:34rem;height:auto;margin:auto}
figcaption{font-size:.9rem;margin-top:.3rem}summary{cursor:pointer;font-size:.85rem}
.printed{display:none}.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.8rem;margin:.5rem 0}
td,th{border:1px solid var(--line);padding:.15rem .45rem;text-align:right;font-variant-numeric:tabular-nums;
white-space:nowrap}td:first-child,th:first-child,td.t,th.t{text-align:left;white-space:normal;min-width:9rem}
th{background:var(--soft);white-space:normal;vertical-align:bottom}
.finding figure{max-width:36rem}.finding:after{content:"";display:block;clear:both}
@media(max-width:30rem){.finding{padding:.2rem .6rem .6rem}.finding ul{padding-left:1.2rem}}
@media(min-width:60rem){.finding figure{float:right;width:24rem;margin-left:1rem}}
.pm{opacity:.7;font-size:.9em}
.finding{border:1px solid var(--line);border-left:.5rem solid #888;border-radius:.4rem;padding:.2rem 1rem .8rem;
margin:1rem 0}.holds{border-left-color:#009E73}.not{border-left-color:#D55E00;border-left-style:double}
.open{border-left-style:dotted}.verdict{font-weight:700}.note{background:var(--soft);padding:.4rem .8rem;
border-radius:.4rem}code{font-size:.85em;overflow-wrap:anywhere}dt{font-weight:600;margin-top:.4rem}dd{margin:0}
@media screen and (prefers-color-scheme:dark){body{background:#16181c;color:#e6e6e6}
img{filter:invert(.91) hue-rotate(180deg)}}
@media print{@page{size:A4;margin:11mm}body{background:#fff;color:#000;max-width:none;padding:0;font-size:9pt;
line-height:1.35}nav,details{display:none}h2{margin:5mm 0 2mm}h3{margin:3mm 0 1mm}p,li{max-width:none;margin:1mm 0}
.plots{columns:3;column-gap:3mm}figure{margin:0 0 3mm;padding:1mm}figcaption{font-size:7pt;line-height:1.25}
.wide{overflow:visible;break-inside:avoid}table{font-size:6pt}td,th{padding:.1mm .7mm;white-space:normal}
td .pm{display:block;white-space:nowrap}.finding ul{padding-left:5mm}img{max-height:245mm;width:auto;max-width:100%}
td:first-child,td.t{min-width:0}th{background:none}figure,tr{break-inside:avoid}h2,h3{break-after:avoid}
.finding{break-inside:avoid;padding:0 3mm 1mm;margin:2mm 0}
.finding figure{float:right;width:64mm;margin:0 0 1mm 3mm;border:0}.printed{display:block}}
"""


def page(title: str, body: str) -> str:
    """The whole document."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><h1>{escape(title)}</h1>{body}</body></html>\n"
    )


def chapter(anchor: str, title: str, *parts: str) -> str:
    """A part of the page that the list at its head names."""
    return f'<section id="{escape(anchor)}"><h2>{escape(title)}</h2>{"".join(parts)}</section>'


def contents(chapters: Iterable[tuple[str, str]]) -> str:
    """Links to the chapters."""
    return "<nav>" + " ".join(f'<a href="#{escape(a)}">{escape(title)}</a>' for a, title in chapters) + "</nav>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], texts: Sequence[int] = (0,)) -> str:
    """Cells are HTML already. `texts`: columns of words."""

    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(f"<{tag}{' class=t' if at in texts else ''}>{each}</{tag}>" for at, each in enumerate(row))

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{cells("th", head)}</tr></thead><tbody>{body}</tbody></table></div>'


def long(table: str, about: str) -> str:
    """A table of hundreds of rows: on a screen it is there, on paper a line says where it is."""
    return (
        f"<details open><summary>{escape(about)}</summary>{table}</details>"
        f'<p class="printed">{escape(about)}: on the screen, and in the result files.</p>'
    )


def number(value: Interval, form: str) -> str:
    """A mean ± half its interval; a dash where nothing was measured."""
    if value.mean is None:
        return "-"
    text = format(value.mean, form)
    if value.low is None or value.high is None:
        return text
    return f'{text} <span class="pm">± {format((value.high - value.low) / 2, form)}</span>'


def factor(value: Interval) -> str:
    """A ratio and the ends of its interval."""
    if value.mean is None:
        return "-"
    text = f"{value.mean:.3f}"
    if value.low is None or value.high is None:
        return text
    return f'{text} <span class="pm">{value.low:.3f} to {value.high:.3f}</span>'


class Pictures:
    """Figures as PNGs in a folder, and in the page. They are drawn when all are known: by several processes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._drawings: dict[str, Drawing] = {}

    def figure(self, name: str, title: str, caption: str, drawing: Drawing, numbers: str = "") -> str:
        """Its place in the page. `numbers`: a table of what it shows, folded in."""
        name = "".join(sign if sign.isalnum() or sign in "-." else "-" for sign in name)
        self._drawings[name] = drawing
        folded = f"<details><summary>numbers</summary>{numbers}</details>" if numbers else ""
        return (
            f'<figure id="{escape(name)}"><img alt="{escape(f"{title}. {caption}")}" '
            f'src="{_place(name)}"><figcaption><b>{escape(title)}</b> {escape(caption)}</figcaption>'
            f"{folded}</figure>"
        )

    def put_into(self, text: str) -> str:
        """The page with all figures in their places. BenchError if one cannot be written."""
        for name, png in zip(self._drawings, draw(list(self._drawings.values())), strict=True):
            path = self._folder / f"{name}.png"
            try:
                path.write_bytes(png)
            except OSError as error:
                raise BenchError(f"{path}: {error.strerror}") from None
            text = text.replace(_place(name), f"data:image/png;base64,{base64.b64encode(png).decode()}")
        return text


def _place(name: str) -> str:
    return f"place:{name};"
