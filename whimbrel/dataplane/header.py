"""The header of a manifest: two slots of 4 KiB written in turn, so that a torn write leaves the older one valid."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

import xxhash

from whimbrel.dataplane.digests import UNIT_BYTES
from whimbrel.errors import BaseLost, Conflict, PreconditionFailed

MAGIC = b"WHIMBMAN"
VERSION = 1
SLOT_BYTES = 4096
MAX_EPOCH_BYTES = 1024
_COMPLETE = 1
_CLEARING = 2
# magic, version, unit, size, generation, cursor, epochs begun, flags, length of the epoch's name
_FIXED = struct.Struct("<8sIIQQQIIH")
_CHECKSUM_BYTES = 16


class ManifestCorrupt(BaseLost):
    """The manifest of a disk cannot be trusted: what the target holds is not known any more."""

    default_action = "discard the manifest: the next round then compares or copies the whole disk"


@dataclass(frozen=True, slots=True)
class Header:
    """What a manifest says about itself and about the round that is being copied."""

    size_bytes: int
    generation: int = 0
    epoch: str = ""
    cursor_bytes: int = 0
    epochs_begun: int = 0
    complete: bool = False
    clearing: bool = False
    """The marks of the previous epoch are being cleared; to be repeated after a crash."""

    def encode(self) -> bytes:
        """One slot: fixed fields, the epoch's name, checksum, padding.

        Raises ValueError if the epoch's name is too long.
        """
        name = self.epoch.encode()
        if len(name) > MAX_EPOCH_BYTES:
            raise ValueError(f"an epoch's name has at most {MAX_EPOCH_BYTES} bytes")
        flags = _COMPLETE * self.complete | _CLEARING * self.clearing
        body = (
            _FIXED.pack(
                MAGIC,
                VERSION,
                UNIT_BYTES,
                self.size_bytes,
                self.generation,
                self.cursor_bytes,
                self.epochs_begun,
                flags,
                len(name),
            )
            + name
        )
        return (body + xxhash.xxh3_128_digest(body)).ljust(SLOT_BYTES, b"\0")


def _decode(slot: bytes) -> Header | None:
    if len(slot) < SLOT_BYTES:
        return None
    _, _, _, size, generation, cursor, begun, flags, name_bytes = _FIXED.unpack_from(slot)
    end = _FIXED.size + name_bytes
    if name_bytes > MAX_EPOCH_BYTES or xxhash.xxh3_128_digest(slot[:end]) != slot[end : end + _CHECKSUM_BYTES]:
        return None
    return Header(
        size_bytes=size,
        generation=generation,
        epoch=slot[_FIXED.size : end].decode(),
        cursor_bytes=cursor,
        epochs_begun=begun,
        complete=bool(flags & _COMPLETE),
        clearing=bool(flags & _CLEARING),
    )


def read_header(fd: int, path: str, size_bytes: int) -> Header:
    """The newest valid header of an open manifest file.

    Raises Conflict (not a manifest, or of another version), ManifestCorrupt (no slot is whole), PreconditionFailed
    (it belongs to a disk of another size).
    """
    slots = [os.pread(fd, SLOT_BYTES, at * SLOT_BYTES) for at in range(2)]
    if not any(slot.startswith(MAGIC) for slot in slots):
        if any(any(slot) for slot in slots):
            raise Conflict(
                f"{path} exists and is not a manifest of a disk",
                action="move the file away or name another state directory",
            )
        raise ManifestCorrupt(f"the manifest {path} has no header")
    for slot in slots:
        if slot.startswith(MAGIC) and len(slot) >= _FIXED.size:
            version, unit = struct.unpack_from("<II", slot, len(MAGIC))
            if (version, unit) != (VERSION, UNIT_BYTES) and _decode(slot) is not None:
                raise Conflict(
                    f"the manifest {path} has version {version} and units of {unit} bytes; this program writes version "
                    f"{VERSION} with {UNIT_BYTES}",
                    action="finish the migration with the program that began it, or discard the manifest",
                )
    valid = [header for slot in slots if slot.startswith(MAGIC) and (header := _decode(slot)) is not None]
    if not valid:
        raise ManifestCorrupt(f"the header of the manifest {path} is damaged in both copies")
    newest = max(valid, key=lambda header: header.generation)
    if newest.size_bytes != size_bytes:
        raise PreconditionFailed(
            f"the disk has {size_bytes} bytes, its manifest {path} is for {newest.size_bytes}: it was resized",
            action="set the disk back to its size, or discard the manifest and copy the disk again",
        )
    return newest


def write_header(fd: int, header: Header) -> None:
    """Write the slot that does not hold the previous generation, and make it durable."""
    os.pwrite(fd, header.encode(), header.generation % 2 * SLOT_BYTES)
    os.fdatasync(fd)
