"""The target VM: announced or defined on its volumes, frozen in its first state, started."""

from __future__ import annotations

from temporalio import workflow
from temporalio.exceptions import ActivityError

from activities.compute import ComputeActivities
from activities.point import PointActivities
from activities.volume import VolumeActivities
from whimbrel.contracts import failure
from whimbrel.contracts.activity_io import (
    ClosePointInput,
    CloseWriterInput,
    EnsureVmInput,
    ForgetPointsInput,
    OpenPointInput,
    StartInput,
    VmInput,
    VmResult,
)
from whimbrel.contracts.migration import UndoStep
from whimbrel.contracts.timeouts import CUTOVER
from whimbrel.errors import QuotaExceeded
from whimbrel.model.ledger import Fate
from whimbrel.model.naming import point_key, writer_key
from workflows.calls import call
from workflows.copying import open_writer
from workflows.course import Course
from workflows.opening import target_vm


async def announce(course: Course) -> None:
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
        tracked, able = course.journal.base_token is not None, answer.made.capabilities
        if wants_first_state(course) and tracked and able.points_outlive_start:
            await _freeze_first_state(course)
            course.journal.frozen_before_delta = True
        return
    course.journal.drop_undo(UndoStep(kind="remove-target-vm", detail=wanted.vm.name))
    course.journal.note(wanted.cloud, "vm", wanted.vm.name, Fate.GONE)


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
    if journal.target_ref is not None:
        # announced before the source was stopped; a rollback begins with it all the same
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


def wants_first_state(course: Course) -> bool:
    """Whether something will be held against the state that the target began with."""
    return course.plan.verify.when == "after_boot" or course.plan.keep_writes


async def forget_first_state(course: Course) -> None:
    """Give up the state that was frozen too early, with its token."""
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
