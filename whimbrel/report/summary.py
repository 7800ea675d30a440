"""What a report says in a few lines: the same words on the page and on the terminal."""

from __future__ import annotations

from datetime import UTC, datetime

from whimbrel.model.figures import bytes_text, duration_text, rate_text
from whimbrel.model.forecast import Score
from whimbrel.model.progress import MigrationReport, Outage
from whimbrel.model.stream import StreamFigures

OUTCOMES = {"completed": "Completed", "rolled_back": "Rolled back", "refused": "Refused"}
TONES = {"completed": "good", "rolled_back": "fair", "refused": "bad"}


def time_text(moment: datetime | None) -> str:
    """``2026-11-23 12:00:05 UTC``, or ``-``."""
    return "-" if moment is None else f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def outage_text(report: MigrationReport) -> str:
    """The outage, as far as it is known."""
    outage = report.status.outage
    if outage is None:
        return "none: the guest was not stopped"
    seconds = outage.seconds()
    return "the target did not pass its checks" if seconds is None else duration_text(seconds)


def outage_parts(outage: Outage) -> list[tuple[str, float]]:
    """Name and seconds of each part of the outage that is known, in order."""
    parts, before = [], outage.stop_requested_at
    for name, moment in (
        ("guest stops", outage.stopped_at),
        ("last changes are copied", outage.final_delta_done_at),
        ("target is built and runs", outage.started_at),
        ("guest boots, health checks pass", outage.healthy_at),
    ):
        if moment is not None:
            parts.append((name, (moment - before).total_seconds()))
            before = moment
    return parts


def score_text(score: Score | None) -> str:
    """``forecast 12 s, actual 10 s: 20 % too long``."""
    if score is None:
        return "not scored"
    ratio = score.error_ratio
    said = "exact" if abs(ratio) < 0.005 else f"{abs(ratio) * 100:.0f} % too {'long' if ratio > 0 else 'short'}"
    return f"forecast {duration_text(score.forecast_outage_s)}, actual {duration_text(score.actual_outage_s)}: {said}"


def verification_text(report: MigrationReport) -> str:
    """Whether source and target were compared and equal."""
    records = report.status.verify
    if not records:
        return "not compared"
    if all(record.mode == "same-volume" for record in records):
        return f"the very same volumes: {len(records)} disks changed hands, nothing was copied"
    wrong = sum(record.mismatches for record in records)
    compared = bytes_text(sum(record.compared_bytes for record in records))
    modes = "/".join(sorted({record.mode for record in records}))
    return (
        f"{wrong} mismatches in {compared}" if wrong else f"equal: {len(records)} disks, {compared} compared ({modes})"
    )


def leftovers_text(report: MigrationReport) -> str:
    """How many objects are left, or that none is."""
    return f"{len(report.leftovers)} left: {', '.join(report.leftovers)}" if report.leftovers else "none"


def summary_rows(report: MigrationReport) -> list[tuple[str, str]]:
    """Label and value of each line of the summary; lines that do not apply are left out."""
    status = report.status
    rows = [
        ("VM", status.vm),
        ("Plan", status.plan),
        ("Mode", status.mode),
        ("From \u2192 to", f"{status.source} \u2192 {status.target}"),
        ("Outcome", OUTCOMES[report.outcome] + (f": {report.reason}" if report.reason else "")),
        ("Outage", outage_text(report)),
        ("Forecast", score_text(status.score)),
        ("Bytes sent", bytes_text(report.bytes_sent)),
        ("Bytes read", bytes_text(report.bytes_read)),
        ("Rounds", str(status.rounds_done)),
        ("Verification", verification_text(report)),
        ("Left over", leftovers_text(report)),
        ("Started", time_text(status.started_at)),
        ("Ended", f"{time_text(status.now)} (after {duration_text((status.now - status.started_at).total_seconds())})"),
        ("Migration", status.migration),
    ]
    if status.target_ref:
        rows.append(("Target VM", status.target_ref))
    if status.bandwidth_bytes_per_s is not None:
        rows.append(("Bandwidth limit", rate_text(status.bandwidth_bytes_per_s)))
    if report.source_restored is not None:
        rows.append(("Source restored", "yes, its definition is the one before" if report.source_restored else "NO"))
    if report.writes_kept_bytes is not None:
        rows.append(("Writes brought back", bytes_text(report.writes_kept_bytes)))
    rows += _stream_rows(report)
    if status.health:
        rows.append(("Health checks", "; ".join(status.health)))
    return rows


def stream_text(figures: StreamFigures) -> str:
    """Hit rate, misses and where the bytes came from."""
    rate = "no requests" if figures.hit_rate is None else f"{100 * figures.hit_rate:.1f} % found their data"
    waits = [figures.miss_p50_ms, figures.miss_p95_ms, figures.miss_p99_ms]
    told = ", ".join(
        f"{name} {value:.1f} ms" for name, value in zip(("p50", "p95", "p99"), waits, strict=True) if value
    )
    fetched = f"{bytes_text(figures.demand_bytes)} on demand, {bytes_text(figures.background_bytes)} ahead"
    return f"{rate}; {figures.misses} misses{f' ({told})' if told else ''}; {fetched}"


def _stream_rows(report: MigrationReport) -> list[tuple[str, str]]:
    status, drill = report.status, report.drill
    rows = []
    if status.stream is not None:
        rows.append(("Stream", stream_text(status.stream)))
        if status.stream.server_starts:
            rows.append(("Servers restarted", str(status.stream.server_starts)))
    if status.outage is not None and status.outage.started_at is not None and status.hydrated_at is not None:
        took_s = (status.hydrated_at - status.outage.started_at).total_seconds()
        rows.append(("All data there", f"{duration_text(took_s)} after the start"))
    if status.switched_at is not None:
        rows.append(("On its own disks", time_text(status.switched_at)))
    if drill is not None:
        rows.append(("Drill", "passed" if drill.passed else f"NOT passed: {drill.why}"))
        if drill.boot_s is not None:
            rows.append(("Boot until checks passed", duration_text(drill.boot_s)))
        if drill.frozen_at is not None:
            rows.append(("State rehearsed", time_text(drill.frozen_at)))
    return rows
