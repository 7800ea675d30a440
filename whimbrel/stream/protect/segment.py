"""A file of the journal: a header that says whose it is and with which change it begins, then its records.

``<number of the first change>.segment``. It only grows, at its end; an end that is torn (the process or the host
died in the middle of a write) is cut off when the journal is opened, before anything else is put there.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from whimbrel.errors import Conflict
from whimbrel.nbd.protocol import DEFAULT_MAX_PAYLOAD_BYTES
from whimbrel.stream.chunkmap import create_durably, sync_directory
from whimbrel.stream.protect.record import NOTE, RECORD_BYTES, Record, unpack

HEADER_BYTES: Final = 64
MAGIC: Final = b"WHIMJRN1"
SUFFIX: Final = ".segment"
_HEADER: Final = struct.Struct("<8sIQ32s")
_BUFFERS: Final = 1000
"""Fewer than IOV_MAX, which is 1024 on Linux."""
LONGEST_BYTES: Final = DEFAULT_MAX_PAYLOAD_BYTES
"""No client may write more at once."""


class Segment:
    """Made by ``create`` or ``open``. ``end`` is where its next record goes, ``last`` its last change's number."""

    def __init__(self, path: Path, first: int, owner: bytes) -> None:
        self.path = path
        self.first = first
        self.owner = owner
        self.last = first - 1
        self.end = HEADER_BYTES
        self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def append(self, buffers: Sequence[bytes | memoryview], last: int) -> None:
        """Put records at the end; all or none of them. Raises OSError."""
        at = self.end
        try:
            for start in range(0, len(buffers), _BUFFERS):
                at = _write_all(self.fd, at, buffers[start : start + _BUFFERS])
        except OSError:
            os.ftruncate(self.fd, self.end)
            raise
        self.end, self.last = at, last

    def sync(self) -> None:
        """Wait until all records are durable. Raises OSError."""
        os.fdatasync(self.fd)

    def record(self, at: int) -> tuple[Record, memoryview | None] | None:
        """The record at a place of the file with its payload, or None if no whole and sound one is there."""
        raw = os.pread(self.fd, RECORD_BYTES, at)
        found = unpack(raw) if len(raw) == RECORD_BYTES else None
        if found is None:
            return None
        payload = None
        if found.payload_bytes:
            if found.payload_bytes > LONGEST_BYTES:
                return None
            payload = memoryview(os.pread(self.fd, found.payload_bytes, at + RECORD_BYTES))
            if len(payload) != found.payload_bytes:
                return None
        return (found, payload) if found.sound(payload) else None

    def scan(self) -> Iterator[tuple[Record, int]]:
        """All records up to the first that is torn, each with its place; sets ``end`` and ``last``."""
        self.end, self.last = HEADER_BYTES, self.first - 1
        while (found := self.record(self.end)) is not None:
            record, at = found[0], self.end
            if record.number != self.last + (record.kind != NOTE):
                return
            self.end += RECORD_BYTES + record.payload_bytes
            self.last = record.number
            yield record, at

    @property
    def torn(self) -> bool:
        """Whether something lies behind the last sound record."""
        return os.fstat(self.fd).st_size > self.end

    @property
    def cut_short(self) -> bool:
        """Whether that is the beginning of a record whose rest is not there."""
        rest = os.fstat(self.fd).st_size - self.end
        raw = os.pread(self.fd, RECORD_BYTES, self.end)
        found = unpack(raw) if len(raw) == RECORD_BYTES else None
        return len(raw) < RECORD_BYTES or (found is not None and found.payload_bytes > rest - RECORD_BYTES)

    def cut(self) -> None:
        """Remove what lies behind the last sound record, durably."""
        os.ftruncate(self.fd, self.end)
        os.fsync(self.fd)

    def close(self) -> None:
        """Give the file back."""
        os.close(self.fd)

    def remove(self) -> None:
        """Close and delete, durably, so that after a crash no older segment is missing before a younger one."""
        self.close()
        self.path.unlink(missing_ok=True)
        sync_directory(self.path.parent)


def create(directory: Path, first: int, owner: bytes) -> Segment:
    """An empty segment, there for good. Raises OSError."""
    path = directory / f"{first:020d}{SUFFIX}"
    body = _HEADER.pack(MAGIC, 0, first, owner)
    head = _HEADER.pack(MAGIC, zlib.crc32(body), first, owner)
    create_durably(path, head.ljust(HEADER_BYTES, b"\0"))
    return Segment(path, first, owner)


def open_segment(path: Path) -> Segment:
    """A segment that is there; not scanned yet. Raises Conflict (its header is damaged), OSError."""
    with path.open("rb") as file:
        raw = file.read(HEADER_BYTES)
    if len(raw) == HEADER_BYTES:
        magic, crc, first, owner = _HEADER.unpack_from(raw)
        if magic == MAGIC and crc == zlib.crc32(_HEADER.pack(magic, 0, first, owner)):
            return Segment(path, first, owner)
    raise damaged(path)


def damaged(path: Path) -> Conflict:
    """The journal cannot be what this program wrote."""
    return Conflict(
        f"the journal of the guest's writes is damaged in {path}",
        action="the shadow lacks writes and cannot get them any more: confirm without a rollback, or start the stream "
        "anew",
    )


def _write_all(fd: int, at: int, buffers: Sequence[bytes | memoryview]) -> int:
    left = [memoryview(buffer) for buffer in buffers]
    while left:
        count = os.pwritev(fd, left, at)
        at += count
        while left and count >= len(left[0]):
            count -= len(left.pop(0))
        if left and count:
            left[0] = left[0][count:]
    return at
