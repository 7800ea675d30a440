"""A migration's report for a terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from whimbrel.model.figures import bytes_text, duration_text, rate_text
from whimbrel.model.progress import MigrationReport
from whimbrel.report.summary import TONES, summary_rows, time_text

_COLOURS = {"good": "green", "fair": "yellow", "bad": "red"}
_SPARKS = "▁▂▃▄▅▆▇█"
MAX_ROUNDS_SHOWN = 12


def render_terminal(report: MigrationReport) -> RenderableType:
    """Summary, rounds, comparison, findings, trouble and what is left, for ``rich.console.Console.print``.

    Values are put in as ``Text``, so that brackets in them are never read as markup.
    """
    parts: list[RenderableType] = [_summary(report)]
    if report.status.trouble is not None:
        trouble = report.status.trouble
        words = Text(f"{trouble.message}\nWhat to do: {trouble.action}")
        parts.append(
            Panel(words, title=Text(f"{trouble.step}: {trouble.code}"), border_style="red", title_align="left")
        )
    if report.status.rounds:
        parts.append(_rounds(report))
    if report.status.verify:
        parts.append(_verification(report))
    if report.findings:
        parts.append(Text("\n".join(("Precheck findings", *(f"  {finding}" for finding in report.findings)))))
    if report.leftovers:
        parts.append(Text("\n".join(("Left over", *(f"  {one}" for one in report.leftovers))), style="red"))
    return Group(*parts)


def _table(title: str) -> Table:
    return Table(
        title=Text(title), title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0)
    )


def _summary(report: MigrationReport) -> Table:
    colour = _COLOURS[TONES[report.outcome]]
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    bad = {"Left over": bool(report.leftovers), "Source restored": report.source_restored is False}
    bad["Verification"] = any(record.mismatches for record in report.status.verify)
    for label, value in summary_rows(report):
        style = f"bold {colour}" if label == "Outcome" else "bold red" if bad.get(label) else ""
        grid.add_row(label, Text(value, style=style))
    return grid


def _rounds(report: MigrationReport) -> Table:
    rounds = report.status.rounds
    shown = rounds if len(rounds) <= MAX_ROUNDS_SHOWN else (rounds[0], *rounds[-(MAX_ROUNDS_SHOWN - 1) :])
    table = _table(f"Rounds  {sparkline([one.sent_bytes for one in rounds])}")
    for name in ("round", "kind", "point in time", "took", "changed", "sent", "rate"):
        table.add_column(name, justify="left" if name in {"kind", "point in time"} else "right", header_style="dim")
    for one in shown:
        table.add_row(
            str(one.number),
            Text(one.kind),
            time_text(one.taken_at),
            duration_text(one.elapsed_s),
            bytes_text(one.changed_bytes),
            bytes_text(one.sent_bytes),
            rate_text(one.rate_bytes_per_s),
        )
    if len(shown) < report.status.rounds_done:
        table.caption = Text(f"{len(shown)} of {report.status.rounds_done} rounds; all are in the HTML and JSON report")
        table.caption_justify = "left"
    return table


def sparkline(values: list[int]) -> str:
    """One block character for each of the last 40 values, by its share of the largest; zero is a dot."""
    shown = values[-40:]
    most = max(shown, default=0)
    return "".join(_SPARKS[min(value * 8 // most, 7)] if value > 0 else "·" for value in shown)


def _verification(report: MigrationReport) -> Table:
    table = _table("Final comparison")
    for name in ("disk", "mode", "compared", "zeros skipped", "read back", "mismatches", "digest"):
        table.add_column(name, header_style="dim", overflow="fold")
    for record in report.status.verify:
        table.add_row(
            Text(record.disk),
            Text(record.mode),
            bytes_text(record.compared_bytes),
            bytes_text(record.skipped_zero_bytes),
            bytes_text(record.read_back_bytes),
            Text(str(record.mismatches), style="bold red" if record.mismatches else "green"),
            Text(record.digest),
        )
    return table
