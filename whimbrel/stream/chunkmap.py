"""The durable memory of which chunks of the target are local, and which of them the guest wrote.

Two files. The **live map** is mapped into memory: it survives the death of the process (the page cache does), but after
a crash of the host its pages may be older or newer than the target's data. The **durable map** is only ever told of
a chunk after an ``fdatasync`` of the target that began after the chunk's data was written; after a change of the boot
id it alone is believed. Both only ever go from "not local" to "local", so the durable map is updated in place: a torn
update leaves old and new bytes, and both are true.

Order, kept by the callers (``store``): the mark *written* before the data, the mark *local* after it. So a chunk
without the mark *written* holds the source's bytes, and a local chunk always has its data.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import re
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Protocol

from whimbrel.dataplane.filedevice import FileDevice
from whimbrel.errors import Conflict
from whimbrel.stream.mapfile import (
    HEADER_BYTES,
    NO,
    UNSURE,
    YES,
    Header,
    check_owner,
    check_tables,
    fingerprint,
    unpack_header,
)

CHUNK_BYTES: Final = 64 << 10
_NO: Final = bytes((NO,))
_YES: Final = bytes((YES,))
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

Run = tuple[int, int]
"""Chunks from the first up to and without the second."""


class DurableFile(Protocol):
    """What the durable map needs of its file; FileDevice has it."""

    def write_from(self, offset: int, data: memoryview) -> None:
        """Write at ``offset``."""
        ...

    def flush(self) -> None:
        """Wait until all that was written is on stable storage."""
        ...

    def close(self) -> None:
        """Give it back."""
        ...


@dataclass(slots=True)
class Changes:
    """What became true since the last call of ``ChunkMap.take_changes``."""

    local: list[Run] = field(default_factory=list)
    written: list[Run] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.local or self.written)


def current_boot_id() -> bytes:
    """16 bytes that change with every boot of this host."""
    return bytes.fromhex(_BOOT_ID.read_text(encoding="ascii").strip().replace("-", ""))


class ChunkMap:
    """Made by ``open_map``. Thread-safe; questions take no lock, for answers only ever change from no to yes."""

    def __init__(self, header: Header, live: mmap.mmap, durable: DurableFile, lock_fd: int, changes: Changes) -> None:
        self.header = header
        self.chunk_bytes = header.chunk_bytes
        self.size_bytes = header.size_bytes
        self.chunks = header.chunks
        self._live = live
        self._durable = durable
        self._lock_fd = lock_fd
        self._local_at = HEADER_BYTES
        self._written_at = HEADER_BYTES + header.chunks
        self._lock = threading.Lock()
        self._changes = changes
        self._missing = live[self._local_at : self._written_at].count(_NO)

    @property
    def missing_chunks(self) -> int:
        """Chunks that are not local."""
        return self._missing

    @property
    def written_chunks(self) -> int:
        """Chunks that the guest wrote, or may have written (``unsure``)."""
        return self.chunks - self._live[self._written_at :].count(_NO)

    def is_local(self, first: int, last: int) -> bool:
        """Whether all chunks from ``first`` up to and without ``last`` are local."""
        return self._live.find(_NO, self._local_at + first, self._local_at + last) < 0

    def missing_run(self, first: int, last: int, longest: int | None = None) -> Run | None:
        """The first run of missing chunks in a range, at most ``longest`` long; None if all are local."""
        start = self._live.find(_NO, self._local_at + first, self._local_at + last)
        if start < 0:
            return None
        reach = self._local_at + last if longest is None else min(self._local_at + last, start + longest)
        end = self._live.find(_YES, start, reach)
        return start - self._local_at, (reach if end < 0 else end) - self._local_at

    def local_run(self, first: int, last: int) -> tuple[int, bool]:
        """Where the run that begins with ``first`` ends, and whether it is local."""
        base = self._local_at
        local = self._live[base + first] == YES
        end = self._live.find(_NO if local else _YES, base + first, base + last)
        return (last if end < 0 else end - base), local

    def written(self, chunk: int) -> bool:
        """Whether the guest wrote this chunk; True also where ``unsure``."""
        return self._live[self._written_at + chunk] != NO

    def unsure(self, chunk: int) -> bool:
        """Whether the chunk was local when the host crashed: it may hold a write that was never flushed."""
        return self._live[self._written_at + chunk] == UNSURE

    def mark_written(self, first: int, last: int) -> None:
        """Before data of the guest goes to these chunks."""
        if self._live[self._written_at + first : self._written_at + last].count(_YES) == last - first:
            return
        with self._lock:
            self._live[self._written_at + first : self._written_at + last] = _YES * (last - first)
            self._changes.written.append((first, last))

    def mark_local(self, first: int, last: int) -> None:
        """After the data of these chunks is in the target."""
        start, end = self._local_at + first, self._local_at + last
        with self._lock:
            fresh = self._live[start:end].count(_NO)
            if fresh:
                self._live[start:end] = _YES * (last - first)
                self._missing -= fresh
                self._changes.local.append((first, last))

    def take_changes(self) -> Changes:
        """What changed since the last call: to be taken before the target's fdatasync, given to ``harden`` after it."""
        with self._lock:
            taken, self._changes = self._changes, Changes()
            return taken

    def give_back(self, changes: Changes) -> None:
        """Undo ``take_changes``: the target could not be synced."""
        with self._lock:
            self._changes.local += changes.local
            self._changes.written += changes.written

    def harden(self, changes: Changes) -> None:
        """Make ``changes`` durable. Exactly these: what became local since must wait for the next fdatasync."""
        for base, runs in ((self._written_at, changes.written), (self._local_at, changes.local)):
            for first, last in joined(runs):
                self._durable.write_from(base + first, memoryview(_YES * (last - first)))
        if changes:
            self._durable.flush()

    def close(self, *, clean: bool = False) -> None:
        """Give the files back; ``clean``: everything is local and durable that will ever be, see ``Header``."""
        if clean:
            self._durable.write_from(0, memoryview(replace(self.header, clean=True).pack()))
            self._durable.flush()
        self._live.close()
        self._durable.close()
        os.close(self._lock_fd)


