"""Copying the disks of an open point in time, interruptibly, until every byte is there."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta

from temporalio import workflow
from temporalio.exceptions import ActivityError
from temporalio.workflow import ActivityHandle

from activities.copy import CopyActivities
from activities.point import PointActivities
from activities.volume import VolumeActivities
from whimbrel import errors
from whimbrel.contracts import failure
from whimbrel.contracts.activity_io import (
    ClosePointInput,
    CopyDiskInput,
    CopyDiskResult,
    CopyKind,
    OpenPointInput,
    OpenWriterInput,
)
from whimbrel.contracts.timeouts import Timing
from whimbrel.model.forecast import RoundRecord
from whimbrel.model.ledger import Fate
from whimbrel.model.naming import point_key, writer_key
from whimbrel.model.point import DiskPoint, OpenPoint, WriterSession
from whimbrel.model.progress import DiskProgress
from workflows.calls import all_of, call, raise_if_cancelled, start
from workflows.course import Course

REOPEN_FIRST_S = 2.0
REOPEN_MAX_S = 300.0
FRUITLESS_REOPENS = 30
"""So many times the two ends are opened again before the operator is asked (two hours and more)."""
MOVER_WAIT = timedelta(minutes=2)
"""With the guest down, so long is waited for a mover to take the copy."""
FINAL_REOPENS = 2
"""The guest is down: rather than wait for long, the cutover is taken back."""


def epoch(point: OpenPoint) -> str:
    """Names one state of the disks for good.

    A point that had to be taken again under its old key is another state: the time it was taken tells them apart,
    so that a copy never goes on from a cursor of the earlier one.
    """
    return f"{point.key}@{point.taken_at.isoformat()}"


async def open_point(
    course: Course,
    key: str,
    since: str | None,
    *,
    timing: Timing | None = None,
    track: bool = True,
    resting: bool = False,
) -> tuple[OpenPoint, bool]:
    """Open a point of the source; (point, by_hash): where tracking is lost, block hashes tell what changed."""
    journal = course.journal
    journal.note(course.plan.source, "point", key, Fate.INTENDED, owner=journal.vm.name)
    disks = tuple(disk.key for disk in journal.vm.disks)
    wanted = OpenPointInput(
        cloud=course.plan.source,
        ref=journal.vm.ref,
        disks=disks,
        key=key,
        migration=journal.migration,
        since=since,
        track=track,
        resting=resting,
    )
    by_hash = False
    try:
        result = await call(PointActivities.open, wanted, summary=f"open point {key}", timing=timing)
    except ActivityError as error:
        if failure.code(error) != errors.BaseLost.__name__:
            raise
        workflow.logger.warning("tracking.lost", extra={"point": key, "since": since})
        by_hash = True
        wanted = wanted.model_copy(update={"since": None})
        result = await call(PointActivities.open, wanted, summary=f"open point {key} (full compare)", timing=timing)
    journal.note(course.plan.source, "point", key, Fate.CREATED, owner=journal.vm.name)
    return result.point, by_hash


async def close_point(course: Course, point: OpenPoint, *, timing: Timing | None = None) -> None:
    """End reading a point of the source."""
    journal = course.journal
    wanted = ClosePointInput(cloud=course.plan.source, ref=point.vm_ref, key=point.key, migration=journal.migration)
    await call(PointActivities.close, wanted, summary=f"close point {point.key}", timing=timing)


async def open_writer(course: Course, *, timing: Timing | None = None) -> WriterSession:
    """Open the target volumes, or find the session that is open."""
    journal = course.journal
    key = writer_key(journal.migration)
    journal.note(course.plan.target, "writer", key, Fate.INTENDED)
    wanted = OpenWriterInput(cloud=course.plan.target, migration=journal.migration, key=key, disks=journal.disks)
    result = await call(VolumeActivities.open_writer, wanted, summary="open target volumes", timing=timing)
    journal.note(course.plan.target, "writer", key, Fate.CREATED)
    journal.writer = result.session
    return result.session


async def copy_disks(
    course: Course,
    point: OpenPoint,
    writer: Sequence[DiskPoint],
    *,
    kind: CopyKind,
    by_hash: bool,
    fresh: bool = False,
) -> list[CopyDiskResult]:
    """Copy all disks, a few at once; the first failure cancels the others and is raised when they have ended."""
    slots = asyncio.Semaphore(course.plan.parallel_disks)
    targets = {disk.key: disk for disk in writer}

    async def one(disk: DiskPoint) -> CopyDiskResult:
        async with slots:
            return await _copy_one(course, point, disk, targets[disk.key], kind=kind, by_hash=by_hash, fresh=fresh)

    return await all_of(map(one, point.disks))


async def _copy_one(
    course: Course, point: OpenPoint, disk: DiskPoint, target: DiskPoint, *, kind: CopyKind, by_hash: bool, fresh: bool
) -> CopyDiskResult:
    """Copy one disk; a pause or another bandwidth stops the activity and starts it again where it was."""
    journal, wishes = course.journal, course.wishes
    result: CopyDiskResult | None = None
    while result is None:
        await course.unpaused()
        limit = wishes.bandwidth_bytes_per_s
        at_once = min(course.plan.parallel_disks, len(point.disks))
        job = CopyDiskInput(
            migration=journal.migration,
            kind=kind,
            epoch=epoch(point),
            source=disk,
            target=target,
            fresh_target=fresh,
            by_hash=by_hash,
            limit_bytes_per_s=limit / at_once if limit else None,
            lanes=course.plan.lanes,
            unchanged_sample=course.plan.verify.unchanged_sample,
            mark_progress=kind in {"baseline", "full-compare"},
        )
        result = await _copy_until_told(course, job)
    journal.set_progress(
        DiskProgress(
            disk=disk.key,
            percent=100.0,
            done_bytes=disk.size_bytes,
            total_bytes=disk.size_bytes,
            sent_bytes=result.sent_bytes,
            rate_bytes_per_s=result.sent_bytes / result.elapsed_s if result.elapsed_s > 0 else 0.0,
        )
    )
    return result


async def _copy_until_told(course: Course, job: CopyDiskInput) -> CopyDiskResult | None:
    """One copy activity; None when it was stopped because the operator wants other settings."""
    wishes = course.wishes
    generation = wishes.copy_generation
    handle: ActivityHandle[CopyDiskResult] = start(
        CopyActivities.copy_disk,
        job,
        summary=f"{job.kind}: copy {job.source.key}",
        queue=course.data_queue,
        schedule_to_start=MOVER_WAIT if job.kind == "final" else None,
    )
    try:
        await workflow.wait_condition(lambda: handle.done() or wishes.copy_generation != generation)
        if not handle.done():
            handle.cancel()
        result = await handle
        raise_if_cancelled()
        return result
    except asyncio.CancelledError:
        # We are being cancelled: wait until the copy has really stopped before anything is undone.
        if not handle.done():
            handle.cancel()
        await asyncio.gather(handle, return_exceptions=True)
        raise
    except ActivityError as error:
        # A rollback may arrive while a paused copy is still stopping; it counts for more than the pause.
        raise_if_cancelled()
        if failure.is_cancel(error) and wishes.copy_generation != generation:
            return None
        raise


RETRYABLE = frozenset(
    {
        errors.Unavailable.__name__,
        errors.NotReady.__name__,
        errors.Throttled.__name__,
        errors.NotFound.__name__,
        "Timeout",
    }
)
"""What opening both ends again may mend. NotFound: the export that a copy was given went with its hypervisor."""


async def run_round(
    course: Course,
    *,
    kind: CopyKind,
    since: str | None,
    by_hash: bool = False,
    keep_open: bool = False,
    timing: Timing | None = None,
    key: str | None = None,
    track: bool = True,
    ready: WriterSession | None = None,
    opened: OpenPoint | None = None,
) -> tuple[RoundRecord, OpenPoint]:
    """Open a point, copy all disks, close it; both ends are opened again when an attempt cannot go on.

    ``opened`` and ``ready`` are the point and the session of the target's volumes, where they are open already.

    A hypervisor that died takes its points with it: opening by the same key either finds the point (and the copy goes
    on from its cursor) or takes a new one (and the copy starts over, for it is another epoch).
    """
    journal = course.journal
    key = opened.key if opened is not None else key or point_key(journal.migration, journal.next_serial())
    started_at = workflow.now()
    wait_s, fruitless = REOPEN_FIRST_S, 0
    while True:
        if opened is not None and fruitless == 0:
            point, lost = opened, False
        else:
            resting = kind == "final"
            point, lost = await open_point(course, key, since, timing=timing, track=track, resting=resting)
        session = (ready if fruitless == 0 else None) or await open_writer(course, timing=timing)
        by_hash = by_hash or lost or _baseline_of_another_state(course, kind, point)
        journal.copying_epoch = epoch(point)
        began = workflow.now()
        try:
            results = await copy_disks(
                course, point, session.disks, kind=kind, by_hash=by_hash, fresh=kind == "baseline" and not by_hash
            )
            break
        except ActivityError as error:
            code = failure.code(error)
            fruitless += 1
            if code == errors.BaseLost.__name__ and not by_hash:
                by_hash = True
                continue
            if code not in RETRYABLE or fruitless >= (FINAL_REOPENS if kind == "final" else FRUITLESS_REOPENS):
                raise
            await workflow.sleep(timedelta(seconds=wait_s), summary=f"{code}: both ends are opened again")
            wait_s = min(wait_s * 2, REOPEN_MAX_S)
    if not keep_open:
        await close_point(course, point, timing=timing)
    return _record(course, point, kind, by_hash, results, started_at, began), point


def _baseline_of_another_state(course: Course, kind: CopyKind, point: OpenPoint) -> bool:
    """Whether a baseline began from a point that is gone: what it copied is kept, hashes tell what is missing."""
    began = course.journal.copying_epoch
    return kind == "baseline" and began != "" and began != epoch(point)


def _record(  # noqa: PLR0917 - plain figures, joined in one place
    course: Course,
    point: OpenPoint,
    kind: CopyKind,
    by_hash: bool,
    results: Sequence[CopyDiskResult],
    started_at: datetime,
    began: datetime,
) -> RoundRecord:
    copying_s = max((workflow.now() - began).total_seconds(), 1e-3)
    sent = sum(result.sent_bytes for result in results)
    named = "full-compare" if by_hash and kind == "delta" else kind
    assert named != "reverse", "reverse copies are not rounds"
    return RoundRecord(
        number=course.journal.rounds_done,
        kind=named,
        started_at=started_at,
        taken_at=point.taken_at,
        elapsed_s=(workflow.now() - started_at).total_seconds(),
        changed_bytes=sum(result.changed_bytes for result in results),
        sent_bytes=sent,
        zeroed_bytes=sum(result.zeroed_bytes for result in results),
        read_bytes=sum(result.read_bytes for result in results),
        digest="+".join(result.digest for result in results)[:200],
        rate_bytes_per_s=sent / copying_s,
        lied_blocks=sum(result.lied_blocks for result in results),
        by_hash=by_hash,
    )
