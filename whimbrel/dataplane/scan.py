"""Reads ranges of one or more devices at once and yields their digests in order: the engine of every comparison.

Worker threads each own one lane per device and read ahead; the consumer gets the results in the order of the spans.
What is known to be zeros is not read. Bounded: a worker holds its window of buffers, and results wait only as far
ahead as ``_AHEAD`` spans.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from whimbrel.dataplane.digests import UNIT_BYTES, unit_count, unit_digests, zeros_of
from whimbrel.dataplane.governor import Share
from whimbrel.dataplane.plan import grain_bytes, in_order, widen
from whimbrel.ports.block import BlockDevice, BlockLane

READ_BYTES = 1 << 20
_TELL_S = 0.5
_DEPTH = 8
_AHEAD = 256


class ScanStopped(Exception):
    """``should_stop`` became true in the middle of a scan; begin it again to go on."""


@dataclass(frozen=True, slots=True)
class ScanProgress:
    """How far a scan is: ``position`` is an offset of the disk of ``total`` bytes; ``read`` counts over all devices."""

    total_bytes: int
    position_bytes: int
    read_bytes: int


@dataclass(frozen=True, slots=True)
class Span:
    """A range that starts at a unit; ``zero`` says per device whether it is known to read as zeros."""

    offset: int
    length: int
    zero: tuple[bool, ...]

    @property
    def first_unit(self) -> int:
        """Number of its first unit."""
        return self.offset // UNIT_BYTES

    @property
    def units(self) -> int:
        """Number of units, the last may be short."""
        return unit_count(self.length)


def cut(spans: Iterable[Span], *, data_bytes: int = READ_BYTES, zero_bytes: int = 64 << 20) -> Iterator[Span]:
    """Cut spans at multiples of ``data_bytes``; where every device has zeros, at multiples of ``zero_bytes``."""
    for span in spans:
        step = zero_bytes if all(span.zero) else data_bytes
        at, end = span.offset, span.offset + span.length
        while at < end:
            stop = min(at - at % step + step, end)
            yield Span(at, stop - at, span.zero)
            at = stop


def allocation(devices: Sequence[BlockDevice], size_bytes: int) -> Iterator[Span]:
    """Spans that cover the first ``size_bytes`` of all devices, split where the allocation of any changes."""
    grain = grain_bytes(*devices)
    streams = [
        widen(in_order(device.extents(0, size_bytes), device.size_bytes), grain, size_bytes) for device in devices
    ]
    heads = [next(stream, None) for stream in streams]
    at = 0
    while at < size_bytes:
        zero, stop = [], size_bytes
        for index, stream in enumerate(streams):
            head = heads[index]
            while head is not None and head.end <= at:
                head = heads[index] = next(stream, None)
            inside = head is not None and head.start <= at
            zero.append(inside and head is not None and head.zero)
            if head is not None:
                stop = min(stop, head.end if inside else head.start)
        yield Span(at, stop - at, tuple(zero))
        at = stop


@dataclass(slots=True)
class _Job:
    span: Span
    digests: list[bytes | None]
    buffers: list[bytearray] = field(default_factory=list)
    left: int = 0
    done: bool = False


class Scan:
    """One pass; iterate over it once: ``(span, digests per device)``, in order. Raises the first error of a device.

    Closing the iterator early (``break``) ends the threads.
    """

    def __init__(
        self,
        devices: Sequence[BlockDevice],
        spans: Iterator[Span],
        *,
        lanes: int = 2,
        share: Share | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        on_progress: Callable[[ScanProgress], None] = lambda progress: None,
        total_bytes: int = 0,
    ) -> None:
        self._devices = devices
        self._spans = spans
        self._lane_count = lanes
        self._share = share
        self._should_stop = should_stop
        self._on_progress = on_progress
        self._total_bytes = total_bytes
        self._position_bytes = 0
        self._read_bytes = 0
        self._told = time.monotonic()
        self._changed = threading.Condition()
        self._order: deque[_Job] = deque()
        self._exhausted = False
        self._error: BaseException | None = None
        self._halted = threading.Event()
        self._lanes: list[BlockLane] = []

    def __iter__(self) -> Iterator[tuple[Span, list[bytes]]]:
        threads = [
            threading.Thread(target=self._guard, name=f"scan-{at}", daemon=True) for at in range(self._lane_count)
        ]
        try:
            for thread in threads:
                thread.start()
            while (job := self._next_done()) is not None:
                self._position_bytes = job.span.offset + job.span.length
                self._read_bytes += job.span.length * job.span.zero.count(False)
                yield job.span, [digests or b"" for digests in job.digests]
                self._tell()
        finally:
            self._halt()
            for thread in threads:
                if thread.ident is not None:
                    thread.join()
            self._halt()

    def _next_done(self) -> _Job | None:
        while True:
            with self._changed:
                if self._error is not None:
                    raise self._error
                if self._order and self._order[0].done:
                    self._changed.notify_all()
                    return self._order.popleft()
                if self._exhausted and not self._order:
                    return None
                self._changed.wait(_TELL_S)
            self._tell()

    def _tell(self) -> None:
        """Callbacks, in the consumer's thread, at most every half second."""
        now = time.monotonic()
        if now - self._told < _TELL_S:
            return
        self._told = now
        self._on_progress(ScanProgress(self._total_bytes, self._position_bytes, self._read_bytes))
        if self._should_stop():
            raise ScanStopped

    def _halt(self) -> None:
        self._halted.set()
        with self._changed:
            self._changed.notify_all()
            lanes, self._lanes = self._lanes, []
        for lane in lanes:
            lane.close()

    def _guard(self) -> None:
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001 - kept and raised again in the consumer's thread
            with self._changed:
                if not self._halted.is_set():
                    self._error = self._error or error
                self._changed.notify_all()

    def _claim(self, *, wait: bool) -> _Job | None:
        """The next span with something to read; spans of zeros are finished on the way. None: end, or not now."""
        with self._changed:
            while not self._halted.is_set() and not self._exhausted and self._error is None:
                if len(self._order) >= _AHEAD:
                    if not wait:
                        return None
                    self._changed.wait(0.5)
                    continue
                span = next(self._spans, None)
                if span is None:
                    self._exhausted = True
                    self._changed.notify_all()
                    break
                job = _Job(span, [zeros_of(span.length) if zero else None for zero in span.zero])
                self._order.append(job)
                if all(span.zero):
                    job.done = True
                    self._changed.notify_all()
                    continue
                return job
            return None

    def _open(self) -> list[BlockLane]:
        lanes = []
        for device in self._devices:
            lane = device.lane()
            lanes.append(lane)
            with self._changed:
                self._lanes.append(lane)
                halted = self._halted.is_set()
            if halted:
                lane.close()
        return lanes

    def _work(self) -> None:
        lanes = self._open()
        reading: list[dict[int, tuple[_Job, bytearray]]] = [{} for _ in lanes]
        jobs: deque[_Job] = deque()
        spare: list[bytearray] = []
        held: _Job | None = None
        while True:
            while len(jobs) < _DEPTH and (held := held or self._claim(wait=not jobs)) is not None:
                if not self._admitted(held, wait=not jobs):
                    break
                self._submit(held, lanes, reading, spare)
                jobs.append(held)
                held = None
            if not jobs:
                return
            job = jobs.popleft()
            while job.left:
                at = next(index for index in range(len(lanes)) if job.digests[index] is None)
                cookie = lanes[at].reap().cookie
                other, buffer = reading[at].pop(cookie)
                other.digests[at] = unit_digests(memoryview(buffer)[: other.span.length])
                other.left -= 1
                if len(buffer) == READ_BYTES:
                    spare.append(buffer)
            with self._changed:
                job.done = True
                self._changed.notify_all()

    def _padded(self, at: int, span: Span) -> int:
        """Length to ask a device for: at the disk's end whole blocks, if the device is that long."""
        device = self._devices[at]
        length = span.length + -span.length % max(device.block_bytes, 1)
        return length if span.offset + length <= device.size_bytes else span.length

    def _admitted(self, job: _Job, *, wait: bool) -> bool:
        """Whether the governor lets a job's reads pass; with ``wait`` False only if the scan is to end."""
        if self._share is None:
            return True
        wanted = job.span.length * job.digests.count(None)
        if wait:
            return self._share.take(wanted, self._halted.is_set)
        return self._share.reserve(wanted) == 0

    def _submit(
        self,
        job: _Job,
        lanes: list[BlockLane],
        reading: list[dict[int, tuple[_Job, bytearray]]],
        spare: list[bytearray],
    ) -> None:
        for at in [index for index, known in enumerate(job.digests) if known is None]:
            length = self._padded(at, job.span)
            buffer = spare.pop() if length == READ_BYTES and spare else bytearray(length)
            job.left += 1
            cookie = lanes[at].submit_read(job.span.offset, memoryview(buffer))
            reading[at][cookie] = (job, buffer)