def joined(runs: Iterable[Run]) -> list[Run]:
    """Sorted, with neighbours and overlaps joined."""
    found: list[Run] = []
    for first, last in sorted(runs):
        if found and first <= found[-1][1]:
            found[-1] = found[-1][0], max(last, found[-1][1])
        else:
            found.append((first, last))
    return found


def open_map(
    stem: Path,
    *,
    size_bytes: int,
    source: str,
    target: str,
    chunk_bytes: int = CHUNK_BYTES,
    boot_id: bytes | None = None,
    durable_file: Callable[[Path], DurableFile] = lambda path: FileDevice(path, writable=True),
) -> ChunkMap:
    """Open or make ``stem.live`` and ``stem.durable``.

    ``source`` and ``target`` are identities: a map is refused (Conflict) if it was made for others, if it is damaged,
    or if another process has it open. Raises Conflict, OSError.
    """
    boot = boot_id or current_boot_id()
    header = Header(chunk_bytes, size_bytes, boot, fingerprint(source), fingerprint(target))
    live, durable = Path(f"{stem}.live"), Path(f"{stem}.durable")
    lock_fd = _locked(Path(f"{stem}.lock"))
    opened: DurableFile | None = None
    try:
        if not durable.exists():
            if live.exists():
                raise Conflict(
                    f"the durable chunk map {durable} is gone, but the live one is there",
                    action="put the file back; without it a crash of the host would lose the guest's writes",
                )
            create_durably(durable, header.pack() + _NO * (2 * header.chunks))
        found, tables = _load_durable(durable, header)
        opened = durable_file(durable)
        header, believed = _state(live, found, tables, boot, opened)
        # What a process that died had not hardened yet is known by nobody else: the next flush must cover it.
        changes = Changes() if believed == tables else _all_of(believed, header.chunks)
        return ChunkMap(header, _mapped(live, header), opened, lock_fd, changes)
    except BaseException:
        if opened is not None:
            opened.close()
        os.close(lock_fd)
        raise


def _state(live: Path, found: Header, tables: bytes, boot: bytes, durable: DurableFile) -> tuple[Header, bytes]:
    """Decide which map is believed, and leave both in agreement with that; the durable header is no longer clean."""
    same_boot = _load_live(live, found, boot)
    header = replace(found, boot_id=boot, clean=False)
    if same_boot is None:
        fresh = tables.count(_NO) == len(tables)
        if found.boot_id == boot and not fresh:
            raise Conflict(
                f"the live chunk map {live} is gone or damaged, and the host did not crash",
                action="put the file back; without it writes that the guest was told are done would be lost",
            )
        if not found.clean and not fresh:
            tables = _unsure(tables, header.chunks)
            header = replace(header, host_crashes=header.host_crashes + 1)
            durable.write_from(HEADER_BYTES + header.chunks, memoryview(tables)[header.chunks :])
        create_durably(live, header.pack() + tables)
    else:
        tables = same_boot
    durable.write_from(0, memoryview(header.pack()))
    durable.flush()
    return header, tables


def _all_of(tables: bytes, chunks: int) -> Changes:
    """Everything that is true in ``tables``, as changes."""
    return Changes(_yes_runs(tables[:chunks]), _yes_runs(tables[chunks:]))


def _yes_runs(table: bytes) -> list[Run]:
    return [match.span() for match in re.finditer(re.escape(_YES) + b"+", table)]


def _unsure(tables: bytes, chunks: int) -> bytes:
    local, written = tables[:chunks], bytearray(tables[chunks:])
    # A local chunk not known as written may hold a write whose mark did not reach the disk while its data did.
    for first, last in _yes_runs(local):
        written[first:last] = written[first:last].replace(_NO, bytes((UNSURE,)))
    return local + bytes(written)


def _load_durable(path: Path, wanted: Header) -> tuple[Header, bytes]:
    raw = path.read_bytes()
    found = unpack_header(raw[:HEADER_BYTES])
    if found is None:
        raise Conflict(
            f"the header of the chunk map {path} is damaged",
            action="the target cannot be trusted any more: roll back, or start the stream again on an empty target",
        )
    check_owner(str(path), found, wanted)
    tables = raw[HEADER_BYTES:]
    check_tables(str(path), tables, found.chunks)
    return found, tables


def _load_live(path: Path, durable: Header, boot: bytes) -> bytes | None:
    """The live map's tables if it was made since this boot and is sound; None: believe the durable map."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    found = unpack_header(raw[:HEADER_BYTES])
    if found is None or found.boot_id != boot or durable.boot_id != boot:
        return None
    check_owner(str(path), found, durable)
    check_tables(str(path), raw[HEADER_BYTES:], found.chunks)
    return raw[HEADER_BYTES:]


def _mapped(path: Path, header: Header) -> mmap.mmap:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        return mmap.mmap(fd, header.file_bytes)
    finally:
        os.close(fd)


def create_durably(path: Path, content: bytes) -> None:
    """Make or replace a file whole and durably."""
    fresh = path.with_name(path.name + ".new")
    with fresh.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _locked(path: Path) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise Conflict(
            f"another process is streaming into this target ({path} is locked)", action="end the other server first"
        ) from None
    except BaseException:
        with contextlib.suppress(OSError):
            os.close(fd)
        raise
    return fd
