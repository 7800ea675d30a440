"""Undoing, newest first. Each undo is idempotent and tolerates that its step never happened."""

from __future__ import annotations

from temporalio import workflow
from temporalio.exceptions import FailureError

from activities.compute import ComputeActivities
from activities.copy import CopyActivities
from activities.handover import HandoverActivities
from activities.imports import ImportActivities
from activities.point import PointActivities
from activities.shadow import ShadowActivities
from activities.stream import StreamActivities
from activities.volume import VolumeActivities
from whimbrel.contracts import failure
from whimbrel.contracts.activity_io import (
    ClosePointInput,
    CloseWriterInput,
    ForgetPointsInput,
    ManifestInput,
    RemoveVolumesInput,
    RestoreSourceInput,
    VmInput,
)
from whimbrel.contracts.handover_io import HandoverInput, RemoveMarkersInput
from whimbrel.contracts.lending import COPY_RETURNED_SIGNAL, CopyReturned
from whimbrel.contracts.migration import UndoStep
from whimbrel.contracts.stream_io import ImportInput, ShadowInput, StopStreamInput, StreamInput
from whimbrel.contracts.timeouts import COMPENSATION
from whimbrel.model.ledger import Fate, ObjectKind
from whimbrel.model.naming import marker_name, shadow_key, workflow_id, writer_key
from whimbrel.model.vm import Power
from workflows.calls import call
from workflows.course import Course
from workflows.keeping_writes import stop_target


async def unwind(course: Course, *, down_to: int = 0) -> None:
    """Undo all steps above ``down_to``; one that cannot be undone for a day asks the operator and is tried again."""
    journal = course.journal
    while len(journal.undo) > down_to:
        step = journal.undo[-1]
        await _until_undone(course, step)
        journal.undo.pop()


async def _until_undone(course: Course, step: UndoStep) -> None:
    journal = course.journal
    while True:
        journal.begin_step(f"undo: {step.kind}")
        try:
            await _undo(course, step)
        except FailureError as error:
            found = failure.read(error)
            journal.end_step("failed", f"{found.code}: {found.message}")
            phase = journal.phase
            await course.hold(f"undo: {step.kind}", found)
            journal.enter(phase)
            continue
        journal.end_step("undone")
        return


async def _undo(course: Course, step: UndoStep) -> None:
    """One undo."""
    undoes = {
        "discard-manifests": _discard_manifests,
        "remove-volumes": _remove_volumes,
        "close-writer": _close_writer,
        "forget-points": _forget_points,
        "restore-source": _restore_source,
        "settle-shadow": _settle_shadow,
        "stop-stream": _stop_stream,
        "give-up-imports": _give_up_imports,
        "remove-target-vm": _remove_target_vm,
        "remove-markers": _remove_markers,
        "reclaim-source": _reclaim_source,
        "abandon-disks": _abandon_disks,
        "stop-target": _stop_target,
        "return-copy": _return_copy,
    }
    await undoes[step.kind](course, step)


def _gone(course: Course, cloud: str, kind: ObjectKind) -> None:
    journal = course.journal
    for entry in journal.ledger.open_entries():
        if entry.cloud == cloud and entry.kind == kind:
            journal.note(cloud, kind, entry.name, Fate.GONE, owner=entry.owner)


async def _discard_manifests(course: Course, step: UndoStep) -> None:
    del step
    wanted = ManifestInput(migration=course.journal.migration)
    await call(
        CopyActivities.discard, wanted, summary="discard manifests", queue=course.data_queue, timing=COMPENSATION
    )


async def _remove_volumes(course: Course, step: UndoStep) -> None:
    del step
    journal = course.journal
    # The ledger knows what was intended, also when nobody lived to hear that it was made.
    volumes = tuple((entry.name, entry.owner) for entry in journal.ledger.open_entries() if entry.kind == "volume")
    wanted = RemoveVolumesInput(cloud=course.plan.target, migration=journal.migration, volumes=volumes)
    await call(VolumeActivities.remove, wanted, summary=f"remove {len(volumes)} target volumes")
    _gone(course, course.plan.target, "volume")


async def _close_writer(course: Course, step: UndoStep) -> None:
    del step
    journal = course.journal
    wanted = CloseWriterInput(cloud=course.plan.target, key=writer_key(journal.migration))
    await call(VolumeActivities.close_writer, wanted, summary="close target volumes", timing=COMPENSATION)
    journal.writer = None
    _gone(course, course.plan.target, "writer")


async def _forget_points(course: Course, step: UndoStep) -> None:
    del step
    journal = course.journal
    wanted = ForgetPointsInput(cloud=course.plan.source, ref=journal.vm.ref, migration=journal.migration)
    await call(PointActivities.forget, wanted, summary="forget the source's points", timing=COMPENSATION)
    _gone(course, course.plan.source, "point")


async def _stop_stream(course: Course, step: UndoStep) -> None:
    """The target is off: what it wrote goes to the shadow to the last byte, then the servers end."""
    journal, plan = course.journal, course.plan
    disks = tuple(disk.spec.key for disk in journal.disks)
    if journal.shadow is not None and journal.shadow_kept:
        servers = StreamInput(migration=journal.migration, disks=disks)
        await call(
            StreamActivities.drain, servers, summary="bring the last writes to the source",
            queue=course.data_queue, timing=COMPENSATION,
        )  # fmt: skip
    trace = f"{plan.source}/{journal.vm.ref}" if step.detail else None
    wanted = StopStreamInput(migration=journal.migration, disks=disks, keep_trace_of=trace)
    await call(
        StreamActivities.stop, wanted, summary="end the streaming servers", queue=course.data_queue, timing=COMPENSATION
    )
    _gone(course, plan.target, "stream")


