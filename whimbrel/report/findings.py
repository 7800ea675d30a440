"""Precheck findings for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from whimbrel.model.finding import Finding, Severity

_STYLES = {Severity.BLOCK: "bold red", Severity.WARN: "yellow", Severity.INFO: "cyan"}


def mark(finding: Finding) -> Text:
    """``BLOCK``, ``warn``, ``unknown``, ``accepted`` or ``ok``, in its colour."""
    if finding.outcome == "found":
        name = finding.severity.value
        return Text(name.upper() if finding.blocks else name, style=_STYLES[finding.severity])
    return Text(finding.outcome, style={"ok": "green", "accepted": "magenta"}.get(finding.outcome, "dim"))


def render_findings(findings: Sequence[Finding], *, every: bool = False) -> RenderableType:
    """A table of what was found and what to do, in the order given, and one line of counts below it.

    Rules that are content are counted only, unless ``every`` is set. Values are never read as rich markup.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("", no_wrap=True)
    table.add_column("rule", no_wrap=True)
    table.add_column("found / what to do", overflow="fold")
    shown = [finding for finding in findings if every or finding.outcome != "ok"]
    for finding in shown:
        words = Text(finding.found)
        if finding.action:
            words.append(f"\n\u2192 {finding.action}", style="dim")
        table.add_row(mark(finding), Text(finding.rule), words)
    counts = Text(counts_text(findings), style="bold red" if any(one.blocks for one in findings) else "bold green")
    return Group(table, counts) if shown else counts


def counts_text(findings: Sequence[Finding]) -> str:
    """``2 block, 1 warn, 3 unknown, 60 ok``; severities count what was found."""
    kinds = Counter(one.severity.value if one.outcome == "found" else one.outcome for one in findings)
    order = ("block", "warn", "info", "accepted", "unknown", "ok")
    return ", ".join(f"{kinds[kind]} {kind}" for kind in order if kinds[kind]) or "no rules were asked"
