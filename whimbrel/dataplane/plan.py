"""From extents to requests: widened to the grain, cut to size, in order, forgotten before they go out."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from whimbrel.dataplane.digests import REGION_BYTES, UNIT_BYTES, unit_count
from whimbrel.dataplane.manifest import Manifest
from whimbrel.errors import PreconditionFailed, Unavailable
from whimbrel.model.extent import Extent, merge
from whimbrel.ports.block import BlockDevice

ZERO_REQUEST_BYTES = REGION_BYTES
"""Largest request to zero: a target without a fast way writes the zeros, and must not look stalled meanwhile."""
_BATCH = 64


@dataclass(frozen=True, slots=True)
class Request:
    """One piece of work of a lane, numbered in the disk's order."""

    number: int
    offset: int
    length: int
    zero: bool

    @property
    def end(self) -> int:
        """First byte after it."""
        return self.offset + self.length


def grain_bytes(*devices: BlockDevice) -> int:
    """Smallest piece that is whole units and whole blocks of every device."""
    return math.lcm(UNIT_BYTES, *(max(device.block_bytes, 1) for device in devices))


def check_fit(source: BlockDevice, target: BlockDevice, manifest: Manifest) -> None:
    """Raises PreconditionFailed if the three do not belong to one disk, or the target cannot be written."""
    if manifest.size_bytes != source.size_bytes:
        raise PreconditionFailed(
            f"the source has {source.size_bytes} bytes, its manifest is for {manifest.size_bytes}: it was resized",
            action="set the disk back to its size, or begin this migration anew",
        )
    if target.size_bytes < source.size_bytes:
        raise PreconditionFailed(
            f"the target volume has {target.size_bytes} bytes, the source needs {source.size_bytes}",
            action="make the target volume at least as large as the source disk",
        )
    if target.read_only:
        raise PreconditionFailed("the target volume was opened read-only", action="open the target's endpoint writable")


def in_order(extents: Iterable[Extent], size_bytes: int) -> Iterator[Extent]:
    """Pass extents on; raises Unavailable for a device that answers out of order or outside the disk.

    Widening drops what lies before the last piece, so a wrong order would lose data silently.
    """
    last = 0
    for extent in extents:
        if extent.start < last or extent.length < 0 or extent.end > size_bytes:
            raise Unavailable(
                f"the device lists {extent.start}+{extent.length} after {last}: out of order or beyond the end",
                action="report this with the kind and version of the source: its extent list cannot be trusted",
            )
        last = extent.end
        yield extent


def widen(extents: Iterable[Extent], grain: int, size_bytes: int) -> Iterator[Extent]:
    """Whole grains that cover an ordered stream, joined, without overlap; the last is cut at ``size_bytes``.

    A grain is zero only if one zero extent covers all of it; where zeros end inside a grain, the grain is data.
    """
    return merge(_widen(merge(extents), grain, size_bytes))


def _widen(extents: Iterable[Extent], grain: int, size_bytes: int) -> Iterator[Extent]:
    covered = 0
    for extent in extents:
        start = max(extent.start - extent.start % grain, covered)
        stop = min(-(-extent.end // grain) * grain, size_bytes)
        if extent.zero:
            first = max(-(-extent.start // grain) * grain, start)
            last = extent.end if extent.end == size_bytes else extent.end - extent.end % grain
            if first < last:
                yield Extent(start, first - start)
                yield Extent(first, last - first, zero=True)
                start = last
        if start < stop:
            yield Extent(start, stop - start)
        covered = max(covered, stop)


def requests(
    extents: Iterable[Extent], *, size_bytes: int, grain: int, request_bytes: int, cursor_bytes: int = 0
) -> Iterator[Request]:
    """Numbered requests for all of ``extents`` from ``cursor_bytes`` on, aligned to ``request_bytes``."""
    number = 0
    data_step = -(-request_bytes // grain) * grain
    zero_step = -(-ZERO_REQUEST_BYTES // grain) * grain
    for extent in widen(in_order(extents, size_bytes), grain, size_bytes):
        at = max(extent.start, cursor_bytes)
        step = zero_step if extent.zero else data_step
        while at < extent.end:
            end = min(at - at % step + step, extent.end)
            yield Request(number, at, end - at, extent.zero)
            number += 1
            at = end


class RequestQueue:
    """Hands the requests to the lanes. Thread-safe; the extents are pulled lazily, a batch at a time.

    Before a batch goes out, its units are forgotten in the manifest, durably: a crash after a write can then never
    leave an old digest beside new data.
    """

    def __init__(self, source: Iterator[Request], manifest: Manifest) -> None:
        self._source = source
        self._manifest = manifest
        self._ready: deque[Request] = deque()
        self._lock = threading.Lock()
        self._stopped = False
        self.handed_out = 0
        self.exhausted = False
        """Whether every request there is was handed out."""

    def take(self) -> Request | None:
        """The next request; None at the end or after ``stop``. Raises what listing the extents raises."""
        with self._lock:
            if self._stopped:
                return None
            if not self._ready:
                self._fill()
            if not self._ready:
                self.exhausted = True
                return None
            self.handed_out += 1
            return self._ready.popleft()

    def stop(self) -> None:
        """Hand out nothing more."""
        self._stopped = True

    def _fill(self) -> None:
        self._ready.extend(islice(self._source, _BATCH))
        known = False
        for run in merge(Extent(request.offset, request.length) for request in self._ready):
            known |= self._manifest.forget(run.start // UNIT_BYTES, unit_count(run.length))
        if known:
            self._manifest.flush()
