"""Digests of disk content: xxh3-128 per unit of 64 KiB, and one figure for a whole disk.

A whole-disk digest is a two-level tree, so that long runs of zeros cost one constant per region and not one per unit:
``xxh3_128(size as 8 bytes little endian || digest of region 0 || digest of region 1 ...)``, where the digest of a
region is the xxh3-128 of the concatenated digests of its 1024 units (64 MiB; the last region and unit may be short).
It depends on nothing but the disk's bytes.
"""

from __future__ import annotations

from functools import lru_cache

import xxhash

UNIT_BYTES = 65536
DIGEST_BYTES = 16
REGION_UNITS = 1024
REGION_BYTES = REGION_UNITS * UNIT_BYTES
UNKNOWN = bytes(DIGEST_BYTES)
_ZERO_UNIT = bytes(UNIT_BYTES)


def unit_count(size_bytes: int) -> int:
    """Number of units of a disk; the last may be short."""
    return -(-size_bytes // UNIT_BYTES)


@lru_cache(maxsize=64)
def zero_digest(length: int = UNIT_BYTES) -> bytes:
    """Digest of ``length`` zero bytes, at most one unit."""
    return xxhash.xxh3_128_digest(_ZERO_UNIT[:length])


def unit_digests(data: memoryview) -> bytes:
    """Concatenated digests of the units of ``data``, whose first byte starts a unit; the last may be short."""
    digest = xxhash.xxh3_128_digest
    return b"".join([digest(data[at : at + UNIT_BYTES]) for at in range(0, len(data), UNIT_BYTES)])


def zero_digests(first_unit: int, count: int, size_bytes: int) -> bytes:
    """Concatenated digests of ``count`` zero units from ``first_unit`` of a disk of ``size_bytes``."""
    tail = size_bytes % UNIT_BYTES
    if count and tail and first_unit + count == unit_count(size_bytes):
        return zero_digest() * (count - 1) + zero_digest(tail)
    return zero_digest() * count


def zeros_of(length: int) -> bytes:
    """Concatenated digests of ``length`` zero bytes that start at a unit; the last unit may be short."""
    whole, tail = divmod(length, UNIT_BYTES)
    return zero_digest() * whole + (zero_digest(tail) if tail else b"")


def is_zero(data: memoryview) -> bool:
    """Whether ``data`` (at most one unit) is all zeros, by its bytes."""
    return bytes(data) == _ZERO_UNIT[: len(data)]


@lru_cache(maxsize=8)
def region_digest(digests: bytes) -> bytes:
    """Digest of one region from its units' digests; cached for the two regions that repeat: all zero, all unknown."""
    return xxhash.xxh3_128_digest(digests)


class DiskDigest:
    """Accumulates a whole-disk digest from consecutive runs of unit digests."""

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes = size_bytes
        self._next_unit = 0
        self._pending = bytearray()
        self._state = xxhash.xxh3_128(size_bytes.to_bytes(8, "little"))

    def add(self, digests: bytes) -> None:
        """The digests of the next units, in order."""
        self._next_unit += len(digests) // DIGEST_BYTES
        self._pending += digests
        region = REGION_UNITS * DIGEST_BYTES
        while len(self._pending) >= region:
            self._state.update(xxhash.xxh3_128_digest(bytes(self._pending[:region])))
            del self._pending[:region]

    def add_zeros(self, count: int) -> None:
        """The next ``count`` units are zeros."""
        while count:
            room = REGION_UNITS - self._next_unit % REGION_UNITS
            part = min(count, room)
            digests = zero_digests(self._next_unit, part, self._size_bytes)
            if part == REGION_UNITS and not self._pending:
                self._next_unit += part
                self._state.update(region_digest(digests))
            else:
                self.add(digests)
            count -= part

    def hexdigest(self) -> str:
        """The digest; all units must have been added.

        Raises ValueError if some are missing.
        """
        if self._next_unit != unit_count(self._size_bytes):
            raise ValueError(f"{self._next_unit} of {unit_count(self._size_bytes)} units were added")
        final = self._state.copy()
        if self._pending:
            final.update(xxhash.xxh3_128_digest(bytes(self._pending)))
        return final.hexdigest()
