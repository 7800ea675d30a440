"""Copies extents of one disk: several lane pairs, bounded bytes in flight, resumable at any point.

The caller's thread only supervises: it calls ``on_progress`` and ``should_stop`` about twice a second, so that both may
use the thread's context (Temporal heartbeats do). Lanes and checkpoints have their own threads. docs/dataplane.md has
the argument why a kill at any moment, followed by the same call, ends with equal bytes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from whimbrel.dataplane.checkpoint import INTERVAL_BYTES, INTERVAL_S, Checkpointer, Ledger
from whimbrel.dataplane.digests import UNIT_BYTES
from whimbrel.dataplane.governor import Governor, Priority
from whimbrel.dataplane.manifest import Manifest
from whimbrel.dataplane.plan import RequestQueue, check_fit, grain_bytes, requests, widen
from whimbrel.dataplane.progress import CopyProgress, Meter
from whimbrel.dataplane.transfer import Geometry, LanePair
from whimbrel.errors import WhimbrelError
from whimbrel.model.extent import Extent, total_bytes
from whimbrel.ports.block import BlockDevice, BlockLane

REPORT_INTERVAL_S = 0.5


@dataclass(frozen=True, slots=True)
class CopySettings:
    """How one disk is copied. An NBD source must accept ``lanes`` + 1 connections, the target ``lanes`` + 2."""

    lanes: int = 2
    request_bytes: int = 512 << 10
    in_flight_bytes: int = 32 << 20
    """Per disk, over all lanes; also bounds the memory of buffers."""
    limit_bytes_per_s: float | None = None
    priority: Priority = Priority.BASELINE

    def __post_init__(self) -> None:
        if not 1 <= self.lanes <= 16:
            raise ValueError("lanes are 1 to 16")
        if self.request_bytes < UNIT_BYTES or self.in_flight_bytes < self.request_bytes * self.lanes:
            raise ValueError("a request has at least 64 KiB, and every lane must be able to hold one in flight")


@dataclass(frozen=True, slots=True)
class CopyResult:
    """Figures of one call of ``copy``, in bytes; ``digest_hex`` and ``ranges`` are of the epoch, over all attempts."""

    read_bytes: int
    sent_bytes: int
    zeroed_bytes: int
    skipped_bytes: int
    elapsed_s: float
    digest_hex: str
    ranges: int


class CopyStopped(Exception):
    """``should_stop`` became true: what was in flight is done and saved; the same call goes on from there."""

    def __init__(self, progress: CopyProgress) -> None:
        super().__init__(f"stopped at byte {progress.cursor_bytes}")
        self.progress = progress


def copy(
    source: BlockDevice,
    target: BlockDevice,
    *,
    extents: Iterable[Extent],
    manifest: Manifest,
    epoch: str,
    settings: CopySettings | None = None,
    governor: Governor | None = None,
    on_progress: Callable[[CopyProgress], None] = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
    target_is_zero: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> CopyResult:
    """Bring the target up to date for ``extents``: ordered; ``source.extents()`` for a baseline, else ``changed()``.

    The same ``epoch`` must mean the same point in time and the same extents: a repeated call goes on from the
    manifest's cursor, and returns at once if the epoch was finished. A sequence of extents gives an exact total for
    the progress; for an iterator the total is the disk. ``target_is_zero`` promises a fresh volume; it is believed in
    the manifest's first epoch only. All is flushed before the result.

    Raises CopyStopped, PreconditionFailed (sizes), and the first error of a device or the manifest, after all lanes
    have ended; what finished before is saved if the target can still be flushed.
    """
    settings = settings or CopySettings()
    check_fit(source, target, manifest)
    cursor_bytes = manifest.begin(epoch)
    size_bytes = source.size_bytes
    total, done = size_bytes, cursor_bytes
    grain = grain_bytes(source, target)
    if isinstance(extents, Sequence):
        total = total_bytes(widen(extents, grain, size_bytes))
        done = sum(max(min(piece.end, cursor_bytes) - piece.start, 0) for piece in widen(extents, grain, size_bytes))
    meter = Meter(total, done, clock)
    if not manifest.complete:
        request_bytes = -(-settings.request_bytes // grain) * grain
        listing = requests(
            extents, size_bytes=size_bytes, grain=grain, request_bytes=request_bytes, cursor_bytes=cursor_bytes
        )
        window = max(settings.in_flight_bytes // settings.lanes, request_bytes)
        session = _Session(
            source=source,
            target=target,
            manifest=manifest,
            queue=RequestQueue(listing, manifest),
            ledger=Ledger(cursor_bytes),
            meter=meter,
            geometry=Geometry(grain, request_bytes, window, target.size_bytes, max(target.block_bytes, 1)),
            settings=settings,
            governor=governor,
            target_is_zero=target_is_zero and manifest.epochs_begun == 1,
        )
        started = clock()
        session.run(on_progress, should_stop)
        elapsed_s = clock() - started
    else:
        elapsed_s = 0.0
    meter.add(done=max(total - meter.done_bytes, 0))
    on_progress(meter.progress(manifest.cursor_bytes))
    return CopyResult(
        read_bytes=meter.read_bytes,
        sent_bytes=meter.sent_bytes,
        zeroed_bytes=meter.zeroed_bytes,
        skipped_bytes=meter.skipped_bytes,
        elapsed_s=elapsed_s,
        digest_hex=manifest.epoch_digest(),
        ranges=_count_runs(manifest.written()),
    )


def _count_runs(runs: Iterable[tuple[int, int]]) -> int:
    count, end = 0, -1
    for first, units in runs:
        count += first != end
        end = first + units
    return count


class _Session:
    """The threads of one call of ``copy``."""

    def __init__(
        self,
        *,
        source: BlockDevice,
        target: BlockDevice,
        manifest: Manifest,
        queue: RequestQueue,
        ledger: Ledger,
        meter: Meter,
        geometry: Geometry,
        settings: CopySettings,
        governor: Governor | None,
        target_is_zero: bool,
    ) -> None:
        self._source = source
        self._target = target
        self._manifest = manifest
        self._queue = queue
        self._ledger = ledger
        self._meter = meter
        self._geometry = geometry
        self._settings = settings
        self._target_is_zero = target_is_zero
        if governor is None and settings.limit_bytes_per_s is not None:
            governor = Governor()
        self._share = governor.share(settings.priority, settings.limit_bytes_per_s) if governor else None
        self._lanes: list[BlockLane] = []
        self._flush_lane: BlockLane | None = None
        self._lock = threading.Lock()
        self._error: BaseException | None = None
        self._stopping = threading.Event()
        self._workers_ended = threading.Event()
        self._workers_left = settings.lanes
        self._abandoned = False

    def run(self, on_progress: Callable[[CopyProgress], None], should_stop: Callable[[], bool]) -> None:
        """Start the threads and supervise them; see ``copy``."""
        workers = [
            threading.Thread(target=self._worker, name=f"copy-lane-{at}", daemon=True)
            for at in range(self._settings.lanes)
        ]
        keeper = threading.Thread(target=self._guard, args=(self._keep,), name="copy-checkpoint", daemon=True)
        asked = False
        try:
            for thread in (*workers, keeper):
                thread.start()
            on_progress(self._progress())
            while keeper.is_alive():
                keeper.join(REPORT_INTERVAL_S)
                on_progress(self._progress())
                if not asked and should_stop():
                    asked = True
                    self._halt()
        except BaseException:
            # The caller wants out at once (cancelled, or a callback failed): what is not saved is done again.
            self._abandoned = True
            self._halt()
            self._close_lanes(all_of_them=True)
            raise
        finally:
            for thread in (*workers, keeper):
                if thread.ident is not None:
                    thread.join()
            self._close_lanes(all_of_them=True)
        if self._error is not None:
            raise self._error
        if not self._manifest.complete:
            raise CopyStopped(self._progress())

    def _progress(self) -> CopyProgress:
        return self._meter.progress(self._manifest.cursor_bytes)

    def _halt(self) -> None:
        self._stopping.set()
        self._queue.stop()

    def _guard(self, body: Callable[[], None]) -> None:
        try:
            body()
        except BaseException as error:  # noqa: BLE001 - kept and raised again in the caller's thread
            with self._lock:
                self._error = self._error or error
            self._halt()
            self._close_lanes(all_of_them=False)

    def _worker(self) -> None:
        self._guard(self._work)
        # After the guard: whoever sees that all have ended must also see the error of the last one.
        with self._lock:
            self._workers_left -= 1
            if self._workers_left == 0:
                self._workers_ended.set()

    def _work(self) -> None:
        LanePair(
            self._open(self._source),
            self._open(self._target),
            geometry=self._geometry,
            queue=self._queue,
            ledger=self._ledger,
            meter=self._meter,
            share=self._share,
            should_stop=self._stopping.is_set,
            target_is_zero=self._target_is_zero,
        ).run()

    def _keep(self) -> None:
        """Checkpoints until the lanes have ended, then the last one."""
        keeper = Checkpointer(self._ledger, self._manifest, self._flush)
        waited_s = 0.0
        while not self._workers_ended.wait(INTERVAL_S / 10):
            waited_s += INTERVAL_S / 10
            if waited_s >= INTERVAL_S or self._ledger.waiting_bytes >= INTERVAL_BYTES:
                keeper.save()
                waited_s = 0.0
        if self._abandoned:
            return
        if self._error is not None:
            # Best effort, so that a link that breaks every few seconds still gets on; the first error is what counts.
            with suppress(WhimbrelError):
                keeper.save()
            return
        keeper.save(complete=self._queue.exhausted and self._ledger.finished == self._queue.handed_out)

    def _flush(self) -> None:
        if self._flush_lane is None:
            self._flush_lane = self._target.lane()
        self._flush_lane.flush()

    def _open(self, device: BlockDevice) -> BlockLane:
        lane = device.lane()
        with self._lock:
            self._lanes.append(lane)
            failed = self._error is not None
        if failed:
            lane.close()
        return lane

    def _close_lanes(self, *, all_of_them: bool) -> None:
        with self._lock:
            lanes = list(self._lanes)
            if all_of_them and self._flush_lane is not None:
                lanes.append(self._flush_lane)
        for lane in lanes:
            lane.close()
