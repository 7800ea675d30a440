"""The final comparison of a streamed disk: every chunk that the guest never wrote must hold the source's bytes.

It runs beside the server, in another process, on the same map and target file. A chunk counts when it is local and
still not marked *written* after its bytes were read: the server sets that mark before it lets the guest's data in.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import xxhash

from whimbrel.errors import NotReady, WhimbrelError
from whimbrel.ports.block import BlockDevice
from whimbrel.stream.config import StreamConfig
from whimbrel.stream.mapfile import HEADER_BYTES, NO, UNSURE, YES, unpack_header

RUN_BYTES = 1 << 20
FIRST_TOLD = 16


@dataclass(frozen=True, slots=True)
class Proof:
    """Figures of one disk; ``digest`` covers the compared bytes with their places."""

    compared_bytes: int
    zero_bytes: int
    written_bytes: int
    """Chunks left out because the guest wrote them."""
    unsure_bytes: int
    """Chunks left out because a crash of the host left unknown whether the guest wrote them."""
    mismatches: int
    first_mismatches: tuple[int, ...]
    digest: str


def prove(
    config: StreamConfig,
    source: BlockDevice,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
    pace: Callable[[int], object] = lambda _bytes: None,
) -> Proof | None:
    """Compare the target's unwritten chunks with ``source``; None when ``should_stop`` said so.

    Raises NotReady while a chunk is missing, and what source and target raise. ``pace`` is told of the bytes about to
    be read, and may wait.
    """
    fd = os.open(f"{config.map_stem}.live", os.O_RDONLY | os.O_CLOEXEC)
    try:
        table = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
    finally:
        os.close(fd)
    target = os.open(config.target_path, os.O_RDONLY | os.O_CLOEXEC)
    lane = source.lane()
    try:
        header = unpack_header(table[:HEADER_BYTES])
        if header is None:
            raise NotReady(f"the chunk map {config.map_stem} cannot be read")
        marks = _Marks(table, header.chunks, header.chunk_bytes)
        if marks.missing():
            raise NotReady("the disk has not arrived completely yet", disk=Path(config.target_path).name)
        digest = xxhash.xxh3_128()
        compared = zero = mismatches = 0
        first_told: list[int] = []
        theirs = memoryview(bytearray(RUN_BYTES))
        for start, end, source_zero in _runs(marks, source, config.size_bytes):
            if should_stop():
                return None
            on_progress(start, config.size_bytes)
            length = end - start
            if not source_zero:
                pace(length)
                lane.submit_read(start, theirs[:length])
                lane.reap()
            ours = _read(target, start, length)
            for chunk, at, stop in marks.pieces(start, end):
                if marks.written(chunk):
                    continue  # the guest was faster than the comparison
                mine = ours[at - start : stop - start]
                other = bytes(stop - at) if source_zero else bytes(theirs[at - start : stop - start])
                if mine != other:
                    mismatches += 1
                    if len(first_told) < FIRST_TOLD:
                        first_told.append(at)
                compared += stop - at
                zero += stop - at if source_zero else 0
                digest.update(at.to_bytes(8))
                digest.update(mine)
        on_progress(config.size_bytes, config.size_bytes)
        return Proof(
            compared_bytes=compared,
            zero_bytes=zero,
            written_bytes=marks.count(YES) * header.chunk_bytes,
            unsure_bytes=marks.count(UNSURE) * header.chunk_bytes,
            mismatches=mismatches,
            first_mismatches=tuple(first_told),
            digest=f"xxh3:{digest.hexdigest()}",
        )
    finally:
        lane.close()
        os.close(target)
        table.close()


class _Marks:
    """The live map of another process, read as it changes."""

    def __init__(self, table: mmap.mmap, chunks: int, chunk_bytes: int) -> None:
        self._table = table
        self._local_at = HEADER_BYTES
        self._written_at = HEADER_BYTES + chunks
        self.chunks = chunks
        self.chunk_bytes = chunk_bytes

    def missing(self) -> bool:
        return self._table.find(bytes((NO,)), self._local_at, self._written_at) >= 0

    def written(self, chunk: int) -> bool:
        return self._table[self._written_at + chunk] != NO

    def count(self, kind: int) -> int:
        return self._table[self._written_at : self._written_at + self.chunks].count(bytes((kind,)))

    def pieces(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """(chunk, first byte, end) for every chunk in a range."""
        while start < end:
            chunk = start // self.chunk_bytes
            stop = min((chunk + 1) * self.chunk_bytes, end)
            yield chunk, start, stop
            start = stop


def _runs(marks: _Marks, source: BlockDevice, size_bytes: int) -> Iterator[tuple[int, int, bool]]:
    """Ranges of chunks not written when looked at, cut at ``RUN_BYTES`` and at the source's holes."""
    for extent in source.extents():
        start = extent.start
        while start < min(extent.end, size_bytes):
            stop = min(start + RUN_BYTES, extent.end, size_bytes)
            begin: int | None = None
            for chunk, at, upto in marks.pieces(start, stop):
                if marks.written(chunk):
                    if begin is not None:
                        yield begin, at, extent.zero
                    begin = None
                elif begin is None:
                    begin = at
                if upto == stop and begin is not None:
                    yield begin, stop, extent.zero
            start = stop


def _read(fd: int, start: int, length: int) -> bytes:
    found = bytearray()
    while len(found) < length:
        piece = os.pread(fd, length - len(found), start + len(found))
        if not piece:
            raise WhimbrelError(f"the target ends at byte {start + len(found)}")
        found += piece
    return bytes(found)