async def _give_up_imports(course: Course, step: UndoStep) -> None:
    """Before the servers end: the storage asks them once more."""
    del step
    journal = course.journal
    wanted = ImportInput(cloud=course.plan.target, migration=journal.migration, disks=journal.disks)
    await call(
        ImportActivities.give_up, wanted, summary="end the imports into the target volumes", queue=course.data_queue
    )


async def _settle_shadow(course: Course, step: UndoStep) -> None:
    """The target's writes become the source's, or are given up with the target."""
    del step
    journal, plan = course.journal, course.plan
    if journal.source_point is not None:
        point = journal.source_point
        close = ClosePointInput(cloud=plan.source, ref=point.vm_ref, key=point.key, migration=journal.migration)
        await call(PointActivities.close, close, summary=f"close point {point.key}", timing=COMPENSATION)
        journal.source_point = None
    wanted = ShadowInput(
        cloud=plan.source,
        migration=journal.migration,
        key=shadow_key(journal.migration),
        vm=journal.vm,
        disks=tuple(disk.key for disk in journal.vm.disks),
    )
    if journal.shadow_kept:
        merged = await call(ShadowActivities.merge, wanted, summary="bring the target's writes into the source's disks")
        journal.writes_kept_bytes = merged.merged_bytes
    else:
        await call(ShadowActivities.drop, wanted, summary="give the target's writes up", timing=COMPENSATION)
    journal.shadow = None
    _gone(course, plan.source, "shadow")


async def _restore_source(course: Course, step: UndoStep) -> None:
    """First of all to the guest: it runs again before the rest is cleaned up."""
    del step
    journal = course.journal
    spec = journal.vm
    if journal.lost_to_another:
        # Another migration has the VM's disks now: whether it runs is no business of ours any more.
        spec = spec.model_copy(update={"power": Power.OFF})
    wanted = RestoreSourceInput(
        cloud=course.plan.source, spec=spec, migration=journal.migration, points=course.takes_points
    )
    result = await call(ComputeActivities.restore_source, wanted, summary="give the source back as it was")
    _gone(course, course.plan.source, "fence")
    journal.restored = result.same_definition
    journal.source_stopped = False
    workflow.logger.info("source.restored", extra={"power": result.power.value, "same": result.same_definition})


async def _remove_target_vm(course: Course, step: UndoStep) -> None:
    journal = course.journal
    cloud = course.plan.target
    if journal.target_ref is not None and course.takes_points:
        points = ForgetPointsInput(cloud=cloud, ref=journal.target_ref, migration=journal.migration)
        await call(PointActivities.forget, points, summary="forget the target's points", timing=COMPENSATION)
    vm = VmInput(cloud=cloud, ref=step.detail, migration=journal.migration)
    await call(ComputeActivities.ensure_absent, vm, summary=f"remove {step.detail} at the target")
    _gone(course, cloud, "vm")
    _gone(course, cloud, "point")
    journal.target_ran = False


async def _stop_target(course: Course, step: UndoStep) -> None:
    """The target's last writes are the source's next reads: it is asked to write out what it holds."""
    del step
    journal = course.journal
    if journal.target_ref is not None:
        vm = VmInput(cloud=course.plan.target, ref=journal.target_ref, migration=journal.migration)
        await stop_target(course, vm)


async def _return_copy(course: Course, step: UndoStep) -> None:
    """A migration that has ended does not want its copy back."""
    del step
    lender = workflow.get_external_workflow_handle(workflow_id(course.plan.plan, course.plan.vm))
    try:
        await lender.signal(COPY_RETURNED_SIGNAL, CopyReturned(drill=course.journal.migration))
    except FailureError as error:
        if failure.is_cancel(error):
            raise
        workflow.logger.warning("loan.not_returned", extra={"reason": failure.read(error).message})


async def _remove_markers(course: Course, step: UndoStep) -> None:
    del step
    wanted = RemoveMarkersInput(cloud=course.plan.source, name=marker_name(course.journal.migration))
    await call(HandoverActivities.remove_markers, wanted, summary="remove notes from the shared storage")


def handover_input(course: Course) -> HandoverInput:
    """Both clouds, the VM and its disks: what every act of a handover is told."""
    journal, plan = course.journal, course.plan
    return HandoverInput(
        source=plan.source,
        target=plan.target,
        spec=journal.vm,
        pools={
            image.pool: plan.pool_for(image.pool) or ""
            for disk in journal.stored
            for image in disk.images
            if image.pool is not None
        },
        migration=journal.migration,
        turn=journal.turn,
        disks=journal.stored,
    )


async def _reclaim_source(course: Course, step: UndoStep) -> None:
    """The very same volumes go back, with all that was written to them meanwhile."""
    del step
    journal = course.journal
    result = await call(HandoverActivities.reclaim, handover_input(course), summary="give the source its disks back")
    journal.lost_to_another = not result.ours
    journal.note(course.plan.source, "release", journal.vm.name, Fate.GONE)


async def _abandon_disks(course: Course, step: UndoStep) -> None:
    del step
    await call(HandoverActivities.abandon, handover_input(course), summary="let go of the disks at the target")
