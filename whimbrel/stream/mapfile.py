"""The layout of a map file: a page of header, then two bytes per chunk in two tables.

::

    0       header (``Header``), padded to 4096 bytes
    4096    one byte per chunk: is it local?
    4096+n  one byte per chunk: was it written by the guest?

A byte is ``NO``, ``YES`` or (second table only) ``UNSURE``; any other value is damage. So every byte is checked by
itself, and an update of some bytes can be torn anywhere by a crash and still leaves only old and new values.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from dataclasses import dataclass
from typing import Final

from whimbrel.errors import Conflict

HEADER_BYTES: Final = 4096
MAGIC: Final = b"WHIMMAP1"
NO: Final = 0xA5
YES: Final = 0x5A
UNSURE: Final = 0x3C
_LAYOUT: Final = struct.Struct("<8sIIIQ16s32s32sI")
_CRC_AT: Final = 8


@dataclass(frozen=True, slots=True)
class Header:
    """What a map belongs to. ``clean``: the server ended in order, with everything on stable storage."""

    chunk_bytes: int
    size_bytes: int
    boot_id: bytes
    source: bytes
    target: bytes
    host_crashes: int = 0
    clean: bool = False

    @property
    def chunks(self) -> int:
        """Chunks of the disk; the last may be short."""
        return -(-self.size_bytes // self.chunk_bytes)

    @property
    def file_bytes(self) -> int:
        """Length of the map file."""
        return HEADER_BYTES + 2 * self.chunks

    def pack(self) -> bytes:
        """The header's page."""
        crashes = self.host_crashes << 1 | self.clean
        body = _LAYOUT.pack(
            MAGIC, 0, self.chunk_bytes, 0, self.size_bytes, self.boot_id, self.source, self.target, crashes
        ).ljust(HEADER_BYTES, b"\0")
        return body[:_CRC_AT] + struct.pack("<I", zlib.crc32(body)) + body[_CRC_AT + 4 :]


def unpack_header(page: bytes) -> Header | None:
    """The header of a page, or None if this is none or a damaged one."""
    if len(page) != HEADER_BYTES or page[:8] != MAGIC:
        return None
    (crc,) = struct.unpack_from("<I", page, _CRC_AT)
    if zlib.crc32(page[:_CRC_AT] + bytes(4) + page[_CRC_AT + 4 :]) != crc:
        return None
    _, _, chunk_bytes, _, size_bytes, boot_id, source, target, crashes = _LAYOUT.unpack_from(page)
    if not chunk_bytes or not size_bytes:
        return None
    return Header(chunk_bytes, size_bytes, boot_id, source, target, crashes >> 1, bool(crashes & 1))


def fingerprint(text: str) -> bytes:
    """32 bytes that stand for an identity of any length."""
    return hashlib.sha256(text.encode()).digest()


def check_tables(path: str, tables: bytes, chunks: int) -> None:
    """Raise Conflict unless ``tables`` are two whole tables of sound bytes."""
    local, written = tables[:chunks], tables[chunks:]
    sound = (
        len(tables) == 2 * chunks
        and not local.translate(None, bytes((NO, YES)))
        and not written.translate(None, bytes((NO, YES, UNSURE)))
    )
    if not sound:
        raise Conflict(
            f"the chunk map {path} is damaged",
            action="the target cannot be trusted any more: roll back, or start the stream again on an empty target",
        )


def check_owner(path: str, found: Header, wanted: Header) -> None:
    """Raise Conflict if a map belongs to another disk, source or target."""
    fields = ("chunk_bytes", "size_bytes", "source", "target")
    differences = [name for name in fields if getattr(found, name) != getattr(wanted, name)]
    if differences:
        raise Conflict(
            f"the chunk map {path} belongs to another stream: its {', '.join(differences)} differs",
            action="use the target, map and source that belong together; remove all of target and map to start anew",
            differs=", ".join(differences),
        )
