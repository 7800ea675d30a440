"""Comparing source and target, byte for byte or by a stated sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from temporalio.exceptions import ApplicationError

from activities.copy import CopyActivities
from whimbrel.contracts.activity_io import CompareDiskInput
from whimbrel.errors import DataMismatch
from whimbrel.model.point import DiskPoint
from whimbrel.model.progress import VerifyRecord
from workflows.calls import all_of, call
from workflows.course import Course


async def compare_all(
    course: Course,
    source: Sequence[DiskPoint],
    target: Sequence[DiskPoint],
    *,
    mode: Literal["full", "sampled"] | None = None,
    before_delta: bool = False,
) -> None:
    """Compare all disks, as the plan says or as ``mode`` does, and keep the records.

    With ``before_delta`` the target's points are older than the last delta.

    Raises ApplicationError (DataMismatch) with the first offsets.
    """
    policy = course.plan.verify
    mode = mode or policy.mode
    targets = {disk.key: disk for disk in target}

    async def one(disk: DiskPoint) -> VerifyRecord:
        job = CompareDiskInput(
            migration=course.journal.migration,
            disk=disk.key,
            source=disk,
            target=targets[disk.key],
            mode=mode,
            sample_fraction=policy.sample_fraction,
            lanes=course.plan.lanes,
            frozen_before_delta=before_delta,
        )
        result = await call(
            CopyActivities.compare_disk, job, summary=f"compare {disk.key} ({mode})", queue=course.data_queue
        )
        return result.record

    records = await all_of(map(one, source))
    course.journal.verify = tuple(records)
    wrong = [record for record in records if record.mismatches]
    if wrong:
        told = "; ".join(f"{r.disk}: {r.mismatches} blocks, first at {r.first_mismatches[:4]}" for r in wrong)
        raise ApplicationError(
            f"source and target differ: {told}",
            {"action": "roll back: the source is intact"},
            type=DataMismatch.__name__,
            non_retryable=True,
        )
