"""The cutover: source stopped for certain, last delta, target rebuilt and running.

Everything here is quick or gives up: when the target cannot be brought up, the source is started again
and the copied data is kept (``retreat``).
"""

from __future__ import annotations

from datetime import timedelta

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError, FailureError

from activities.compute import ComputeActivities
from activities.point import PointActivities
from activities.precheck import PrecheckActivities
from activities.volume import VolumeActivities
from whimbrel.contracts import failure
from whimbrel.contracts.activity_io import (
    AutostartInput,
    ClosePointInput,
    CloseWriterInput,
    CopyKind,
    EnsureVmInput,
    FenceInput,
    ForgetPointsInput,
    OpenPointInput,
    PrecheckRequest,
    StartInput,
    VmInput,
    VmResult,
)
from whimbrel.contracts.migration import UndoStep
from whimbrel.contracts.timeouts import CUTOVER
from whimbrel.errors import PreconditionFailed, QuotaExceeded
from whimbrel.model.forecast import dirty_rate, link_rate
from whimbrel.model.ledger import Fate
from whimbrel.model.naming import point_key, writer_key
from whimbrel.model.point import WriterSession
from whimbrel.model.progress import Outage, Phase
from whimbrel.model.vm import Power
from workflows.calls import all_of, call
from workflows.copying import open_writer, run_round
from workflows.course import Course
from workflows.opening import target_vm
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
            await course.step("announce the VM", lambda: _announce(course), hold=False)
            await course.step("stop the source", lambda: _take_down(course), hold=False)
            await course.step("final delta", lambda: _last_changes(course), hold=False)
        else:
            await course.step("stop the source", lambda: stop_source(course), hold=False)
            await course.step("final delta", lambda: _final_delta(course), hold=False)
        if course.plan.verify.when == "before_boot":
            await course.step("verify", lambda: _verify_before_boot(course), hold=False)
        journal.enter(Phase.REBUILD)
        await course.step("rebuild the VM", lambda: rebuild(course), hold=False)
        freeze = _wants_first_state(course) and journal.target_point is None
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


async def _announce(course: Course) -> None:
    """All that needs no finished volumes, while the source runs: what the target VM is to have, the volumes' session.

    Where changes are tracked, so is the state that the target begins with: frozen as it is before the last delta, of
    which is known what it brings (``dataplane.LastDelta``).

    A cloud that refuses the VM, for want of a port or of an address, costs no outage then.
    """
    await open_writer(course, timing=CUTOVER)
    wanted = _intended(course)
    answer = await call(ComputeActivities.announce, wanted, summary=f"announce {wanted.vm.name}")
    if answer.made is not None:
        _defined(course, wanted.vm.name, answer.made)
        if _wants_first_state(course) and course.journal.base_token is not None and _outlive(answer.made):
            await _freeze_first_state(course)
            course.journal.frozen_before_delta = True
        return
    course.journal.drop_undo(UndoStep(kind="remove-target-vm", detail=wanted.vm.name))
    course.journal.note(wanted.cloud, "vm", wanted.vm.name, Fate.GONE)


async def stop_source(course: Course) -> None:
    """Ask the guest, then do as the plan says; the state is read back, never assumed."""
    await _take_down(course)
    await _keep_off(course)


