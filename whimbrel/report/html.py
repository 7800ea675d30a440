"""A migration's report as one page that needs nothing else: no script, no font, no picture from anywhere."""

from __future__ import annotations

from datetime import datetime

from whimbrel.model.figures import bytes_text, duration_text, rate_text
from whimbrel.model.forecast import Forecast
from whimbrel.model.ledger import Fate
from whimbrel.model.progress import MigrationReport
from whimbrel.report.markup import Markup, el, join, table
from whimbrel.report.plot import Bar, Mark, Span, bars, line, timeline
from whimbrel.report.style import CSS
from whimbrel.report.summary import (
    OUTCOMES,
    TONES,
    outage_parts,
    outage_text,
    score_text,
    summary_rows,
    time_text,
    verification_text,
)

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""Nothing is fetched even if something slipped through the escaping."""
WIDE = 1120
"""Units across a plot that fills the page, so that its letters are as large as those of the half-wide ones."""


def render(report: MigrationReport) -> str:
    """The page as text, UTF-8. All values of the report are escaped."""
    title = f"{report.status.vm}: {report.status.source} \u2192 {report.status.target}"
    body = join(
        _head(report, title),
        _tiles(report),
        _section("Summary", _summary(report)),
        _trouble(report),
        el("div", _bytes_plot(report), _rate_plot(report), _forecast_plot(report), _outage(report), class_="plots"),
        _timeline(report),
        _verification(report),
        _rounds(report),
        _findings(report),
        _ledger(report),
    )
    page = el(
        "html",
        el(
            "head",
            el("meta", charset="utf-8"),
            el("meta", name="viewport", content="width=device-width, initial-scale=1"),
            el("meta", name="color-scheme", content="light dark"),
            el("meta", http_equiv="Content-Security-Policy", content=_POLICY),
            el("title", title),
            el("style", Markup(CSS)),
        ),
        el("body", el("main", body)),
        lang="en",
    )
    return f"<!doctype html>\n{page}\n"


def _section(title: str, *children: object, class_: str | None = None) -> Markup:
    return el("section", el("h2", title), *children, class_=class_)


def _summary(report: MigrationReport) -> Markup:
    return el("dl", *(el("div", el("dt", label), el("dd", value)) for label, value in summary_rows(report)))


def _head(report: MigrationReport, title: str) -> Markup:
    return el(
        "header",
        el("p", f"Whimbrel migration {report.status.migration}", class_="over"),
        el("h1", title),
        el(
            "p",
            el("span", OUTCOMES[report.outcome], class_=f"chip {TONES[report.outcome]}"),
            f" {report.status.mode} \u00b7 plan {report.status.plan} \u00b7 {time_text(report.status.now)}",
        ),
        el("p", report.reason, class_="reason") if report.reason else "",
    )


def _tiles(report: MigrationReport) -> Markup:
    status = report.status
    wrong = sum(record.mismatches for record in status.verify)
    if not status.verify:
        proof, tone = "not compared", "plain"
    else:
        proof, tone = (f"{wrong} mismatches", "bad") if wrong else ("equal", "good")
    tiles = [
        ("Outage", outage_text(report) if status.outage else "none", "plain", score_text(status.score)),
        ("Sent", bytes_text(report.bytes_sent), "plain", f"{bytes_text(report.bytes_read)} read"),
        ("Rounds", str(status.rounds_done), "plain", _duration(report)),
        ("Source and target", proof, tone, verification_text(report)),
        (
            "Left over",
            str(len(report.leftovers)),
            "bad" if report.leftovers else "good",
            f"{len(report.ledger.entries)} objects in the ledger",
        ),
    ]
    return el(
        "div",
        *(
            el(
                "div",
                el("div", name, class_="name"),
                el("div", value, class_=f"big {tone}"),
                el("div", note, class_="name"),
                class_="tile",
            )
            for name, value, tone, note in tiles
        ),
        class_="tiles",
    )


def _duration(report: MigrationReport) -> str:
    return f"{duration_text((report.status.now - report.status.started_at).total_seconds())} in all"


def _trouble(report: MigrationReport) -> Markup | str:
    trouble = report.status.trouble
    if trouble is None:
        return ""
    return _section(
        "Trouble",
        el("p", el("strong", f"{trouble.step}: {trouble.code}"), f" since {time_text(trouble.since)}"),
        el("p", trouble.message),
        el("p", f"What to do: {trouble.action}"),
        class_="trouble",
    )


def _since(report: MigrationReport, moment: datetime) -> float:
    return max((moment - report.status.started_at).total_seconds(), 0.0)


def _bytes_plot(report: MigrationReport) -> Markup | str:
    rounds = report.status.rounds
    if not rounds:
        return ""
    data = [
        Bar(
            str(one.number),
            float(one.sent_bytes),
            one.kind,
            f"round {one.number} ({one.kind}): {bytes_text(one.sent_bytes)} of {bytes_text(one.changed_bytes)} changed",
        )
        for one in rounds
    ]
    kinds = list(dict.fromkeys(one.kind for one in rounds))
    legend = el("p", *(el("span", el("i", class_=f"key {kind}"), kind) for kind in kinds), class_="legend")
    cut = f" (the last {len(rounds)} of {report.status.rounds_done})" if report.status.rounds_done > len(rounds) else ""
    return _section(f"Bytes sent in each round{cut}", legend, bars("Bytes sent in each round", data, bytes_text))


def _rate_plot(report: MigrationReport) -> Markup | str:
    moving = [one for one in report.status.rounds if one.rate_bytes_per_s > 0]
    if not moving:
        return ""
    points = [
        (
            _since(report, one.started_at) + one.elapsed_s / 2,
            one.rate_bytes_per_s,
            f"round {one.number} ({one.kind}): {rate_text(one.rate_bytes_per_s)} for {duration_text(one.elapsed_s)}",
        )
        for one in moving
    ]
    return _section(
        "Rate over time",
        el("p", "Each dot is one round.", class_="legend"),
        line("Rate", points, rate_text, binary=True),
    )


def _forecast_plot(report: MigrationReport) -> Markup | str:
    outage = report.status.outage
    actual = outage.seconds() if outage else None
    mark = None
    if outage is not None and actual is not None:
        mark = Mark(_since(report, outage.stop_requested_at), actual, f"actual {duration_text(actual)}")
    if not report.forecasts and mark is None:
        return ""
    points = [(_since(report, one.made_at), one.outage_s, _forecast_hint(one)) for one in report.forecasts]
    return _section(
        "Outage: forecast and actual",
        el("p", el("span", el("i", class_="key line-key"), "forecast if cut over then"), class_="legend"),
        line("Forecast outage over time", points, duration_text, mark=mark),
    )


def _forecast_hint(one: Forecast) -> str:
    parts = f"stop {duration_text(one.stop_s)}, changes {duration_text(one.delta_s)}, boot {duration_text(one.boot_s)}"
    return f"{duration_text(one.outage_s)} with {bytes_text(one.delta_bytes)} of changes: {parts}"


def _outage(report: MigrationReport) -> Markup | str:
    outage = report.status.outage
    if outage is None:
        return ""
    parts = outage_parts(outage)
    rows: list[tuple[object, ...]] = [(name, duration_text(seconds)) for name, seconds in parts]
    total = outage.seconds()
    rows.append((el("strong", "outage"), el("strong", duration_text(total) if total is not None else "not ended")))
    at = 0.0
    spans = []
    for name, seconds in parts:
        short = name.split(" (")[0]
        kind = "final" if name != parts[-1][0] or outage.healthy_at is None else "quiet"
        spans.append(Span(short, at, at + max(seconds, 0.0), kind, f"{name}: {duration_text(seconds)}"))
        at += max(seconds, 0.0)
    drawn = timeline("Parts of the outage", spans) if spans else ""
    began = el("p", f"The stop was requested at {time_text(outage.stop_requested_at)}.", class_="legend")
    return _section("What the outage was made of", began, drawn, table(("part", "time"), rows, figures=frozenset({1})))


def _timeline(report: MigrationReport) -> Markup | str:
    status = report.status
    if not status.steps:
        return ""
    spans = []
    for step in status.steps:
        end = step.ended_at or status.now
        detail = f" \u00b7 {step.detail}" if step.detail else ""
        took = duration_text((end - step.started_at).total_seconds())
        start_s = _since(report, step.started_at)
        hint = f"{step.name}: {step.outcome}, {took}{detail}"
        spans.append(Span(step.name, start_s, max(_since(report, end), start_s), step.outcome, hint))
    outcomes = list(dict.fromkeys(step.outcome for step in status.steps))
    legend = el("p", *(el("span", el("i", class_=f"key {one}"), one) for one in outcomes), class_="legend")
    shade = None
    if status.outage is not None and status.outage.healthy_at is not None:
        shade = (
            _since(report, status.outage.stop_requested_at),
            _since(report, status.outage.healthy_at),
            f"outage {outage_text(report)}",
        )
    rows: list[tuple[object, ...]] = [
        (step.name, time_text(step.started_at), time_text(step.ended_at), step.outcome, step.detail)
        for step in status.steps
    ]
    listing = el(
        "details",
        el("summary", "All steps as a table"),
        table(("step", "started", "ended", "outcome", "detail"), rows),
    )
    return _section(
        "Steps",
        legend,
        el("div", timeline("Steps over time", spans, shade=shade, width=WIDE), class_="scroll wide"),
        listing,
    )


def _verification(report: MigrationReport) -> Markup | str:
    if not report.status.verify:
        return ""
    rows: list[tuple[object, ...]] = [
        (
            record.disk,
            record.mode + (f" ({record.sample})" if record.sample else ""),
            bytes_text(record.compared_bytes),
            bytes_text(record.skipped_zero_bytes),
            bytes_text(record.read_back_bytes),
            str(record.mismatches)
            + (f" (first at {', '.join(map(str, record.first_mismatches))})" if record.first_mismatches else ""),
            el("code", record.digest),
        )
        for record in report.status.verify
    ]
    head = ("disk", "mode", "compared", "zeros skipped", "read back", "mismatches", "digest")
    return _section("Final comparison", table(head, rows, figures=frozenset({2, 3, 4})))


def _rounds(report: MigrationReport) -> Markup | str:
    if not report.status.rounds:
        return ""
    rows: list[tuple[object, ...]] = [
        (
            one.number,
            one.kind,
            time_text(one.taken_at),
            duration_text(one.elapsed_s),
            bytes_text(one.changed_bytes),
            bytes_text(one.sent_bytes),
            rate_text(one.rate_bytes_per_s),
            one.lied_blocks,
            el("code", one.digest),
        )
        for one in report.status.rounds
    ]
    head = ("round", "kind", "point in time", "took", "changed", "sent", "rate", "untracked blocks", "digest")
    listing = el(
        "details",
        el("summary", "All rounds as a table"),
        table(head, rows, figures=frozenset({0, 3, 4, 5, 6, 7})),
    )
    return _section("Rounds", listing)


def _findings(report: MigrationReport) -> Markup:
    if not report.findings:
        return _section("Precheck findings", el("p", "Every rule was content.", class_="legend"))
    return _section("Precheck findings", el("ul", *(el("li", finding) for finding in report.findings)))


def _ledger(report: MigrationReport) -> Markup:
    tones = {Fate.GONE: "quiet-text", Fate.KEPT: "good", Fate.INTENDED: "fair", Fate.CREATED: "fair"}
    rows: list[tuple[object, ...]] = [
        (
            entry.cloud,
            entry.kind,
            el("code", entry.name),
            entry.owner,
            el("span", entry.fate.value, class_=tones[entry.fate]),
            time_text(entry.noted_at),
        )
        for entry in report.ledger.entries
    ]
    if report.leftovers:
        left = join(el("p", "Still found at the end:"), el("ul", *(el("li", one) for one in report.leftovers)))
    else:
        left = el("p", "Nothing was left over.", class_="legend")
    head = ("cloud", "kind", "name", "on", "fate", "noted")
    return _section("Ledger", left, table(head, rows) if rows else "")
