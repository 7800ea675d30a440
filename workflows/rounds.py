"""Rounds of changed blocks, until the cutover may begin."""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import partial
from typing import Literal

from temporalio import workflow

from activities.point import PointActivities
from whimbrel.contracts import failure
from whimbrel.contracts.activity_io import ForgetPointsInput
from whimbrel.model.forecast import Forecast, forecast, next_interval_s
from whimbrel.model.ledger import Fate
from whimbrel.model.naming import owns_point, point_key
from whimbrel.model.progress import Phase
from workflows.calls import call
from workflows.copying import run_round
from workflows.course import Course
from workflows.lending import due, end_loans, serve_loans

CUTOVER_BEGINS = "the migration's cutover has begun, which comes first"
HISTORY_EVENTS = 3000
"""A run is continued as new before its history gets near 5,000 events."""


async def baseline(course: Course) -> None:
    """Copy everything that is allocated, while the VM runs."""
    journal = course.journal
    journal.enter(Phase.BASELINE)

    # The same key for every try: a point that is still open is found, and the copy goes on where it was.
    key = point_key(journal.migration, journal.next_serial())

    async def work() -> None:
        record, point = await run_round(course, kind="baseline", since=None, key=key)
        journal.add_round(record)
        journal.base_token, journal.base_taken_at = point.token, point.taken_at

    await course.step("baseline copy", work)
    await _forget_older(course)
    estimate(course)


async def rounds(course: Course) -> Literal["cutover", "continue"]:
    """Copy what changed, again and again; returns when the cutover may begin, or when the history is long enough."""
    journal, wishes = course.journal, course.wishes
    journal.enter(Phase.ROUNDS)
    while True:
        await _between_rounds(course)
        if _may_cut_over(course):
            await end_loans(course, CUTOVER_BEGINS, clear_target=True)
            return "cutover"
        # One key for every try of a round: a point that an earlier try left open is found again.
        work = partial(_round, course, point_key(journal.migration, journal.next_serial()))
        await course.step(f"round {journal.rounds_done}", work)
        made = estimate(course)
        # Paused while the round was closing: the guest is not stopped behind the operator's back.
        if not wishes.paused and _may_cut_over(course, made):
            await end_loans(course, CUTOVER_BEGINS, clear_target=True)
            return "cutover"
        info = workflow.info()
        if info.is_continue_as_new_suggested() or info.get_current_history_length() > HISTORY_EVENTS:
            return "continue"
        await _interval(course)
        wishes.sync_now = False


async def _round(course: Course, key: str) -> None:
    journal = course.journal
    tracked = journal.base_token is not None
    record, point = await run_round(course, kind="delta", since=journal.base_token, by_hash=not tracked, key=key)
    journal.add_round(record)
    journal.base_token, journal.base_taken_at = point.token, point.taken_at
    await _forget_older(course)
    course.copy_torn = course.thaw_failed = False


async def _between_rounds(course: Course) -> None:
    """Wait while it is paused; the copy is whole, so that a drill may have it."""
    while course.wishes.paused or _loans_due(course):
        await workflow.wait_condition(lambda: not course.wishes.paused or _loans_due(course))
        if _loans_due(course):
            await serve_loans(course)


def _loans_due(course: Course) -> bool:
    return due(course) and not course.copy_torn


async def _forget_older(course: Course) -> None:
    """Keep only the newest token; older ones cost the source memory and a merge later."""
    journal = course.journal
    keep = (journal.base_token,) if journal.base_token else ()
    await call(
        PointActivities.forget,
        ForgetPointsInput(cloud=course.plan.source, ref=journal.vm.ref, migration=journal.migration, keep=keep),
        summary="forget older points",
    )
    for entry in journal.ledger.open_entries():
        if entry.kind == "point" and owns_point(entry.name, journal.migration) and entry.name not in keep:
            journal.note(entry.cloud, "point", entry.name, Fate.GONE, owner=entry.owner)


def estimate(course: Course) -> Forecast | None:
    """Forecast the outage and keep the estimate."""
    journal = course.journal
    made = forecast(
        journal.rounds,
        now=workflow.now(),
        shrink_ratio=course.plan.rounds.shrink_ratio,
        stop_s=course.plan.rounds.expected_stop_s,
        boot_s=course.plan.rounds.expected_boot_s,
        dirty_hint=journal.dirty_hint,
        link_hint=journal.link_hint,
        data_bytes=sum(disk.size_bytes for disk in journal.vm.disks),
        streamed=course.plan.mode == "streaming",
    )
    if made is not None:
        journal.add_forecast(made)
    return made


def _window_open(course: Course, now: datetime) -> bool:
    window = course.plan.window
    return (window.opens_at is None or now >= window.opens_at) and (window.closes_at is None or now < window.closes_at)


def _may_cut_over(course: Course, made: Forecast | None = None) -> bool:
    """Whether the cutover begins now: asked for, or the plan says so.

    A window that has opened begins it as soon as a round is done; without a window the forecast outage must fit the
    budget. After a cutover that had to be taken back only the operator begins the next one.
    """
    journal, wishes, plan = course.journal, course.wishes, course.plan
    now = workflow.now()
    closes = plan.window.closes_at
    if closes is not None and now >= closes:
        _say_window_closed(course)
        return False
    if wishes.cutover:
        return True
    if plan.rounds.cutover == "manual" or journal.retreated or made is None or not _window_open(course, now):
        return False
    if plan.window.opens_at is not None or made.outage_s <= plan.rounds.outage_budget_s:
        return True
    hopeless = made.converges is False or journal.rounds_done > plan.rounds.max_rounds
    return hopeless and plan.rounds.if_not_converging == "cutover"


def _say_window_closed(course: Course) -> None:
    course.wishes.cutover = False
    if course.journal.trouble is None:
        course.journal.trouble = course.trouble(
            "window",
            failure.Failure(
                code="WindowClosed",
                message=f"the window closed at {course.plan.window.closes_at} before the cutover could begin",
                action="abort and start again with another window; rounds go on meanwhile",
            ),
            Phase.ROUNDS,
        )


async def _interval(course: Course) -> None:
    """Pause between rounds: as long as the last one took, cut short by the operator or by the window's opening."""
    journal, wishes, policy = course.journal, course.wishes, course.plan.rounds
    last_s = journal.rounds[-1].elapsed_s if journal.rounds else 0.0
    wait_s = next_interval_s(last_s, policy.min_interval_s, policy.max_interval_s)
    opens = course.plan.window.opens_at
    if opens is not None and opens > workflow.now():
        wait_s = min(wait_s, (opens - workflow.now()).total_seconds())
    try:
        await workflow.wait_condition(
            lambda: wishes.cutover or wishes.sync_now or _loans_due(course),
            timeout=timedelta(seconds=max(wait_s, 0.1)),
            timeout_summary="until the next round",
        )
    except TimeoutError:
        return
