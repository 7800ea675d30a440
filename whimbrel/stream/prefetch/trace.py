"""The format of access traces: what a guest read, wrote and trimmed, and when.

A header (magic, version, chunk size, disk size, wall time, identity text, CRC-32), then blocks. A block has a kind, the
number of its records, the length of its body, a CRC-32 over all that and the body, and the body: zlib over records.
Every block can be read by itself. A record is three or four varints: time since the record before (in units of 10 us;
since the segment's begin for the first), kind and "follows the record before" in one number with the length in sectors,
and, unless it follows, where it begins relative to the end of the one before (zigzag, in sectors).

A segment is what one process recorded: times restart there. A block that is cut short or damaged ends the trace: that
is what a kill leaves. Offsets and lengths are rounded outwards to sectors of 512 bytes; times are good to 10 us.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from whimbrel.errors import Conflict, InvalidPlan, NotFound
from whimbrel.stream.hydration import Access

MAGIC: Final = b"WHTRACE\n"
VERSION: Final = 1
HEAD: Final = struct.Struct("<8sHHIQdHI")
"""Magic, version, 0, chunk bytes, disk bytes, wall time, length of the identity, CRC-32 of all with this field 0."""
BLOCK: Final = struct.Struct("<BIII")
"""Kind, records, length of the body, CRC-32 of the first three and the body."""
RECORDS, SEGMENT, FULL, LOST = 1, 2, 3, 4
WALL_TIME: Final = struct.Struct("<d")
SECTOR_BYTES: Final = 512
TICK_S: Final = 1e-5
LARGEST_BODY_BYTES: Final = 8 << 20
LARGEST_PLAIN_BYTES: Final = 64 << 20
RECORDS_PER_BLOCK: Final = 65_536
DEFAULT_MAX_BYTES: Final = 64 << 20
MAX_DISK_BYTES: Final = 1 << 62

KINDS: Final[tuple[Access, ...]] = ("read", "write", "trim")
KIND_OF: Final[dict[Access, int]] = {kind: number for number, kind in enumerate(KINDS)}


class Record(NamedTuple):
    """One access; ``at_s`` counts from the begin of its segment."""

    at_s: float
    access: Access
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class TraceHeader:
    """What the trace is of."""

    size_bytes: int
    chunk_bytes: int
    identity: str
    wall_time_s: float = 0.0
    """Seconds since 1970 when the recording began."""

    def pack(self) -> bytes:
        """As it stands at the begin of the file."""
        text = self.identity.encode()[:65535]
        fields = (MAGIC, VERSION, 0, self.chunk_bytes, self.size_bytes, self.wall_time_s, len(text))
        return HEAD.pack(*fields, zlib.crc32(HEAD.pack(*fields, 0) + text)) + text


@dataclass(frozen=True, slots=True)
class Trace:
    """A whole trace in memory, one list of records per segment."""

    header: TraceHeader
    segments: tuple[tuple[Record, ...], ...]
    full: bool = False
    """It reached its bound: what came later is not in it."""
    lost: bool = False
    """The recorder could not follow: accesses are missing."""
    torn: bool = False
    """The last block was damaged or cut short, and is not in it."""
    sound_bytes: int = 0
    """Length of the file without the damaged end."""

    @property
    def records(self) -> Iterator[Record]:
        """Of all segments, with times that count on."""
        base = 0.0
        for segment in self.segments:
            for record in segment:
                yield record._replace(at_s=base + record.at_s)
            base += segment[-1].at_s if segment else 0.0


class Encoder:
    """Turns records into blocks. ``segment`` first."""

    def __init__(self) -> None:
        self._last_tick = 0

    def segment(self, wall_time_s: float) -> bytes:
        """The block that begins a segment."""
        self._last_tick = 0
        return _block(SEGMENT, 0, WALL_TIME.pack(wall_time_s))

    def records(self, records: Iterable[Record]) -> bytes:
        """Blocks of records whose times do not go back (where they do, they are taken as the same)."""
        blocks, plain, count, end = bytearray(), bytearray(), 0, 0
        last = 0
        for at_s, access, offset, length in records:
            tick = max(round(at_s / TICK_S), self._last_tick)
            first = offset // SECTOR_BYTES
            sectors = -(-(offset + length) // SECTOR_BYTES) - first
            follows = first == end
            _varint(plain, tick - last)
            _varint(plain, (sectors * len(KINDS) + KIND_OF[access]) * 2 + follows)
            if not follows:
                _varint(plain, _zigzag(first - end))
            last = self._last_tick = tick
            end = first + sectors
            count += 1
            if count == RECORDS_PER_BLOCK:
                blocks += _block(RECORDS, count, zlib.compress(plain, 6))
                plain, count, last, end = bytearray(), 0, 0, 0
        if count:
            blocks += _block(RECORDS, count, zlib.compress(plain, 6))
        return bytes(blocks)

    @staticmethod
    def full() -> bytes:
        """The block that says that the bound was reached and nothing follows."""
        return _block(FULL, 0, b"")

    @staticmethod
    def lost() -> bytes:
        """The block that says that records are missing here."""
        return _block(LOST, 0, b"")


class TraceWriter:
    """Appends to a trace file, begun or continued; one segment per writer. Not thread-safe."""

    def __init__(self, path: Path, header: TraceHeader, *, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        """Raises Conflict if the file is no trace or one of another disk, OSError."""
        self._encoder = Encoder()
        self._max_bytes = max_bytes
        self.full = False
        """The bound is reached: nothing is written any more."""
        self.size_bytes = 0
        found = read_trace(path) if path.exists() and path.stat().st_size else None
        if found is not None and replace(found.header, wall_time_s=0.0) != replace(header, wall_time_s=0.0):
            raise Conflict(
                f"the trace {path} is of {found.header.identity!r} with {found.header.size_bytes} bytes, "
                f"not of {header.identity!r} with {header.size_bytes}",
                action="give the recording another path, or remove the old trace",
            )
        self._file: BinaryIO = path.open("r+b" if found else "wb")
        if found is None:
            self.size_bytes = self._file.write(header.pack())
        else:
            self._file.truncate(found.sound_bytes)
            self.size_bytes = self._file.seek(found.sound_bytes)
            self.full = found.full
        if not self.full:
            self._append(self._encoder.segment(header.wall_time_s))
        self._file.flush()

    def append(self, records: Iterable[Record]) -> None:
        """Write records; none once the bound is reached. Raises OSError."""
        if not self.full:
            self._append(self._encoder.records(records))
            self._file.flush()

    def tell_lost(self) -> None:
        """Say in the file that records are missing. Raises OSError."""
        self.size_bytes += self._file.write(Encoder.lost())
        self._file.flush()

    @property
    def fd(self) -> int:
        """For fdatasync."""
        return self._file.fileno()

    def close(self) -> None:
        """Give the file back."""
        self._file.close()

    def _append(self, blocks: bytes) -> None:
        if self.size_bytes + len(blocks) + BLOCK.size > self._max_bytes:
            self.full = True
            blocks = Encoder.full()
        self.size_bytes += self._file.write(blocks)


def write_trace(path: Path, header: TraceHeader, segments: Iterable[Iterable[Record]]) -> None:
    """A new trace file from records. Raises OSError."""
    encoder = Encoder()
    with path.open("wb") as file:
        file.write(header.pack())
        for segment in segments:
            file.write(encoder.segment(header.wall_time_s))
            file.write(encoder.records(segment))


def read_trace(path: Path) -> Trace:
    """Read a trace; what is damaged at the end is left out. Raises NotFound, InvalidPlan (no trace of ours)."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError as failed:
        raise NotFound(f"there is no trace at {path}", cause=failed) from failed
    except OSError as failed:
        raise InvalidPlan(f"the trace {path} cannot be read: {failed}", cause=failed) from failed
    header, at = _header(path, raw)
    segments: list[list[Record]] = []
    full = lost = False
    while (block := _next_block(raw, at)) is not None:
        kind, count, body, after = block
        if kind == SEGMENT:
            segments.append([])
        elif kind == FULL:
            full = True
        elif kind == LOST:
            lost = True
        elif kind == RECORDS:
            found = _records(body, count, header.size_bytes)
            if found is None:
                break
            if not segments:
                segments.append([])
            segments[-1] += found
        at = after
    whole = tuple(tuple(each) for each in segments)
    return Trace(header, whole, full, lost, torn=at != len(raw), sound_bytes=at)