async def _take_down(course: Course) -> None:
    journal, plan = course.journal, course.plan
    vm = VmInput(cloud=plan.source, ref=journal.vm.ref, migration=journal.migration)
    journal.push(UndoStep(kind="restore-source"))
    journal.source_stopped = True
    journal.outage = Outage(stop_requested_at=workflow.now())
    if journal.vm.autostart:
        await call(
            ComputeActivities.set_autostart,
            AutostartInput(cloud=plan.source, ref=journal.vm.ref, enabled=False),
            summary="fence the source: no start with its host",
        )
    now = await call(ComputeActivities.power, vm, summary="read the power state", timing=CUTOVER)
    power = now.power
    journal.outage = Outage(stop_requested_at=workflow.now())
    # A crashed guest may still have a hypervisor process that holds its disks.
    if power is not Power.OFF:
        stopped = False
        if plan.stop.graceful_timeout_s > 0 and power is Power.RUNNING:
            await call(ComputeActivities.request_stop, vm, summary="ask the guest to shut down")
            if now.fences:
                # before it is off: somebody who starts it again and again would be quicker then
                journal.note(plan.source, "fence", journal.vm.name, Fate.INTENDED)
                await fence(vm, stopping=True, summary="fence the source while it stops")
            stopped = await _off_within(course, vm, plan.stop.graceful_timeout_s)
        if not stopped:
            if plan.stop.then == "hold" and power is Power.RUNNING:
                raise ApplicationError(
                    f"the guest did not shut down within {plan.stop.graceful_timeout_s:.0f} s",
                    {"action": "shut it down from inside, or set stop.then: force in the plan; then cutover again"},
                    type=PreconditionFailed.__name__,
                    non_retryable=True,
                )
            await call(ComputeActivities.force_off, vm, summary="take the power away")
            await call(
                ComputeActivities.wait_off, vm, summary="confirm that it is off", schedule_to_close=timedelta(minutes=2)
            )
    if now.fences:
        journal.note(plan.source, "fence", journal.vm.name, Fate.INTENDED)
    journal.outage = journal.outage.model_copy(update={"stopped_at": workflow.now()})


async def _keep_off(course: Course) -> None:
    """The fence of the stopped source, where its cloud has one. Raises ActivityError (Conflict) when it is on again."""
    journal, plan = course.journal, course.plan
    if not any(entry.kind == "fence" for entry in journal.ledger.open_entries()):
        return
    vm = VmInput(cloud=plan.source, ref=journal.vm.ref, migration=journal.migration)
    await fence(vm, stopping=False, summary="fence the source: no start by its owner")
    journal.note(plan.source, "fence", journal.vm.name, Fate.CREATED)


async def fence(vm: VmInput, *, stopping: bool, summary: str) -> None:
    """Keep the VM's owner from starting it. Raises ActivityError (Conflict) when it is on and was not asked to stop."""
    wanted = FenceInput(cloud=vm.cloud, ref=vm.ref, migration=vm.migration, stopping=stopping)
    await call(ComputeActivities.fence, wanted, summary=summary)


async def remove_fence(course: Course) -> None:
    """The source is its owner's again, as far as it was kept from being started."""
    journal, plan = course.journal, course.plan
    fences = [entry for entry in journal.ledger.open_entries() if entry.kind == "fence"]
    for entry in fences:
        vm = VmInput(cloud=plan.source, ref=journal.vm.ref, migration=journal.migration)
        await call(ComputeActivities.unfence, vm, summary="take the fence from the source")
        journal.note(entry.cloud, entry.kind, entry.name, Fate.GONE)


async def _off_within(course: Course, vm: VmInput, timeout_s: float) -> bool:
    try:
        await call(
            ComputeActivities.wait_off,
            vm,
            summary="wait until the guest is off",
            schedule_to_close=timedelta(seconds=timeout_s),
        )
    except ActivityError as error:
        if failure.is_cancel(error):
            raise
        return False
    return True


async def _last_changes(course: Course) -> None:
    """The final delta of a source that is kept off; both are seen to at once, and only both together count."""
    journal = course.journal
    await all_of([_final_delta(course, journal.writer), _keep_off(course)])
    last = journal.rounds[-1]
    assert journal.source_point is not None
    told = all(disk.tracked for disk in journal.source_point.disks) and not last.lied_blocks
    if journal.frozen_before_delta and not told:
        # nobody tells what this delta has brought, so the state is frozen once more, now that it is whole
        await _forget_first_state(course)


async def _final_delta(course: Course, ready: WriterSession | None = None) -> None:
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
        course, kind=kind, since=journal.base_token, by_hash=by_hash, keep_open=True, timing=CUTOVER, ready=ready
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


async def rebuild(course: Course) -> None:
    """Release the volumes and define the VM on them."""
    journal, plan = course.journal, course.plan
    key = writer_key(journal.migration)
    await call(
        VolumeActivities.close_writer, CloseWriterInput(cloud=plan.target, key=key), summary="close target volumes",
        timing=CUTOVER,
    )  # fmt: skip
    journal.writer = None
    journal.note(plan.target, "writer", key, Fate.GONE)
    if (
        journal.target_ref is not None
    ):  # announced before the source was stopped; a rollback begins with it all the same
        journal.push_last(UndoStep(kind="remove-target-vm", detail=plan.target_name or journal.vm.name))
    else:
        wanted = _intended(course)
        made = await call(ComputeActivities.ensure_vm, wanted, summary=f"define {wanted.vm.name}")
        _defined(course, wanted.vm.name, made)


