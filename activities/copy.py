"""Activities that move and compare bytes; they run near the data."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path

import structlog
from temporalio import activity

from activities.bulk import BulkWatch, Notify
from whimbrel.contracts.activity_io import (
    CompareDiskInput,
    CompareDiskResult,
    CopyDiskInput,
    CopyDiskResult,
    CopyKind,
    Done,
    ManifestInput,
)
from whimbrel.dataplane import (
    CopyProgress,
    CopySettings,
    CopyStopped,
    Governor,
    LastDelta,
    Manifest,
    ManifestCorrupt,
    Priority,
    ScanProgress,
    ScanStopped,
    changed_by_hash,
    compare,
    copy,
    discard_manifest,
    open_device,
    sample_unchanged,
    verify_round,
)
from whimbrel.errors import BaseLost
from whimbrel.model.extent import Extent, align, total_bytes
from whimbrel.model.progress import VerifyRecord
from whimbrel.ports.block import BlockDevice

UNIT_BYTES = 65536
_PRIORITY: dict[CopyKind, Priority] = {
    "baseline": Priority.BASELINE,
    "delta": Priority.DELTA,
    "full-compare": Priority.DELTA,
    "final": Priority.FINAL_DELTA,
    "reverse": Priority.FINAL_DELTA,
}


def manifest_path(state_dir: Path, migration: str, disk: str) -> Path:
    """Where the mover keeps what it knows of a target disk."""
    return state_dir / "manifests" / migration / f"{disk}.manifest"


def _seed(text: str) -> int:
    """The same sample for every attempt of a job, another one for the next round."""
    return int.from_bytes(hashlib.blake2s(text.encode(), digest_size=8).digest())


def _units_bytes(extents: list[Extent], device: BlockDevice) -> int:
    return total_bytes(align(extents, UNIT_BYTES, device.size_bytes))


def _scanned(watch: BulkWatch) -> Callable[[ScanProgress], None]:
    def on_progress(progress: ScanProgress) -> None:
        watch.moved(done=progress.position_bytes, total=progress.total_bytes)

    return on_progress


class CopyActivities:
    """Copies of disks, comparisons, and the manifests they leave."""

    def __init__(
        self, state_dir: Path, governor: Governor, *, no_progress_s: float = 600.0, notify: Notify | None = None
    ) -> None:
        self._state_dir = state_dir
        self._governor = governor
        self._no_progress_s = no_progress_s
        self._notify = notify

    def _manifest_path(self, migration: str, disk: str) -> Path:
        path = manifest_path(self._state_dir, migration, disk)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    @activity.defn(name="copy.disk", no_thread_cancel_exception=True)
    def copy_disk(self, job: CopyDiskInput) -> CopyDiskResult:
        """Bring the target disk up to the source's point in time; goes on where an earlier attempt ended.

        Raises BaseLost when the manifest is damaged: it is discarded, and a copy by hashes sends what it no longer
        vouches for.
        """
        path = self._manifest_path(job.migration, job.source.key)
        try:
            return self._copy_between(job, path)
        except ManifestCorrupt as error:
            discard_manifest(path)
            raise BaseLost(f"the manifest of {job.source.key} was damaged and is discarded", cause=error) from error

    def _copy_between(self, job: CopyDiskInput, path: Path) -> CopyDiskResult:
        notify = self._notify if job.mark_progress else None
        with ExitStack() as stack:
            watch = stack.enter_context(BulkWatch(job.source.key, no_progress_s=self._no_progress_s, notify=notify))
            source = open_device(job.source.endpoint)
            stack.callback(source.close)
            target = open_device(job.target.endpoint)
            stack.callback(target.close)
            manifest = stack.enter_context(Manifest.open(path, source.size_bytes))
            try:
                return self._copy(job, source, target, manifest, watch)
            except (CopyStopped, ScanStopped):
                watch.raise_stopped()
                raise

    def _copy(
        self, job: CopyDiskInput, source: BlockDevice, target: BlockDevice, manifest: Manifest, watch: BulkWatch
    ) -> CopyDiskResult:
        settings = CopySettings(lanes=job.lanes, limit_bytes_per_s=job.limit_bytes_per_s, priority=_PRIORITY[job.kind])
        extents, changed_bytes, lied = self._what_to_copy(job, source, manifest, watch)
        watch.stage("copying")

        def on_progress(progress: CopyProgress) -> None:
            watch.moved(
                done=progress.done_bytes,
                total=progress.total_bytes,
                sent=progress.sent_bytes,
                rate_bytes_per_s=progress.rate_bytes_per_s,
                eta_s=progress.eta_s,
            )

        result = copy(
            source,
            target,
            extents=extents,
            manifest=manifest,
            epoch=job.epoch,
            settings=settings,
            governor=self._governor,
            on_progress=on_progress,
            should_stop=watch.should_stop,
            target_is_zero=job.fresh_target,
        )
        if job.kind != "baseline":
            watch.stage("checking")
            verify_round(target, manifest, lanes=job.lanes, governor=self._governor, should_stop=watch.should_stop)
        return CopyDiskResult(
            disk=job.source.key,
            changed_bytes=watch.sent_before_bytes + result.sent_bytes + result.zeroed_bytes
            if changed_bytes is None
            else changed_bytes,
            read_bytes=result.read_bytes,
            sent_bytes=watch.sent_before_bytes + result.sent_bytes,
            zeroed_bytes=result.zeroed_bytes,
            skipped_bytes=result.skipped_bytes,
            elapsed_s=result.elapsed_s,
            digest=result.digest_hex,
            lied_blocks=lied,
        )

    def _what_to_copy(
        self, job: CopyDiskInput, source: BlockDevice, manifest: Manifest, watch: BulkWatch
    ) -> tuple[Iterable[Extent], int | None, int]:
        """The extents, their bytes where known beforehand, and how many blocks tracking was caught lying about."""
        if job.kind == "baseline" and not job.by_hash:
            return source.extents(), None, 0
        watch.stage("scanning")
        if job.by_hash or not job.source.tracked:
            return *self._by_hash(job, source, manifest, watch), 0
        changed = list(source.changed())
        lies: list[int] = []
        if job.unchanged_sample > 0:
            lies = sample_unchanged(
                source,
                manifest,
                changed,
                fraction=job.unchanged_sample,
                seed=_seed(job.epoch),
                governor=self._governor,
                should_stop=watch.should_stop,
            )
        if lies:
            structlog.get_logger("whimbrel.copy").warning(
                "tracking.lied", disk=job.source.key, blocks=len(lies), first_offset=lies[0]
            )
            return *self._by_hash(job, source, manifest, watch), len(lies)
        return changed, _units_bytes(changed, source), 0

    def _by_hash(
        self, job: CopyDiskInput, source: BlockDevice, manifest: Manifest, watch: BulkWatch
    ) -> tuple[list[Extent], int]:
        """What differs from the manifest, found completely before the copy changes the manifest."""
        found = changed_by_hash(
            source,
            manifest,
            lanes=job.lanes,
            governor=self._governor,
            priority=_PRIORITY[job.kind],
            on_progress=_scanned(watch),
            should_stop=watch.should_stop,
        )
        extents = list(found)
        return extents, _units_bytes(extents, source)

    @activity.defn(name="compare.disk", no_thread_cancel_exception=True)
    def compare_disk(self, job: CompareDiskInput) -> CompareDiskResult:
        """Compare both ends over all allocated extents, or over a stated sample of them."""
        with ExitStack() as stack:
            watch = stack.enter_context(BulkWatch(job.disk, no_progress_s=self._no_progress_s))
            watch.stage("comparing")
            source = open_device(job.source.endpoint)
            stack.callback(source.close)
            target = open_device(job.target.endpoint)
            stack.callback(target.close)
            since = self._last_delta(job, source, stack) if job.frozen_before_delta else None
            try:
                result = compare(
                    source,
                    target,
                    since=since,
                    mode=job.mode,
                    sample_fraction=job.sample_fraction,
                    seed=_seed(job.migration),
                    on_progress=_scanned(watch),
                    should_stop=watch.should_stop,
                    governor=self._governor,
                    lanes=job.lanes,
                )
            except (CopyStopped, ScanStopped):
                watch.raise_stopped()
                raise
        return CompareDiskResult(
            record=VerifyRecord(
                disk=job.disk,
                mode=job.mode,
                compared_bytes=result.compared_bytes,
                skipped_zero_bytes=result.skipped_zero_bytes,
                read_back_bytes=result.read_back_bytes,
                mismatches=result.mismatch_count,
                first_mismatches=tuple(result.mismatches),
                digest=result.digest_hex,
                sample=result.sample,
            )
        )

    def _last_delta(self, job: CompareDiskInput, source: BlockDevice, stack: ExitStack) -> LastDelta:
        path = self._manifest_path(job.migration, job.disk)
        try:
            manifest = Manifest.open(path, source.size_bytes)
        except ManifestCorrupt:
            discard_manifest(path)  # one that knows nothing vouches for nothing
            manifest = Manifest.open(path, source.size_bytes)
        return LastDelta(source.changed(), stack.enter_context(manifest))

    @activity.defn(name="manifest.discard", no_thread_cancel_exception=True)
    def discard(self, wanted: ManifestInput) -> Done:
        """Remove a migration's manifests; there being none is fine."""
        shutil.rmtree(self._state_dir / "manifests" / wanted.migration, ignore_errors=True)
        return Done()