def _header(path: Path, raw: bytes) -> tuple[TraceHeader, int]:
    if len(raw) < HEAD.size or not raw.startswith(MAGIC):
        raise InvalidPlan(f"{path} is not a trace")
    fields = HEAD.unpack_from(raw)
    _, version, _, chunk_bytes, size_bytes, wall_time_s, text_length, crc = fields
    if version != VERSION:
        raise InvalidPlan(f"the trace {path} has version {version}, this program knows {VERSION}")
    text = raw[HEAD.size : HEAD.size + text_length]
    if zlib.crc32(HEAD.pack(*fields[:-1], 0) + text) != crc or not chunk_bytes or size_bytes > MAX_DISK_BYTES:
        raise InvalidPlan(f"the header of the trace {path} is damaged")
    return TraceHeader(size_bytes, chunk_bytes, text.decode("utf-8", "replace"), wall_time_s), HEAD.size + text_length


def _next_block(raw: bytes, at: int) -> tuple[int, int, bytes, int] | None:
    if at + BLOCK.size > len(raw):
        return None
    kind, count, length, crc = BLOCK.unpack_from(raw, at)
    body = raw[at + BLOCK.size : at + BLOCK.size + length]
    if length > LARGEST_BODY_BYTES or len(body) != length or _crc(kind, count, body) != crc:
        return None
    return kind, count, body, at + BLOCK.size + length


