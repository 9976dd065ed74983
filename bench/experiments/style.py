"""How the report looks: on a screen by day and by night, on a phone, on paper. Colours: Okabe and Ito's, which people
with any kind of colour blindness tell apart."""

from __future__ import annotations

STYLE = """
:root{--bg:#fff;--fg:#1b1b1b;--dim:#595959;--line:#d9d9d9;--control:#0072b2;--treatment:#d55e00;--band:#0072b233;
--warn:#fff4e0;--warnline:#b35900}
@media (prefers-color-scheme:dark){:root{--bg:#16181b;--fg:#ececec;--dim:#a8a8a8;--line:#3a3d42;--control:#56b4e9;
--treatment:#e69f00;--band:#56b4e93d;--warn:#33270f;--warnline:#e69f00}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--fg);font:16px/1.5 system-ui,sans-serif}
main{max-width:62rem;margin:0 auto;padding:1.5rem 1rem 3rem}
h1{font-size:1.5rem;line-height:1.3;margin:.2rem 0 .6rem}
h2{font-size:1.1rem;margin:2rem 0 .5rem}
a{color:var(--control)}
.facts,.note{color:var(--dim);font-size:.9rem}
.warning{background:var(--warn);border-left:4px solid var(--warnline);padding:.5rem .8rem;margin:.6rem 0}
.legend{margin:.8rem 0}
.key{width:.8rem;height:.8rem;vertical-align:-.05rem}
table{border-collapse:collapse;width:100%;font-size:.88rem;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:.35rem .6rem .35rem 0;border-bottom:1px solid var(--line);vertical-align:top}
thead th{color:var(--dim);font-weight:500}
tbody th{font-weight:600}
svg{display:block;width:100%;height:auto;margin:.6rem 0}
.narrow{display:none}
svg.key{display:inline-block;margin:0}
svg text{fill:var(--fg);font-size:13px;paint-order:stroke;stroke:var(--bg);stroke-width:4px}
svg text.axis{fill:var(--dim);font-size:12px}
.grid{stroke:var(--line);stroke-width:1}
.zero{stroke:var(--dim);stroke-width:1.5;stroke-dasharray:4 3}
.interval{stroke:var(--fg);stroke-width:2.5}
.control{fill:var(--control)}
.treatment{fill:var(--treatment)}
.hatch{stroke:var(--dim);stroke-width:1}
.band{fill:var(--band);stroke:var(--control);stroke-width:1}
pre{overflow:auto;font-size:.8rem}
@media (max-width:44rem){.wide{display:none}.narrow{display:block}
thead{display:none}tr{display:block;padding:.5rem 0;border-bottom:1px solid var(--line)}
th,td{display:flex;gap:.8rem;border:0;padding:.1rem 0}
td:before{content:attr(data-label);color:var(--dim);flex:0 0 7.5rem}
td:empty{display:none}
td[data-label=""]:before{content:none}tbody th:before{content:none}
main{padding:1rem .8rem}h1{font-size:1.25rem}}
@media print{:root{--bg:#fff;--fg:#000;--dim:#444;--line:#bbb;--control:#0072b2;--treatment:#d55e00;--band:#0072b233}
body{font-size:11pt}main{max-width:none;padding:0}details{display:none}h2{break-after:avoid}svg,tr{break-inside:avoid}
*{-webkit-print-color-adjust:exact;print-color-adjust:exact}}
"""
