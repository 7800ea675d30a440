"""Bringing the target's writes back to the source, so that a rollback after the cutover loses nothing."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from temporalio import workflow
from temporalio.exceptions import ActivityError

from activities.compute import ComputeActivities
from activities.point import PointActivities
from activities.volume import VolumeActivities
from whimbrel import errors
from whimbrel.contracts import failure
from whimbrel.contracts.activity_io import (
    ClosePointInput,
    CloseWriterInput,
    FenceInput,
    OpenDiskWriterInput,
    OpenPointInput,
    VmInput,
)
from whimbrel.contracts.timeouts import COMPENSATION
from whimbrel.model.ledger import Fate
from whimbrel.model.naming import reader_key
from whimbrel.model.point import OpenPoint
from whimbrel.model.vm import Power
from workflows.calls import call
from workflows.copying import close_point, copy_disks
from workflows.course import Course


async def bring_back_writes(course: Course) -> None:
    """Stop the target, copy what it wrote since its start to the source's disks, and check it there.

    What changed is told by the target's own tracking; where that is lost, by comparing block hashes with the state
    at the cutover. A kill in the middle goes on from the manifest: until it is done the target holds the truth,
    and it is removed only afterwards.
    """
    journal, plan = course.journal, course.plan
    assert journal.target_ref is not None
    vm = VmInput(cloud=plan.target, ref=journal.target_ref, migration=journal.migration)
    await stop_target(course, vm)
    if journal.target_point is not None:
        wanted = ClosePointInput(
            cloud=plan.target, ref=vm.ref, key=journal.target_point.key, migration=journal.migration
        )
        await call(PointActivities.close, wanted, summary="close the target's point", timing=COMPENSATION)
        journal.target_point = None
    if journal.source_point is not None:
        # It reads the source's disks and keeps everybody else from writing them, us too.
        await close_point(course, journal.source_point, timing=COMPENSATION)
        journal.source_point = None
    key = reader_key(journal.migration)
    journal.note(plan.target, "point", key, Fate.INTENDED, owner=vm.ref)
    point, by_hash = await _open_target(course, key)
    writer = f"{key}-back"
    journal.note(plan.source, "writer", writer, Fate.INTENDED)
    session = await call(
        VolumeActivities.open_disk_writer,
        OpenDiskWriterInput(
            cloud=plan.source,
            migration=journal.migration,
            key=writer,
            vm_ref=journal.vm.ref,
            disks=tuple(disk.key for disk in journal.vm.disks),
        ),
        summary="open the source's disks for writing",
    )
    if course.wishes.drop_writes:
        raise asyncio.CancelledError  # asked for in the last moment: nothing of the source is touched
    journal.source_half_written = True
    results = await copy_disks(course, point, session.session.disks, kind="reverse", by_hash=by_hash)
    journal.source_half_written = False
    journal.writes_kept_bytes = sum(result.changed_bytes for result in results)
    await call(
        VolumeActivities.close_writer,
        CloseWriterInput(cloud=plan.source, key=writer),
        summary="close the source's disks",
        timing=COMPENSATION,
    )
    journal.note(plan.source, "writer", writer, Fate.GONE)
    close = ClosePointInput(cloud=plan.target, ref=vm.ref, key=key, migration=journal.migration)
    await call(PointActivities.close, close, summary="close the target's disks", timing=COMPENSATION)
    journal.note(plan.target, "point", key, Fate.GONE, owner=vm.ref)
    workflow.logger.info("writes.brought_back", extra={"bytes": journal.writes_kept_bytes})


async def stop_target(course: Course, vm: VmInput) -> None:
    """Ask the target to shut down, so that it writes out what it holds; then take its power away.

    It is fenced meanwhile, where its cloud can: somebody may start it again and again.
    """
    now = await call(ComputeActivities.power, vm, summary="read the target's power")
    if now.power is Power.RUNNING:
        await call(ComputeActivities.request_stop, vm, summary="ask the target to shut down", timing=COMPENSATION)
    if now.fences:
        fence = FenceInput(cloud=vm.cloud, ref=vm.ref, migration=vm.migration, stopping=True)
        await call(ComputeActivities.fence, fence, summary="fence the target while it stops", timing=COMPENSATION)
    if now.power is Power.OFF:
        return
    if now.power is not Power.RUNNING:
        await call(ComputeActivities.force_off, vm, summary="take the target's power away", timing=COMPENSATION)
        return
    patience = timedelta(seconds=max(course.plan.stop.graceful_timeout_s, 1.0))
    try:
        await call(ComputeActivities.wait_off, vm, summary="wait until the target is off", schedule_to_close=patience)
    except ActivityError as error:
        if failure.is_cancel(error):
            raise
        await call(ComputeActivities.force_off, vm, summary="take the target's power away", timing=COMPENSATION)


async def _open_target(course: Course, key: str) -> tuple[OpenPoint, bool]:
    journal, plan = course.journal, course.plan
    assert journal.target_ref is not None
    wanted = OpenPointInput(
        cloud=plan.target,
        ref=journal.target_ref,
        disks=tuple(disk.spec.key for disk in journal.disks),
        key=key,
        migration=journal.migration,
        since=journal.target_token,
        track=False,
    )
    by_hash = journal.target_token is None
    try:
        opened = await call(PointActivities.open, wanted, summary="open the target's disks", timing=COMPENSATION)
    except ActivityError as error:
        if failure.code(error) != errors.BaseLost.__name__:
            raise
        by_hash = True
        wanted = wanted.model_copy(update={"since": None})
        opened = await call(PointActivities.open, wanted, summary="open the target's disks", timing=COMPENSATION)
    return opened.point, by_hash