def _intended(course: Course) -> EnsureVmInput:
    """The VM to be defined, written down with its undo."""
    journal, plan = course.journal, course.plan
    name = plan.target_name or journal.vm.name
    journal.push(UndoStep(kind="remove-target-vm", detail=name))
    journal.note(plan.target, "vm", name, Fate.INTENDED)
    return EnsureVmInput(cloud=plan.target, vm=target_vm(course, name))


def _defined(course: Course, name: str, made: VmResult) -> None:
    journal = course.journal
    journal.note(course.plan.target, "vm", name, Fate.CREATED)
    journal.target_ref = made.vm.ref
    journal.capabilities = made.capabilities
    journal.console_mark = made.console_mark


def _wants_first_state(course: Course) -> bool:
    """Whether something will be held against the state that the target began with."""
    return course.plan.verify.when == "after_boot" or course.plan.keep_writes


async def start_target(course: Course, *, freeze: bool) -> None:
    """Start the target; with ``freeze`` a point in time is taken before its first write, paused or still off.

    That point serves the comparison while the guest runs already, and its token is where a rollback with
    ``keep_writes`` begins.
    """
    journal, plan = course.journal, course.plan
    assert journal.target_ref is not None
    assert journal.capabilities is not None
    vm = VmInput(cloud=plan.target, ref=journal.target_ref, migration=journal.migration)
    if journal.capabilities.start_paused:
        await call(
            ComputeActivities.start,
            StartInput(cloud=plan.target, ref=journal.target_ref, paused=True),
            summary="start the target, paused",
        )
        if freeze:
            await _freeze_first_state(course)
        journal.target_ran = True
        await call(ComputeActivities.resume, vm, summary="let the target run")
    else:
        able = journal.capabilities
        if freeze and (able.points_outlive_start or able.imports):
            await _freeze_first_state(course)
        journal.target_ran = True
        try:
            await call(
                ComputeActivities.start,
                StartInput(cloud=plan.target, ref=journal.target_ref),
                summary="start the target",
            )
        except ActivityError as error:
            # no room for it: nothing was started (ComputePort.start), so the source may go on and the copy is kept
            if failure.code(error) == QuotaExceeded.__name__ and workflow.patched("no-room-to-start"):
                journal.target_ran = False
            raise
    assert journal.outage is not None
    journal.outage = journal.outage.model_copy(update={"started_at": workflow.now()})


def _outlive(made: VmResult) -> bool:
    return made.capabilities.points_outlive_start


async def _forget_first_state(course: Course) -> None:
    journal, plan = course.journal, course.plan
    assert journal.target_point is not None
    assert journal.target_ref is not None
    key = journal.target_point.key
    wanted = ClosePointInput(cloud=plan.target, ref=journal.target_ref, key=key, migration=journal.migration)
    await call(PointActivities.close, wanted, summary="close the target's point", timing=CUTOVER)
    forget = ForgetPointsInput(cloud=plan.target, ref=journal.target_ref, migration=journal.migration)
    await call(PointActivities.forget, forget, summary="forget the target's point", timing=CUTOVER)
    journal.note(plan.target, "point", key, Fate.GONE, owner=plan.target_name or journal.vm.name)
    journal.target_point = journal.target_token = None
    journal.frozen_before_delta = False


async def _freeze_first_state(course: Course) -> None:
    journal, plan = course.journal, course.plan
    assert journal.target_ref is not None
    key = point_key(journal.migration, journal.next_serial())
    journal.note(plan.target, "point", key, Fate.INTENDED, owner=plan.target_name or journal.vm.name)
    wanted = OpenPointInput(
        cloud=plan.target,
        ref=journal.target_ref,
        disks=tuple(disk.spec.key for disk in journal.disks),
        key=key,
        migration=journal.migration,
    )
    opened = await call(PointActivities.open, wanted, summary="freeze the target's first state", timing=CUTOVER)
    journal.note(plan.target, "point", key, Fate.CREATED, owner=plan.target_name or journal.vm.name)
    journal.target_point, journal.target_token = opened.point, opened.point.token
