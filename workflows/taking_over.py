"""Taking over by stream: source stopped for certain, servers on its last state, target booted at once.

As in ``cutover``: everything is quick or gives up, and then the source is started again (``retreat``).
"""

from __future__ import annotations

from temporalio import workflow
from temporalio.exceptions import FailureError

from activities.compute import ComputeActivities
from activities.imports import ImportActivities
from activities.shadow import ShadowActivities
from activities.stream import StreamActivities
from activities.volume import VolumeActivities
from whimbrel.contracts import failure
from whimbrel.contracts.activity_io import CloseWriterInput, StartInput
from whimbrel.contracts.migration import UndoStep
from whimbrel.contracts.stream_io import DiskStream, ImportInput, ServeInput, ShadowInput
from whimbrel.contracts.timeouts import CUTOVER
from whimbrel.model.ledger import Fate
from whimbrel.model.naming import point_key, shadow_key, writer_key
from whimbrel.model.progress import Phase
from workflows.calls import call
from workflows.copying import MOVER_WAIT, epoch, open_point
from workflows.course import Course
from workflows.cutover import Retreated, last_precheck, retreat
from workflows.defining import rebuild, start_target
from workflows.stopping import stop_source


async def take_over(course: Course) -> None:
    """Stop the source, serve its disks, boot the target. Raises Retreated when the source had to be started again."""
    journal = course.journal
    mark = len(journal.undo)
    journal.trouble = None
    journal.enter(Phase.CUTOVER)
    try:
        await course.step("last precheck", lambda: last_precheck(course), hold=False)
        await course.step("stop the source", lambda: stop_source(course), hold=False)
        await course.step("serve the source's disks", lambda: _serve_last_state(course), hold=False)
        journal.enter(Phase.REBUILD)
        await course.step("rebuild the VM", lambda: rebuild(course), hold=False)
        await course.step("start the target", lambda: _start(course), hold=False)
    except FailureError as error:
        if failure.is_cancel(error) or journal.target_ran:
            raise
        found = failure.read(error)
        await retreat(course, mark, found)
        journal.disks = tuple(disk.model_copy(update={"served": None}) for disk in journal.disks)
        raise Retreated(found) from error


async def _serve_last_state(course: Course) -> None:
    """Open the stopped source for reading (which also fences it), keep its shadow if planned, start the servers."""
    journal, plan = course.journal, course.plan
    key = point_key(journal.migration, journal.next_serial())
    point, _ = await open_point(course, key, journal.base_token, timing=CUTOVER)
    journal.source_point = point
    journal.epoch = epoch(point)
    if course.copies_first:
        # The servers write the volumes now.
        writer = writer_key(journal.migration)
        await call(
            VolumeActivities.close_writer,
            CloseWriterInput(cloud=plan.target, key=writer),
            summary="close target volumes",
            timing=CUTOVER,
        )
        journal.writer = None
        journal.note(plan.target, "writer", writer, Fate.GONE)
    if plan.stream.protect != "none":
        journal.push(UndoStep(kind="settle-shadow"))
        await open_shadow(course)
    journal.push(UndoStep(kind="stop-stream"))
    # Where tracking cannot say what changed (also ``by_hash``), all of it is streamed: that costs no outage.
    await serve(course)
    await begin_imports(course)


async def open_shadow(course: Course) -> None:
    """Have the overlays over the source's disks served, or find them served."""
    journal, plan = course.journal, course.plan
    key = shadow_key(journal.migration)
    journal.note(plan.source, "shadow", key, Fate.INTENDED, owner=journal.vm.ref)
    opened = await call(
        ShadowActivities.open, shadow_input(course), summary="keep the target's writes at the source", timing=CUTOVER
    )
    journal.note(plan.source, "shadow", key, Fate.CREATED, owner=journal.vm.ref)
    journal.shadow = opened.session


def shadow_input(course: Course) -> ShadowInput:
    """The shadow of all disks."""
    journal = course.journal
    return ShadowInput(
        cloud=course.plan.source,
        migration=journal.migration,
        key=shadow_key(journal.migration),
        vm=journal.vm,
        disks=tuple(disk.key for disk in journal.vm.disks),
    )


async def serve(course: Course, *, record: bool = False) -> None:
    """Start the servers on the open point, or tell those that run where it is now."""
    journal, plan = course.journal, course.plan
    assert journal.source_point is not None
    point = journal.source_point
    for disk in journal.disks:
        journal.note(plan.target, "stream", f"{journal.migration}/{disk.spec.key}", Fate.INTENDED)
    shadows = {disk.key: disk.endpoint for disk in journal.shadow.disks} if journal.shadow else {}
    wanted = ServeInput(
        cloud=plan.target,
        migration=journal.migration,
        vm=f"{plan.source}/{journal.vm.ref}",
        epoch=journal.epoch,
        disks=tuple(
            DiskStream(
                disk=disk,
                source=point.disk(disk.spec.key),
                # After a take-over that was taken back the volume holds what had arrived by then.
                precopied=course.copies_first or journal.retreated,
                shadow=shadows.get(disk.spec.key),
            )
            for disk in journal.disks
        ),
        policy=plan.stream,
        bandwidth_bytes_per_s=course.wishes.bandwidth_bytes_per_s,
        record=record,
    )
    made = await call(
        StreamActivities.serve,
        wanted,
        summary=f"serve {len(wanted.disks)} disks while they arrive",
        queue=course.data_queue,
        timing=CUTOVER,
        schedule_to_close=None if journal.target_ran else MOVER_WAIT,
    )
    journal.imports = made.imports
    endpoints = {disk.key: disk.endpoint for disk in made.disks}
    journal.disks = tuple(disk.model_copy(update={"served": endpoints.get(disk.spec.key)}) for disk in journal.disks)
    for disk in journal.disks:
        journal.note(plan.target, "stream", f"{journal.migration}/{disk.spec.key}", Fate.CREATED)


async def begin_imports(course: Course) -> None:
    """Where the target's storage imports, let the volumes read from the servers; elsewhere nothing."""
    if not course.journal.imports:
        return
    course.journal.push(UndoStep(kind="give-up-imports"))
    await call(
        ImportActivities.begin, import_input(course), summary="let the volumes read from the servers",
        queue=course.data_queue, timing=CUTOVER,
    )  # fmt: skip


def import_input(course: Course) -> ImportInput:
    """All volumes of the target."""
    journal = course.journal
    return ImportInput(
        cloud=course.plan.target,
        migration=journal.migration,
        disks=journal.disks,
        bandwidth_bytes_per_s=course.wishes.bandwidth_bytes_per_s,
    )


async def _start(course: Course) -> None:
    """From here on the target may write: only a rollback leads back."""
    journal, plan = course.journal, course.plan
    assert journal.target_ref is not None
    if journal.imports:
        await start_target(course, freeze=True)
        return
    journal.target_ran = True
    journal.shadow_kept = journal.shadow is not None
    await call(
        ComputeActivities.start, StartInput(cloud=plan.target, ref=journal.target_ref), summary="start the target"
    )
    assert journal.outage is not None
    journal.outage = journal.outage.model_copy(update={"started_at": workflow.now()})
