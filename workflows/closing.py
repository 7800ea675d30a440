"""The last steps: health, final comparison, the confirm gate, commit; and the way back."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError

from activities.compute import ComputeActivities
from activities.copy import CopyActivities
from activities.health import HealthActivities
from activities.ledger import LedgerActivities
from activities.point import PointActivities
from whimbrel.contracts import failure
from whimbrel.contracts.activity_io import (
    ClosePointInput,
    ForgetPointsInput,
    HealthInput,
    ManifestInput,
    ReadBackInput,
    VmInput,
)
from whimbrel.contracts.names import SA_OUTAGE
from whimbrel.errors import GuestUnbootable
from whimbrel.model.ledger import Fate
from whimbrel.model.progress import Phase
from workflows import attributes
from workflows.calls import call
from workflows.copying import close_point
from workflows.course import Course
from workflows.stopping import remove_fence
from workflows.verifying import compare_all


class RollbackWanted(Exception):
    """The plan's own policy asks for a rollback."""


async def verify(course: Course) -> None:
    """Health checks of the running target, then the comparison with the source. Raises RollbackWanted."""
    journal = course.journal
    journal.enter(Phase.VERIFY)
    await check_health(course)
    if course.plan.verify.when == "after_boot" and journal.target_point is not None:
        await course.step("verify", lambda: _compare(course))
    await course.step("close points", lambda: _close_points(course))


async def check_health(course: Course) -> None:
    """Health checks of the running target; a failure waits for the operator or raises RollbackWanted, as planned."""
    policy = course.plan.health
    try:
        await course.step("health checks", lambda: _check(course), hold=policy.on_failure == "wait")
    except ActivityError as error:
        if failure.is_cancel(error):
            raise
        raise RollbackWanted(failure.read(error).message) from error
    except ApplicationError as error:
        raise RollbackWanted(error.message) from error


async def _check(course: Course) -> None:
    journal, plan = course.journal, course.plan
    assert journal.target_ref is not None
    wanted = HealthInput(
        cloud=plan.target, ref=journal.target_ref, policy=plan.health, console_mark=journal.console_mark
    )
    try:
        result = await call(
            HealthActivities.check,
            wanted,
            summary=f"health checks ({1 + len(plan.health.checks)})",
            schedule_to_close=timedelta(seconds=plan.health.timeout_s),
        )
    except ActivityError as error:
        if failure.is_cancel(error):
            raise
        found = failure.read(error)
        raise ApplicationError(
            f"health checks did not pass within {plan.health.timeout_s:.0f} s: {found.message}",
            {"action": "look at the target's console; resume checks again, rollback goes back"},
            type=GuestUnbootable.__name__,
            non_retryable=True,
        ) from None  # what is read from a failure is its innermost cause
    journal.health = result.passed
    if journal.outage is not None:
        journal.outage = journal.outage.model_copy(update={"healthy_at": workflow.now()})
        attributes.publish({SA_OUTAGE: round(journal.outage.seconds() or 0.0, 1)})


async def _compare(course: Course) -> None:
    journal = course.journal
    assert journal.source_point is not None
    assert journal.target_point is not None
    early = journal.frozen_before_delta
    await compare_all(course, journal.source_point.disks, journal.target_point.disks, before_delta=early)


async def _close_points(course: Course) -> None:
    """The target's frozen first state goes; its token stays for ``keep_writes``. The source's point stays: a fence."""
    journal = course.journal
    if journal.target_point is None:
        return
    assert journal.target_ref is not None
    point = journal.target_point
    wanted = ClosePointInput(
        cloud=course.plan.target, ref=journal.target_ref, key=point.key, migration=journal.migration
    )
    await call(PointActivities.close, wanted, summary="close the target's point")
    if not course.plan.keep_writes:
        forget = ForgetPointsInput(cloud=course.plan.target, ref=journal.target_ref, migration=journal.migration)
        await call(PointActivities.forget, forget, summary="forget the target's point")
        journal.note(course.plan.target, "point", point.key, Fate.GONE)
        journal.target_token = None
    journal.target_point = None


async def confirm(course: Course) -> Literal["commit", "rollback"]:
    """Wait for the operator, or for the plan's timer."""
    journal, wishes, policy = course.journal, course.wishes, course.plan.confirm
    journal.enter(Phase.CONFIRM)
    journal.begin_step("confirm gate")
    timeout = timedelta(seconds=policy.after_s) if policy.after_s and policy.then != "wait" else None
    journal.confirm_deadline = workflow.now() + timeout if timeout else None
    course.show()
    try:
        await workflow.wait_condition(
            lambda: wishes.confirm,
            timeout=timeout,
            timeout_summary=f"confirm gate: {policy.then} at the end" if timeout else None,
        )
        decided: Literal["commit", "rollback"] = "commit"
        how = "by the operator"
    except TimeoutError:
        decided = "commit" if policy.then == "auto_confirm" else "rollback"
        how = f"by the plan ({policy.then})"
    journal.confirm_deadline = None
    journal.end_step("done", f"{decided} {how}")
    return decided


async def commit(course: Course) -> None:
    """Hand over: the target is the operator's, the source keeps its disks and stays off; our traces go."""
    journal, plan = course.journal, course.plan
    journal.confirmed = True
    journal.enter(Phase.COMMIT)

    async def work() -> None:
        assert journal.target_ref is not None
        if journal.source_point is not None:
            await close_point(course, journal.source_point)
            journal.source_point = None
        for cloud, ref in ((plan.source, journal.vm.ref), (plan.target, journal.target_ref)):
            wanted = ForgetPointsInput(cloud=cloud, ref=ref, migration=journal.migration)
            await call(PointActivities.forget, wanted, summary=f"forget points on {cloud}")
        await remove_fence(course)
        vm = VmInput(cloud=plan.target, ref=journal.target_ref, migration=journal.migration)
        await call(ComputeActivities.release, vm, summary="hand the target over")
        await call(
            CopyActivities.discard,
            ManifestInput(migration=journal.migration),
            summary="discard manifests",
            queue=course.data_queue,
        )
        for entry in journal.ledger.open_entries():
            fate = Fate.KEPT if entry.kind in {"volume", "vm"} else Fate.GONE
            journal.note(entry.cloud, entry.kind, entry.name, fate, owner=entry.owner)
        journal.undo.clear()

    await course.step("commit", work)


async def read_back(course: Course) -> tuple[str, ...]:
    """Hold the ledger against both clouds; what is left over, one line each."""
    journal, plan = course.journal, course.plan
    if journal.spec is None or not journal.ledger.entries:
        return ()
    wanted = ReadBackInput(
        migration=journal.migration,
        entries=journal.ledger.entries,
        source=plan.source,
        target=plan.target,
        source_ref=journal.vm.ref,
        target_ref=journal.target_ref,
        points=course.takes_points,
        vm=journal.vm if any(entry.kind == "shadow" for entry in journal.ledger.entries) else None,
    )
    result = await call(LedgerActivities.read_back, wanted, summary="look for leftovers on both clouds")
    for entry in result.entries:
        journal.ledger = journal.ledger.note(entry)
    return result.leftovers
