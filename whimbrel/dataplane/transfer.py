"""One lane pair at work: reads ahead from the source, digests, writes to the target, all in one thread.

A lane can only be waited on, not polled, so the loop decides what to wait for: a read while any is in flight, and an
acknowledgement only when writes fill their half of the window or nothing else is left. With a slow source the oldest
write has then long been acknowledged when it is asked for; with a slow target the writes' half is always full.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from whimbrel.dataplane.checkpoint import Ledger
from whimbrel.dataplane.digests import DIGEST_BYTES, UNIT_BYTES, is_zero, unit_digests, zero_digest
from whimbrel.dataplane.governor import Share
from whimbrel.dataplane.plan import Request, RequestQueue
from whimbrel.dataplane.progress import Meter
from whimbrel.ports.block import BlockLane

MAX_REQUESTS = 64
"""Requests in flight per lane, however small they are: servers bound theirs (QEMU: 16 at work, more wait)."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """What requests must fit, in bytes."""

    grain: int
    request: int
    window: int
    """In flight over both lanes of the pair."""
    target_size: int
    target_block: int


@dataclass(slots=True)
class _Job:
    request: Request
    buffer: bytearray | None
    digests: bytes | None = None
    writes: int = 0


class LanePair:
    """Works off requests over a source lane and a target lane until the queue is empty."""

    def __init__(
        self,
        source: BlockLane,
        target: BlockLane,
        *,
        geometry: Geometry,
        queue: RequestQueue,
        ledger: Ledger,
        meter: Meter,
        share: Share | None,
        should_stop: Callable[[], bool],
        target_is_zero: bool,
    ) -> None:
        self._source = source
        self._target = target
        self._geometry = geometry
        self._queue = queue
        self._ledger = ledger
        self._meter = meter
        self._share = share
        self._should_stop = should_stop
        self._target_is_zero = target_is_zero
        self._spare: list[bytearray] = []
        self._held: Request | None = None
        self._reading: dict[int, _Job] = {}
        self._writing: dict[int, _Job] = {}
        self._read_bytes = 0
        self._write_bytes = 0

    def run(self) -> None:
        """Until the queue ends and all is acknowledged; raises the first error of a lane."""
        while True:
            exhausted = self._read_ahead()
            if self._reading:
                self._finish_read()
            elif not self._writing:
                if exhausted:
                    return
                continue
            while self._writing and (
                self._write_bytes * 2 > self._geometry.window or len(self._writing) > MAX_REQUESTS or not self._reading
            ):
                self._finish_write()
                if not self._reading and not exhausted:
                    break

    def _read_ahead(self) -> bool:
        """Submit reads while there is room; True when the queue has no more."""
        while len(self._reading) < MAX_REQUESTS:
            request = self._held or self._queue.take()
            self._held = None
            if request is None:
                return True
            if request.zero:
                if len(self._writing) > MAX_REQUESTS:
                    self._held = request
                    return False
                self._zero(request)
                continue
            busy = self._read_bytes + self._write_bytes
            if busy and busy + request.length > self._geometry.window:
                self._held = request
                return False
            if self._share is not None and self._share.reserve(request.length) > 0:
                if self._reading or self._writing:
                    self._held = request
                    return False
                if not self._share.take(request.length, self._should_stop):
                    return True
            self._read(request)
        return False

    def _read(self, request: Request) -> None:
        whole = request.length == self._geometry.request
        buffer = self._spare.pop() if whole and self._spare else bytearray(request.length)
        job = _Job(request, buffer)
        self._reading[self._source.submit_read(request.offset, memoryview(buffer))] = job
        self._read_bytes += request.length

    def _finish_read(self) -> None:
        job = self._reading.pop(self._source.reap().cookie)
        request, buffer = job.request, job.buffer
        assert buffer is not None
        self._read_bytes -= request.length
        self._write_bytes += request.length
        self._meter.add(read=request.length)
        view = memoryview(buffer)
        job.digests = unit_digests(view)
        job.writes = 1  # held until all pieces are submitted
        if zero_digest() not in job.digests and request.length % UNIT_BYTES == 0:
            self._write(job, 0, request.length)
        else:
            for at, length, zero in self._pieces(view, job.digests):
                if not zero:
                    self._write(job, at, length)
                elif self._target_is_zero:
                    self._meter.add(skipped=length)
                else:
                    self._submit_zero(job, request.offset + at, length)
        self._release(job)

    def _pieces(self, view: memoryview, digests: bytes) -> list[tuple[int, int, bool]]:
        """Runs (offset, length, zero) of whole grains of a buffer."""
        runs: list[tuple[int, int, bool]] = []
        for at in range(0, len(view), self._geometry.grain):
            end = min(at + self._geometry.grain, len(view))
            zero = all(_is_zero_unit(view, unit, digests) for unit in range(at // UNIT_BYTES, -(-end // UNIT_BYTES)))
            if runs and runs[-1][2] == zero:
                runs[-1] = (runs[-1][0], end - runs[-1][0], zero)
            else:
                runs.append((at, end - at, zero))
        return runs

    def _write(self, job: _Job, at: int, length: int) -> None:
        assert job.buffer is not None
        offset = job.request.offset + at
        data = memoryview(job.buffer)[at : at + length]
        if padding := self._padding(offset + length):
            data = memoryview(bytes(data) + bytes(padding))
        self._writing[self._target.submit_write(offset, data)] = job
        job.writes += 1
        self._meter.add(sent=length)

    def _zero(self, request: Request) -> None:
        if self._target_is_zero:
            self._meter.add(done=request.length, skipped=request.length)
            self._ledger.finish(request, None)
            return
        self._submit_zero(_Job(request, None), request.offset, request.length)

    def _submit_zero(self, job: _Job, offset: int, length: int) -> None:
        padding = self._padding(offset + length)
        self._writing[self._target.submit_zero(offset, length + padding)] = job
        job.writes += 1
        self._meter.add(zeroed=length)

    def _padding(self, end: int) -> int:
        """Zeros to write after the disk's last bytes to fill the target's block, where the target is that long."""
        padding = -end % self._geometry.target_block
        return padding if end + padding <= self._geometry.target_size else 0

    def _finish_write(self) -> None:
        self._release(self._writing.pop(self._target.reap().cookie))

    def _release(self, job: _Job) -> None:
        job.writes -= 1
        if job.writes:
            return
        if job.buffer is not None:
            self._write_bytes -= job.request.length
            if len(job.buffer) == self._geometry.request:
                self._spare.append(job.buffer)
            job.buffer = None
        self._meter.add(done=job.request.length)
        self._ledger.finish(job.request, job.digests)


def _is_zero_unit(view: memoryview, unit: int, digests: bytes) -> bool:
    """By digest first, which is at hand, and then by the bytes, so that no collision can drop data."""
    data = view[unit * UNIT_BYTES : (unit + 1) * UNIT_BYTES]
    digest = digests[unit * DIGEST_BYTES : (unit + 1) * DIGEST_BYTES]
    return digest == zero_digest(len(data)) and is_zero(data)
