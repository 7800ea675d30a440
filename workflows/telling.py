"""What a migration shows: status, report, search attributes, and the page in the Temporal UI."""

from __future__ import annotations

from typing import Literal

from temporalio import workflow

from whimbrel.contracts.names import SA_MODE, SA_PHASE, SA_PLAN, SA_VM
from whimbrel.model.forecast import Score
from whimbrel.model.progress import TERMINAL, MigrationReport, MigrationStatus, StepRecord
from workflows.course import Course
from workflows.operator import allowed

SHOWN_STEPS = 50
SHOWN_ROUNDS = 100


def first_attributes(course: Course) -> dict[str, str | int | float | bool]:
    """Search attributes that never change, and the phase."""
    plan = course.plan
    return {SA_PHASE: course.journal.phase.value, SA_MODE: course.kind, SA_PLAN: plan.plan, SA_VM: plan.vm}


def score(course: Course) -> Score | None:
    """The last forecast before the stop, held against the outage that came."""
    outage = course.journal.outage
    actual = outage.seconds() if outage else None
    if outage is None or actual is None:
        return None
    before = [made for made in course.journal.forecasts if made.made_at <= outage.stop_requested_at]
    return Score(forecast_outage_s=before[-1].outage_s, actual_outage_s=actual) if before else None


def status(course: Course) -> MigrationStatus:
    """The answer to the status query."""
    journal, plan, wishes = course.journal, course.plan, course.wishes
    return MigrationStatus(
        migration=journal.migration,
        plan=plan.plan,
        vm=plan.vm,
        mode=course.kind,
        source=plan.source,
        target=plan.target,
        phase=journal.phase,
        paused=wishes.paused,
        started_at=journal.started_at,
        now=workflow.now(),
        steps=tuple(journal.steps[-SHOWN_STEPS:]),
        rounds=tuple(journal.rounds[-SHOWN_ROUNDS:]),
        rounds_done=journal.rounds_done,
        disks=tuple(journal.progress.values()),
        forecast=journal.forecasts[-1] if journal.forecasts else None,
        score=score(course),
        outage=journal.outage,
        trouble=journal.trouble,
        confirm_deadline=journal.confirm_deadline,
        confirm_default=plan.confirm.then,
        verify=journal.verify,
        target_ref=journal.target_ref,
        health=journal.health,
        stream=journal.stream,
        hydrated_at=journal.hydrated_at,
        switched_at=journal.switched_at,
        bandwidth_bytes_per_s=wishes.bandwidth_bytes_per_s,
        allowed=() if journal.phase in TERMINAL else allowed(course.situation()),
    )


def report(
    course: Course,
    *,
    outcome: Literal["completed", "rolled_back", "refused"],
    reason: str,
    leftovers: tuple[str, ...],
) -> MigrationReport:
    """The lasting record."""
    journal = course.journal
    return MigrationReport(
        status=status(course),
        outcome=outcome,
        reason=reason,
        ledger=journal.ledger,
        leftovers=leftovers,
        bytes_read=journal.bytes_read,
        bytes_sent=journal.bytes_sent,
        findings=journal.findings,
        forecasts=tuple(journal.forecasts),
        source_restored=journal.restored,
        writes_kept_bytes=journal.writes_kept_bytes,
        drill=journal.drill,
    )


def details(course: Course) -> str:
    """Markdown for the Temporal UI: where it stands, what may be done, and why."""
    journal, plan = course.journal, course.plan
    paused = " (paused)" if course.wishes.paused else ""
    lines = [
        f"## {plan.vm}: {plan.source} → {plan.target} ({course.kind})",
        f"**Phase: {journal.phase.value}**{paused} · migration `{journal.migration}`",
    ]
    if journal.trouble is not None:
        trouble = journal.trouble
        lines += [
            "",
            f"> **{trouble.code}** in _{trouble.step}_: {trouble.message}",
            f"> What to do: {trouble.action}. You can: {', '.join(trouble.choices)}.",
        ]
    if journal.forecasts:
        made = journal.forecasts[-1]
        now = "Outage if cut over now" if journal.outage is None else "Outage that was forecast"
        lines += ["", f"{now}: **{made.outage_s:.1f} s** (budget {plan.rounds.outage_budget_s:.0f} s)"]
    seconds = journal.outage.seconds() if journal.outage else None
    if seconds is not None:
        lines += ["", f"Outage as seen by the orchestrator: **{seconds:.1f} s**"]
    lines += _stream_lines(course)
    if journal.confirm_deadline is not None:
        lines += ["", f"Without an answer: {plan.confirm.then} at {journal.confirm_deadline:%Y-%m-%d %H:%M:%S} UTC"]
    if journal.rounds:
        lines += ["", "| round | kind | changed | sent | took |", "|---|---|---|---|---|"]
        lines += [
            f"| {r.number} | {r.kind} | {r.changed_bytes / 1e6:.1f} MB | {r.sent_bytes / 1e6:.1f} MB |"
            f" {r.elapsed_s:.1f} s |"
            for r in journal.rounds[-10:]
        ]
    lines += ["", "| step | outcome | began | detail |", "|---|---|---|---|"]
    lines += [_step_row(step) for step in journal.steps[-12:]]
    if journal.verify:
        lines += ["", *(f"Compared {v.disk}: {v.mismatches} mismatches, digest `{v.digest}`" for v in journal.verify)]
    if journal.phase not in TERMINAL:
        lines += ["", f"Operator may now: {', '.join(allowed(course.situation())) or 'nothing'}"]
    return "\n".join(lines)


def _stream_lines(course: Course) -> list[str]:
    figures = course.journal.stream
    if figures is None:
        return []
    arrived = figures.total_bytes - figures.missing_bytes
    share = 100 * arrived / max(figures.total_bytes, 1)
    rates = f"{figures.background_bytes_per_s / 1e6:.1f} MB/s, on demand {figures.demand_bytes_per_s / 1e6:.1f} MB/s"
    told = ["", f"Arrived: **{share:.1f} %** of {figures.total_bytes / 1e6:.0f} MB · background {rates}"]
    if figures.hit_rate is not None:
        waits = (figures.miss_p50_ms or 0, figures.miss_p95_ms or 0, figures.miss_p99_ms or 0)
        told.append(
            f"Requests that found their data: **{100 * figures.hit_rate:.1f} %**;"
            " misses wait p50 {:.1f}, p95 {:.1f}, p99 {:.1f} ms".format(*waits)
        )
    if course.plan.stream.protect != "none":
        told.append(f"Writes not yet at the source: {figures.lag_bytes} bytes, {figures.lag_s:.1f} s")
    if course.journal.stream_slow:
        told.append("> Misses wait longer than the plan allows: the background yields until they are fast again.")
    return told


def _step_row(step: StepRecord) -> str:
    detail = step.detail.replace("|", "/").replace("\n", " ")
    return f"| {step.name} | {step.outcome} | {step.started_at:%H:%M:%S} | {detail} |"
