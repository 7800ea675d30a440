"""What a report says in a few lines: the same words on the page and on the terminal."""

from __future__ import annotations

from datetime import UTC, datetime

from whimbrel.model.figures import bytes_text, duration_text, rate_text
from whimbrel.model.forecast import Score
from whimbrel.model.progress import MigrationReport, Outage

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
    if status.health:
        rows.append(("Health checks", "; ".join(status.health)))
    return rows
