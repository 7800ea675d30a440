"""One record of the journal: a change of the disk, or a note of how far the shadow has come.

::

    crc32 of all that follows, with the payload | kind, flags | number | batch | epoch | offset | length | time

Changes are numbered from 1 without a gap. ``batch`` is the number of the first change that was put into the journal at
one go; ``epoch`` counts the guest's flushes before the change. A write's payload of ``length`` bytes follows it. A note
bears the number of the change before it, and says in ``offset`` up to which change the shadow has everything, durably.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Final

from whimbrel.stream.protect.change import Change

LAYOUT: Final = struct.Struct("<IBB2xQQQQQd")
RECORD_BYTES: Final = LAYOUT.size
WRITE: Final = 1
ZERO: Final = 2
NOTE: Final = 3
MAY_PUNCH: Final = 1
_CRC_BYTES: Final = 4


@dataclass(frozen=True, slots=True)
class Record:
    """``at`` is seconds since the epoch, as this host saw them: only the age in the status comes from it."""

    kind: int
    number: int
    batch: int
    epoch: int
    offset: int
    length: int
    at: float
    flags: int = 0
    crc: int = 0

    @property
    def payload_bytes(self) -> int:
        """Bytes that follow the record."""
        return self.length if self.kind == WRITE else 0

    def pack(self, payload: memoryview | None = None) -> bytes:
        """The record without its payload."""
        body = LAYOUT.pack(
            0, self.kind, self.flags, self.number, self.batch, self.epoch, self.offset, self.length, self.at
        )[_CRC_BYTES:]
        crc = zlib.crc32(body)
        if payload is not None:
            crc = zlib.crc32(payload, crc)
        return struct.pack("<I", crc) + body

    def sound(self, payload: memoryview | None) -> bool:
        """Whether record and payload are as they were written."""
        return self.crc == int.from_bytes(self.pack(payload)[:_CRC_BYTES], "little")

    def change(self, payload: memoryview | None) -> Change:
        """What the record says to do."""
        if self.kind == WRITE:
            return Change("write", self.offset, self.length, payload)
        return Change("zero", self.offset, self.length, may_punch=bool(self.flags & MAY_PUNCH))


def unpack(raw: bytes) -> Record | None:
    """The record in these ``RECORD_BYTES``, not yet checked by its CRC; None if it cannot be one."""
    crc, kind, flags, number, batch, epoch, offset, length, at = LAYOUT.unpack(raw)
    if kind not in {WRITE, ZERO, NOTE}:
        return None
    return Record(kind, number, batch, epoch, offset, length, at, flags, crc)


def record_of(change: Change, number: int, batch: int, epoch: int, at: float) -> Record:
    """The record of a write or zero; what a trim changes must have been made a zero before."""
    assert change.kind != "trim"
    kind = WRITE if change.data is not None else ZERO
    flags = MAY_PUNCH if change.may_punch else 0
    return Record(kind, number, batch, epoch, change.offset, change.length, at, flags)
