"""The manifest of a disk: what its target durably holds, by digest, and how far the current round has come.

File layout (sparse; all integers little endian; R = number of 64 MiB regions of the disk)::

    0      header slot 0      4 KiB, see whimbrel.dataplane.header
    4096   header slot 1      4 KiB
    8192   region states      R bytes: 0 nothing known, 1 per unit, 2 all zeros (padded to 4 KiB)
    ...    written marks      R x 128 bytes: one bit per unit written in the current epoch (padded to 4 KiB)
    ...    unit digests       R x 16 KiB: xxh3-128 per unit of 64 KiB; 16 zero bytes = unknown

The promise: *a digest is known only if the target durably holds exactly these bytes*. It is kept by ``forget`` before
a unit is written and ``record`` after the target was flushed; docs/dataplane.md has the argument for every crash.
The file is read and written by pread/pwrite and not mapped: a full file system is then an error and not a SIGBUS, and
a large disk's manifest does not count as memory of the process.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import xxhash

from whimbrel.dataplane.digests import (
    DIGEST_BYTES,
    REGION_BYTES,
    REGION_UNITS,
    UNKNOWN,
    DiskDigest,
    region_digest,
    unit_count,
    zero_digests,
)
from whimbrel.dataplane.header import SLOT_BYTES, Header, ManifestCorrupt, read_header, write_header
from whimbrel.dataplane.holes import write_all, zero_range
from whimbrel.errors import QuotaExceeded, Unavailable

_NOTHING, _PER_UNIT, _ZEROS = 0, 1, 2
_MARK_BYTES = REGION_UNITS // 8
_REGION_DIGEST_BYTES = REGION_UNITS * DIGEST_BYTES
_ALL_MARKED = b"\xff" * _MARK_BYTES
_NONE_MARKED = bytes(_MARK_BYTES)


def _page(size: int) -> int:
    return -(-size // 4096) * 4096


class Manifest:
    """One disk's manifest, locked for this object; use it as a context manager or ``close`` it. Thread-safe."""

    def __init__(self, path: Path, fd: int, header: Header) -> None:
        self.path = path
        self.size_bytes = header.size_bytes
        self.unit_count = unit_count(header.size_bytes)
        self._fd = fd
        self._header = header
        self._lock = threading.RLock()
        self._header_lock = threading.Lock()
        self._regions = -(-header.size_bytes // REGION_BYTES)
        self._states_at, self._marks_at, self._digests_at, file_bytes = _layout(header.size_bytes)
        if os.fstat(fd).st_size != file_bytes:
            raise ManifestCorrupt(f"the manifest {path} has {os.fstat(fd).st_size} bytes instead of {file_bytes}")
        self._states = bytearray(os.pread(fd, self._regions, self._states_at))
        if any(self._states.translate(None, bytes((_NOTHING, _PER_UNIT, _ZEROS)))):
            raise ManifestCorrupt(f"the region table of the manifest {path} is damaged")
        if header.clearing:
            self._clear_marks()

    @classmethod
    def open(cls, path: str | os.PathLike[str], size_bytes: int) -> Manifest:
        """Open the manifest at ``path`` for a disk of ``size_bytes``, or create it; the directory must exist.

        Raises ManifestCorrupt, Conflict (not a manifest), PreconditionFailed (made for another size), Unavailable
        (another attempt still holds it), QuotaExceeded.
        """
        where = Path(path)
        fd = -1
        try:
            _create(where, size_bytes)
            fd = os.open(where, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Unavailable(
                    f"another copy of this disk still runs: it holds the manifest {where}",
                    action="nothing: it is tried again; end the other attempt if this goes on",
                    cause=error,
                ) from error
            if not os.path.samestat(os.fstat(fd), where.stat()):
                raise Unavailable(f"the manifest {where} was discarded by another attempt just now")
            return cls(where, fd, read_header(fd, str(where), size_bytes))
        except BaseException as error:
            if fd >= 0:
                os.close(fd)
            if isinstance(error, OSError):
                raise _translate(where, error) from error
            raise

    @property
    def epoch(self) -> str:
        """Name of the epoch (round) begun last; empty if none was."""
        return self._header.epoch

    @property
    def cursor_bytes(self) -> int:
        """All work of the epoch below this offset is durable at the target and recorded here."""
        return self._header.cursor_bytes

    @property
    def complete(self) -> bool:
        """Whether all of the epoch is durable and recorded."""
        return self._header.complete

    @property
    def epochs_begun(self) -> int:
        """How many epochs were begun since the manifest was made."""
        return self._header.epochs_begun

    def begin(self, epoch: str) -> int:
        """Start or continue an epoch; returns the offset to go on from (0 for a new one).

        A new epoch clears the marks of what the previous one wrote, never its digests.
        """
        if not epoch:
            raise ValueError("an epoch needs a name")
        with self._lock:
            if self._header.epoch != epoch:
                begun = self._header.epochs_begun + 1
                self._put_header(epoch=epoch, cursor_bytes=0, complete=False, epochs_begun=begun, clearing=True)
                self._clear_marks()
            return self._header.cursor_bytes

    def checkpoint(self, cursor_bytes: int, *, complete: bool = False) -> None:
        """Make all that was recorded durable, then the cursor. Call ``target.flush`` before ``record``, not after."""
        self.flush()
        self._put_header(cursor_bytes=cursor_bytes, complete=complete)

    def get(self, unit: int) -> bytes | None:
        """Digest of a unit, None if not known."""
        digest = self.read(unit, 1)
        return None if digest == UNKNOWN else digest

    def set(self, unit: int, digest: bytes) -> None:
        """Record the digest of one unit that the target durably holds."""
        self.record(unit, digest)

    def read(self, first_unit: int, count: int) -> bytes:
        """Concatenated digests of a run of units, 16 zero bytes where unknown; meant for runs of at most a region."""
        with self._lock:
            parts = []
            for region, at, part in self._split(first_unit, count):
                match self._states[region]:
                    case 1:
                        start = self._digests_at + region * _REGION_DIGEST_BYTES + at * DIGEST_BYTES
                        parts.append(os.pread(self._fd, part * DIGEST_BYTES, start))
                    case 2:
                        parts.append(zero_digests(region * REGION_UNITS + at, part, self.size_bytes))
                    case _:
                        parts.append(UNKNOWN * part)
            return b"".join(parts)

    def record(self, first_unit: int, digests: bytes) -> None:
        """Record what a run of units durably holds at the target, and mark it as written in this epoch."""
        with self._lock:
            done = 0
            for region, at, part in self._split(first_unit, len(digests) // DIGEST_BYTES):
                self._write_digests(region, at, digests[done : done + part * DIGEST_BYTES])
                self._mark(region, at, part)
                done += part * DIGEST_BYTES

    def record_zeros(self, first_unit: int, count: int) -> None:
        """As ``record`` for units that are zeros; whole regions cost a byte, so that a huge hole costs little."""
        with self._lock:
            for region, at, part in self._split(first_unit, count):
                if part == self._units_in(region):
                    self._set_state(region, _ZEROS)
                else:
                    self._write_digests(region, at, zero_digests(region * REGION_UNITS + at, part, self.size_bytes))
                self._mark(region, at, part)

    def forget(self, first_unit: int, count: int) -> bool:
        """Make a run of units unknown, before it is written; True if any was known: ``flush`` before the write then."""
        with self._lock:
            known = False
            for region, at, part in self._split(first_unit, count):
                if self._states[region] == _NOTHING:
                    continue
                if part == self._units_in(region):
                    self._set_state(region, _NOTHING)
                    known = True
                elif any(self.read(region * REGION_UNITS + at, part)):
                    self._write_digests(region, at, UNKNOWN * part)
                    known = True
            return known

    def known_units(self) -> Iterator[int]:
        """Numbers of the units with a digest, in order, lazily; regions of which nothing is known cost nothing."""
        for region in range(self._regions):
            if self._states[region] == _NOTHING:
                continue
            first = region * REGION_UNITS
            digests = self.read(first, self._units_in(region))
            for at in range(0, len(digests), DIGEST_BYTES):
                if digests[at : at + DIGEST_BYTES] != UNKNOWN:
                    yield first + at // DIGEST_BYTES

    def written(self) -> Iterator[tuple[int, int]]:
        """Runs (first unit, count) written in the current epoch, in order, cut at regions."""
        for region, marks in self._marked_regions():
            first, units = region * REGION_UNITS, self._units_in(region)
            if marks == _ALL_MARKED:
                yield first, units
                continue
            bits = int.from_bytes(marks, "little")
            at = 0
            while bits >> at:
                at += ((bits >> at) & -(bits >> at)).bit_length() - 1
                run = (~(bits >> at) & ((bits >> at) + 1)).bit_length() - 1
                yield first + at, run
                at += run

    def digest(self) -> str:
        """Whole-disk digest as whimbrel.dataplane.digests defines it; unknown units count as 16 zero bytes."""
        whole = DiskDigest(self.size_bytes)
        for region in range(self._regions):
            units = self._units_in(region)
            if self._states[region] == _ZEROS:
                whole.add_zeros(units)
            else:
                whole.add(self.read(region * REGION_UNITS, units))
        return whole.hexdigest()

    def epoch_digest(self) -> str:
        """Digest over what the epoch wrote: per region its number, its marks and the digests of the marked units."""
        state = xxhash.xxh3_128()
        for region, marks in self._marked_regions():
            digests = self.read(region * REGION_UNITS, self._units_in(region))
            state.update(region.to_bytes(8, "little") + marks)
            if marks == _ALL_MARKED:
                state.update(region_digest(digests))
                continue
            bits = int.from_bytes(marks, "little")
            for at in range(0, len(digests), DIGEST_BYTES):
                if bits >> (at // DIGEST_BYTES) & 1:
                    state.update(digests[at : at + DIGEST_BYTES])
        return state.hexdigest()

    def flush(self) -> None:
        """Make all that was recorded or forgotten durable."""
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise _translate(self.path, error) from error

    def close(self) -> None:
        """Give up the file and its lock, without saving more than what was recorded."""
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def discard(self) -> None:
        """Close and delete the file: nothing is known about the target any more."""
        self.close()
        discard_manifest(self.path)

    def __enter__(self) -> Manifest:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _units_in(self, region: int) -> int:
        return min(REGION_UNITS, self.unit_count - region * REGION_UNITS)

    def _split(self, first_unit: int, count: int) -> Iterator[tuple[int, int, int]]:
        """Pieces (region, first unit inside it, count) of a run."""
        if first_unit < 0 or count < 0 or first_unit + count > self.unit_count:
            raise ValueError(f"units {first_unit}+{count} are outside a disk of {self.unit_count} units")
        while count:
            region, at = divmod(first_unit, REGION_UNITS)
            part = min(count, REGION_UNITS - at)
            yield region, at, part
            first_unit += part
            count -= part

    def _put(self, data: bytes, offset: int) -> None:
        try:
            write_all(self._fd, data, offset)
        except OSError as error:
            raise _translate(self.path, error) from error

    def _put_header(self, **changes: object) -> None:
        with self._header_lock:
            header = replace(self._header, generation=self._header.generation + 1, **changes)  # type: ignore[arg-type]
            try:
                write_header(self._fd, header)
            except OSError as error:
                raise _translate(self.path, error) from error
            self._header = header

    def _write_digests(self, region: int, at: int, digests: bytes) -> None:
        start = self._digests_at + region * _REGION_DIGEST_BYTES
        if self._states[region] != _PER_UNIT:
            units = self._units_in(region)
            whole = bytearray(self.read(region * REGION_UNITS, units))
            whole[at * DIGEST_BYTES : at * DIGEST_BYTES + len(digests)] = digests
            self._put(bytes(whole), start)
            self._put(bytes((_PER_UNIT,)), self._states_at + region)
            self._states[region] = _PER_UNIT
        else:
            self._put(digests, start + at * DIGEST_BYTES)

    def _set_state(self, region: int, state: int) -> None:
        """Give a region one of the short states; its digests are punched so that none can come back later."""
        was, self._states[region] = self._states[region], state
        self._put(bytes((state,)), self._states_at + region)
        if was == _PER_UNIT:
            try:
                start = self._digests_at + region * _REGION_DIGEST_BYTES
                zero_range(self._fd, start, _REGION_DIGEST_BYTES, may_punch=True)
            except OSError as error:
                raise _translate(self.path, error) from error

    def _mark(self, region: int, at: int, count: int) -> None:
        where = self._marks_at + region * _MARK_BYTES
        if count == REGION_UNITS:
            self._put(_ALL_MARKED, where)
            return
        bits = int.from_bytes(os.pread(self._fd, _MARK_BYTES, where), "little") | ((1 << count) - 1) << at
        self._put(bits.to_bytes(_MARK_BYTES, "little"), where)

    def _marked_regions(self) -> Iterator[tuple[int, bytes]]:
        step = 512
        for first in range(0, self._regions, step):
            table = os.pread(
                self._fd, min(step, self._regions - first) * _MARK_BYTES, self._marks_at + first * _MARK_BYTES
            )
            for at in range(0, len(table), _MARK_BYTES):
                marks = table[at : at + _MARK_BYTES]
                if marks != _NONE_MARKED:
                    yield first + at // _MARK_BYTES, marks

    def _clear_marks(self) -> None:
        try:
            zero_range(self._fd, self._marks_at, _page(self._regions * _MARK_BYTES), may_punch=True)
        except OSError as error:
            raise _translate(self.path, error) from error
        self.flush()
        self._put_header(clearing=False)


def discard_manifest(path: str | os.PathLike[str]) -> None:
    """Delete a manifest file that may be damaged or missing: the way out after ManifestCorrupt."""
    Path(path).unlink(missing_ok=True)


def _layout(size_bytes: int) -> tuple[int, int, int, int]:
    """Offsets of the region states, the marks and the digests, and the length of the file."""
    regions = -(-size_bytes // REGION_BYTES)
    states = 2 * SLOT_BYTES
    marks = states + _page(regions)
    digests = marks + _page(regions * _MARK_BYTES)
    return states, marks, digests, digests + regions * _REGION_DIGEST_BYTES


def _create(path: Path, size_bytes: int) -> None:
    """Make an empty manifest appear at ``path`` in one step, unless there is one."""
    if path.exists():
        return
    new = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.new")
    fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(fd, _layout(size_bytes)[3])
        write_header(fd, Header(size_bytes))
        # A link, not a rename: of two that create at once, the second must not replace the first one's file.
        try:
            os.link(new, path)
        except FileExistsError:
            return
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    finally:
        os.close(fd)
        new.unlink(missing_ok=True)


def _translate(path: Path, error: OSError) -> Exception:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return QuotaExceeded(f"no room for the manifest {path}", cause=error)
    return Unavailable(f"the manifest {path} cannot be used: {error.strerror}", cause=error)
