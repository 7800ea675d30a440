"""The cutover: source stopped for certain, last delta, target rebuilt and running.

Everything here is quick or gives up: when the target cannot be brought up, the source is started again
and the copied data is kept (``retreat``).
"""

from __future__ import annotations

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError, FailureError

from activities.point import PointActivities
from activities.precheck import PrecheckActivities
from whimbrel.contracts import failure
from whimbrel.contracts.activity_io import CopyKind, OpenPointInput, PrecheckRequest, RestingPointResult
from whimbrel.contracts.timeouts import CUTOVER
from whimbrel.errors import BaseLost, PreconditionFailed
from whimbrel.model.forecast import dirty_rate, link_rate
from whimbrel.model.ledger import Fate
from whimbrel.model.naming import point_key
from whimbrel.model.point import OpenPoint, WriterSession
from whimbrel.model.progress import Phase
from workflows.calls import all_of, call
from workflows.copying import run_round
from workflows.course import Course
from workflows.defining import announce, forget_first_state, rebuild, start_target, wants_first_state
from workflows.stopping import keep_off, stop_source, take_down
from workflows.undo import unwind
from workflows.verifying import compare_all


class Retreated(Exception):
    """The cutover was taken back: the source runs again, copied data is kept."""

    def __init__(self, found: failure.Failure) -> None:
        super().__init__(found.message)
        self.found = found


async def cutover(course: Course) -> None:
    """Stop, copy the last delta, rebuild, start. Raises Retreated when the source had to be started again."""
    journal = course.journal
    mark = len(journal.undo)
    journal.trouble = None
    journal.enter(Phase.CUTOVER)
    try:
        await course.step("last precheck", lambda: last_precheck(course), hold=False)
        if workflow.patched("announced-before-the-stop"):
            await course.step("announce the VM", lambda: announce(course), hold=False)
            await course.step("open the source's last state", lambda: _open_at_rest(course), hold=False)
            await course.step("stop the source", lambda: take_down(course), hold=False)
            await course.step("final delta", lambda: _last_changes(course), hold=False)
        else:
            await course.step("stop the source", lambda: stop_source(course), hold=False)
            await course.step("final delta", lambda: _final_delta(course), hold=False)
        if course.plan.verify.when == "before_boot":
            await course.step("verify", lambda: _verify_before_boot(course), hold=False)
        journal.enter(Phase.REBUILD)
        await course.step("rebuild the VM", lambda: rebuild(course), hold=False)
        freeze = wants_first_state(course) and journal.target_point is None
        await course.step("start the target", lambda: start_target(course, freeze=freeze), hold=False)
    except FailureError as error:
        if failure.is_cancel(error) or journal.target_ran:
            raise
        found = failure.read(error)
        await retreat(course, mark, found)
        raise Retreated(found) from error


async def retreat(course: Course, mark: int, found: failure.Failure) -> None:
    """Undo the cutover only: the target VM goes, the source runs again, volumes and tokens stay."""
    journal = course.journal
    workflow.logger.warning("cutover.retreat", extra={"code": found.code})
    await unwind(course, down_to=mark)
    journal.source_stopped = False
    journal.source_point = journal.target_point = None
    journal.target_ref = journal.target_token = None
    journal.frozen_before_delta = False
    journal.outage = None
    journal.retreated = course.copy_torn = True
    course.wishes.cutover = False


async def last_precheck(course: Course) -> None:
    """Check once more what may have changed since the start. Raises ApplicationError (PreconditionFailed)."""
    journal = course.journal
    request = PrecheckRequest(
        plan=course.plan,
        stage="cutover",
        probe=False,
        migration=journal.migration,
        link_hint=link_rate(journal.rounds) or journal.link_hint,
        dirty_hint=dirty_rate(journal.rounds) or journal.dirty_hint,
    )
    answer = await call(
        PrecheckActivities.run, request, summary="check again before the stop", queue=course.data_queue, timing=CUTOVER
    )
    blocking = answer.result.blocking()
    if blocking:
        raise ApplicationError(
            "; ".join(finding.line for finding in blocking),
            {"action": blocking[0].action},
            type=PreconditionFailed.__name__,
            non_retryable=True,
        )


async def _open_at_rest(course: Course) -> None:
    """What is to be read of the source once it is off, where its cloud can tell that beforehand."""
    journal, plan = course.journal, course.plan
    if journal.base_token is None:
        return
    key = point_key(journal.migration, journal.next_serial())
    journal.note(plan.source, "point", key, Fate.INTENDED, owner=journal.vm.name)
    wanted = OpenPointInput(
        cloud=plan.source,
        ref=journal.vm.ref,
        disks=tuple(disk.key for disk in journal.vm.disks),
        key=key,
        migration=journal.migration,
        since=journal.base_token,
    )
    try:
        answer = await call(PointActivities.open_at_rest, wanted, summary=f"open point {key}, to be read at rest")
    except ActivityError as error:
        if failure.code(error) != BaseLost.__name__:
            raise
        answer = RestingPointResult()  # the last delta will find it lost, and compare by hashes
    fate = Fate.CREATED if answer.point is not None else Fate.GONE
    journal.note(plan.source, "point", key, fate, owner=journal.vm.name)
    journal.source_point = answer.point


async def _last_changes(course: Course) -> None:
    """The final delta of a source that is kept off; both are seen to at once, and only both together count."""
    journal = course.journal
    opened, journal.source_point = journal.source_point, None
    await all_of([_final_delta(course, journal.writer, opened), keep_off(course)])
    last = journal.rounds[-1]
    assert journal.source_point is not None
    told = all(disk.tracked for disk in journal.source_point.disks) and not last.by_hash and not last.lied_blocks
    if journal.frozen_before_delta and not told:
        # nobody tells what this delta has brought, so the state is frozen once more, now that it is whole
        await forget_first_state(course)


async def _final_delta(course: Course, ready: WriterSession | None = None, opened: OpenPoint | None = None) -> None:
    """Copy what changed since the last round; the point stays open: it is the proof, and it fences the source."""
    journal = course.journal
    kind: CopyKind = "final"
    by_hash = False
    if journal.rounds_done == 0:
        kind = "baseline"
    elif journal.base_token is None:
        by_hash = True
    # A long copy while the guest is down is still better than none: only quick failures retreat.
    record, point = await run_round(
        course,
        kind=kind,
        since=journal.base_token,
        by_hash=by_hash,
        keep_open=True,
        timing=CUTOVER,
        ready=ready,
        opened=opened,
    )
    journal.add_round(record)
    journal.source_point = point
    assert journal.outage is not None
    journal.outage = journal.outage.model_copy(update={"final_delta_done_at": workflow.now()})


async def _verify_before_boot(course: Course) -> None:
    journal = course.journal
    assert journal.source_point is not None
    assert journal.writer is not None
    await compare_all(course, journal.source_point.disks, journal.writer.disks)
