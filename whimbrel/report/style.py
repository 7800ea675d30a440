"""The page's style sheet: light and dark by the reader's setting, and plain on paper."""

from __future__ import annotations

CSS = """
:root{--bg:#f6f7f9;--card:#fff;--ink:#1b2430;--soft:#5d6b7c;--rule:#dfe4ea;--blue:#2b6cb8;--pale:#93b9e4;--teal:#0f8a7e;
--orange:#c8590c;--red:#c02f36;--green:#1d7a3e;--shade:#c8590c26}
@media(prefers-color-scheme:dark){:root{--bg:#12161c;--card:#1a2029;--ink:#e4e9f0;--soft:#9aa7b7;--rule:#2f3845;
--blue:#6ba6ea;--pale:#38618f;--teal:#45bfb0;--orange:#f2924a;--red:#f27d81;--green:#63c887;--shade:#f2924a2b}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
"DejaVu Sans",sans-serif}
main{max-width:1180px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:26px;line-height:1.25;margin:2px 0 8px;overflow-wrap:anywhere}
h2{font-size:16px;margin:0 0 10px}
p{margin:0 0 8px;overflow-wrap:anywhere}
.over,.name,.legend{color:var(--soft);font-size:13px}
.reason{max-width:80ch}
section,.tile{background:var(--card);border:1px solid var(--rule);border-radius:8px;padding:16px 18px}
section{margin-top:16px}
.trouble{border-left:4px solid var(--red)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(190px,1fr));gap:12px;margin-top:18px}
.big{font-size:23px;font-weight:600;line-height:1.35;overflow-wrap:anywhere}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,460px),1fr));gap:16px;margin-top:16px}
.plots section{margin:0;min-width:0}
.chip{display:inline-block;border:1px solid currentColor;border-radius:99px;padding:1px 11px;font-weight:600}
.good{color:var(--green)}.fair{color:var(--orange)}.bad{color:var(--red)}.quiet-text{color:var(--soft)}
dl{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));gap:0 36px;margin:0;font-size:14px}
dl div{display:flex;gap:14px;padding:4px 0;border-bottom:1px solid var(--rule)}
dt{flex:0 0 140px;color:var(--soft)}
dd{margin:0;min-width:0;overflow-wrap:anywhere}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:14px}
th{color:var(--soft);font-weight:500}
th,td{text-align:left;padding:5px 14px 5px 0;border-bottom:1px solid var(--rule);vertical-align:top}
td{overflow-wrap:break-word}
td:first-child,th:first-child{white-space:nowrap}
tbody tr:last-child td{border-bottom:0}
.figure{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
code{font:12.5px ui-monospace,"DejaVu Sans Mono",monospace;overflow-wrap:anywhere}
td code{white-space:nowrap}
.wide svg{min-width:680px}
ul{margin:0;padding-left:20px}
li{overflow-wrap:anywhere}
summary{cursor:pointer;color:var(--soft);font-size:14px}
details{margin-top:8px}
svg{display:block;height:auto;margin-top:4px}
svg text{font-size:11.5px;fill:var(--soft)}
svg .value{fill:var(--ink);font-weight:600}
svg .row{fill:var(--ink)}
svg .note{font-size:10.5px;font-style:italic}
.grid{stroke:var(--rule);stroke-width:1}
.bar{fill:var(--blue)}.bar.baseline{fill:var(--pale)}.bar.full-compare{fill:var(--teal)}.bar.final,.span.final{fill:var(--orange)}
.line{fill:none;stroke:var(--blue);stroke-width:2;stroke-linejoin:round}
.dot{fill:var(--blue);stroke:var(--card);stroke-width:1.5}
.mark{fill:var(--orange);stroke:var(--card);stroke-width:2}
.marked{stroke:var(--orange);stroke-width:1.5;stroke-dasharray:5 4}
.span{fill:var(--blue)}.span.running{fill:var(--pale)}.span.failed{fill:var(--red)}.span.undone{fill:var(--teal)}
.span.quiet{fill:var(--pale)}
.shade{fill:var(--shade)}
.legend span{margin-right:14px}
.key{display:inline-block;width:11px;height:11px;border-radius:2px;margin-right:6px;vertical-align:-1px;background:var(--blue)}
.key.baseline,.key.running{background:var(--pale)}.key.full-compare,.key.undone{background:var(--teal)}
.key.final{background:var(--orange)}.key.failed{background:var(--red)}
.key.line-key{height:3px;border-radius:0;vertical-align:3px;width:18px}
@media print{body{background:#fff}section,.tile{break-inside:avoid}}
"""