def _records(body: bytes, count: int, size_bytes: int) -> list[Record] | None:
    """Records of a block; None if they make no sense."""
    unpacker = zlib.decompressobj()
    try:
        plain = unpacker.decompress(body, LARGEST_PLAIN_BYTES)
    except zlib.error:
        return None
    found: list[Record] = []
    values = _varints(plain)
    tick = end = 0
    try:
        for _ in range(count):
            tick += next(values)
            shape = next(values)
            first = end if shape & 1 else end + _unzigzag(next(values))
            sectors, kind = divmod(shape >> 1, len(KINDS))
            end = first + sectors
            if first < 0 or (end - 1) * SECTOR_BYTES >= size_bytes:
                return None
            length = min(end * SECTOR_BYTES, size_bytes) - first * SECTOR_BYTES
            found.append(Record(tick * TICK_S, KINDS[kind], first * SECTOR_BYTES, length))
    except StopIteration:
        return None
    return found


def _block(kind: int, count: int, body: bytes) -> bytes:
    return BLOCK.pack(kind, count, len(body), _crc(kind, count, body)) + body


def _crc(kind: int, count: int, body: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(BLOCK.pack(kind, count, len(body), 0)))


def _varint(into: bytearray, value: int) -> None:
    while value > 127:
        into.append(value & 127 | 128)
        value >>= 7
    into.append(value)


def _varints(plain: bytes) -> Iterator[int]:
    value = shift = 0
    for byte in plain:
        value |= (byte & 127) << shift
        if byte & 128:
            shift += 7
        else:
            yield value
            value = shift = 0


def _zigzag(value: int) -> int:
    return value * 2 if value >= 0 else -value * 2 - 1


def _unzigzag(value: int) -> int:
    return -(value + 1) // 2 if value & 1 else value // 2
