"""The journal: the guest's changes in their order, on disk until the shadow has them.

One thread puts batches in, one takes them out; any may ``sync``. What is taken out is read from the files (the page
cache, mostly), so the journal needs no memory for what it holds.
"""

from __future__ import annotations

import errno
import hashlib
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from whimbrel.errors import Conflict, QuotaExceeded, Unavailable, WhimbrelError
from whimbrel.stream.mapfile import Header
from whimbrel.stream.protect.change import Change
from whimbrel.stream.protect.record import NOTE, RECORD_BYTES, Record, record_of
from whimbrel.stream.protect.segment import HEADER_BYTES, SUFFIX, Segment, create, damaged, open_segment

SEGMENT_BYTES: Final = 16 << 20
BATCH_CHANGES: Final = 1024


@dataclass(frozen=True, slots=True)
class Held:
    """A change in the journal that the shadow lacks."""

    number: int
    size_bytes: int
    at: float


class Journal:
    """Made by ``open_journal``."""

    def __init__(self, directory: Path, owner: bytes, segments: list[Segment], *, host_crashed: bool) -> None:
        self.directory = directory
        self._owner = owner
        self._segments = segments
        self._lock = threading.Lock()
        self._sync_lock = threading.Lock()
        # What an earlier process put in may not be durable yet either.
        self._puts, self._synced = 1, 0
        self._epoch = 1
        self._broken: WhimbrelError | None = None
        self._last_batch: list[tuple[Segment, int]] = []
        self.held_at_open: list[Held] = []
        """What was held when it was opened, in order."""
        self.applied = segments[0].first - 1
        """The number of the last change that is durable in the shadow."""
        self._scan(host_crashed=host_crashed)
        self.last = segments[-1].last
        """The number of the last change."""
        self._cursor = self._place_of(self.applied + 1)

    @property
    def size_bytes(self) -> int:
        """Length of all files."""
        with self._lock:
            return sum(segment.end for segment in self._segments)

    def put(self, changes: Sequence[Change]) -> None:
        """Append changes at one go; they survive the process from now on, and the host after ``sync``.

        Raises QuotaExceeded, Unavailable: none of them is in, and it may be tried again unless ``broken``.
        """
        with self._lock:
            if self._broken is not None:
                raise _again(self._broken)
            try:
                segment = self._segments[-1]
                if segment.end >= SEGMENT_BYTES and segment.last >= segment.first:
                    segment = self._rotate(segment)
                at, batch = time.time(), self.last + 1
                buffers: list[bytes | memoryview] = []
                for number, change in enumerate(changes, batch):
                    buffers.append(record_of(change, number, batch, self._epoch, at).pack(change.data))
                    if change.data is not None:
                        buffers.append(change.data)
                segment.append(buffers, batch + len(changes) - 1)
            except OSError as failed:
                raise self._failure(failed) from failed
            self.last = segment.last
            self._puts += 1

    def barrier(self) -> None:
        """The guest asked for a flush: what is put in from now on never reaches the shadow before what is in it."""
        with self._lock:
            self._epoch += 1

    def sync(self) -> None:
        """Wait until all that was put in before survives a crash of the host. Raises Unavailable, then always."""
        with self._sync_lock:
            with self._lock:
                if self._broken is not None:
                    raise _again(self._broken)
                segment, puts = self._segments[-1], self._puts
                if puts == self._synced:
                    return
            try:
                segment.sync()
            except OSError as failed:
                # The kernel forgets what it could not write.
                raise self._break(failed) from failed
            self._synced = puts

    @property
    def broken(self) -> bool:
        """Whether it can no longer be relied upon."""
        return self._broken is not None

    def take(self, most_bytes: int) -> list[tuple[Record, Change]]:
        """The next changes that the shadow lacks, of one epoch; empty if there are none. Taken again until ``note``.

        Raises Conflict (damaged).
        """
        found: list[tuple[Record, Change]] = []
        size, (index, at) = 0, self._cursor
        last, segments = self.last, list(self._segments)
        segment = segments[index]
        while len(found) < BATCH_CHANGES and size < most_bytes:
            if (found[-1][0].number if found else self.applied) >= last:
                break
            if at >= segment.end:
                index += 1
                segment, at = segments[index], HEADER_BYTES
                continue
            read = segment.record(at)
            if read is None:
                raise damaged(segment.path)
            record, payload = read
            if record.kind != NOTE and record.number > self.applied:
                if found and record.epoch != found[0][0].epoch:
                    break
                found.append((record, record.change(payload)))
                size += record.payload_bytes
            at += RECORD_BYTES + record.payload_bytes
        self._next = index, at
        return found

    def note(self, number: int) -> None:
        """All changes up to this one, which ``take`` gave, are durable in the shadow. Raises as ``put``."""
        with self._lock:
            if self._broken is not None:
                raise _again(self._broken)
            try:
                segment = self._segments[-1]
                note = Record(NOTE, segment.last, 0, self._epoch, number, 0, time.time())
                segment.append([note.pack()], segment.last)
            except OSError as failed:
                raise self._failure(failed) from failed
            self._puts += 1
            self.applied, self._cursor = number, self._next

    def tidy(self) -> None:
        """Delete the segments that the shadow has whole. Raises Unavailable."""
        while len(self._segments) > 1 and self._segments[0].last <= self.applied:
            with self._sync_lock, self._lock:
                segment = self._segments.pop(0)
                index, at = self._cursor
                self._cursor = (index - 1, at) if index else (0, HEADER_BYTES)
                try:
                    segment.remove()
                except OSError as failed:
                    raise self._failure(failed) from failed

    def last_batch(self) -> Iterator[Change]:
        """The changes that were put in last when the journal was opened. Raises Conflict (damaged)."""
        for segment, at in self._last_batch:
            read = segment.record(at)
            if read is None:
                raise damaged(segment.path)
            yield read[0].change(read[1])

    def close(self) -> None:
        """Give the files back."""
        with self._sync_lock, self._lock:
            for segment in self._segments:
                segment.close()
            self._segments = []

    def _scan(self, *, host_crashed: bool) -> None:
        batch = 0
        for segment, after in zip(self._segments, [*self._segments[1:], None], strict=True):
            for record, at in segment.scan():
                if record.kind == NOTE:
                    self.applied = max(self.applied, record.offset)
                    continue
                if record.batch != batch:
                    batch, self._last_batch = record.batch, []
                self._last_batch.append((segment, at))
                self._epoch = record.epoch + 1
                self.held_at_open.append(Held(record.number, record.payload_bytes, record.at))
            if after is not None and (segment.torn or after.first != segment.last + 1):
                raise damaged(segment.path)
        self.held_at_open = [held for held in self.held_at_open if held.number > self.applied]
        if self.applied > self._segments[-1].last:
            raise damaged(self._segments[-1].path)
        if self._segments[-1].torn:
            # A process that dies leaves the beginning of what it wrote; only a host may leave something else.
            if not host_crashed and not self._segments[-1].cut_short:
                raise damaged(self._segments[-1].path)
            self._segments[-1].cut()

    def _place_of(self, number: int) -> tuple[int, int]:
        for index, segment in enumerate(self._segments):
            if number <= segment.last or segment is self._segments[-1]:
                return index, HEADER_BYTES
        raise AssertionError

    def _rotate(self, segment: Segment) -> Segment:
        # So only the youngest segment ever holds what a crash may take.
        try:
            segment.sync()
        except OSError as failed:
            raise self._break(failed) from failed
        fresh = create(self.directory, segment.last + 1, self._owner)
        self._segments.append(fresh)
        return fresh

    def _failure(self, failed: OSError) -> WhimbrelError:
        kind = QuotaExceeded if failed.errno in {errno.ENOSPC, errno.EDQUOT} else Unavailable
        return kind(f"the journal {self.directory} cannot be written: {failed}", cause=failed)

    def _break(self, failed: OSError) -> WhimbrelError:
        self._broken = Unavailable(
            f"the journal {self.directory} could not be synced: {failed}",
            action="look at the storage of the journal; the shadow has what was synced, the target has all",
            cause=failed,
        )
        return _again(self._broken)


def open_journal(directory: Path, header: Header, *, untouched: bool, host_crashed: bool) -> Journal:
    """Open or make the journal that belongs to the chunk map with ``header``.

    ``untouched``: the guest has written nothing yet, so a journal of another stream may go. Raises Conflict (damaged,
    of another stream, or gone although the guest has written), OSError.
    """
    owner = _owner(header)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    segments = _segments(directory)
    try:
        if any(segment.owner != owner for segment in segments):
            if not untouched:
                raise Conflict(
                    f"the journal {directory} belongs to another stream",
                    action="use the journal, target and source that belong together",
                )
            while segments:
                segments.pop().remove()
        if not segments:
            if not untouched:
                raise Conflict(
                    f"the guest has written to the target, and there is no journal in {directory}",
                    action="bring the journal back, or go on in the mode that the stream began with",
                )
            segments.append(create(directory, 1, owner))
        return Journal(directory, owner, segments, host_crashed=host_crashed)
    except BaseException:
        for segment in segments:
            segment.close()
        raise


def leave_journal(directory: Path, header: Header) -> None:
    """The stream goes on in mode ``mirror``: remove its journal. Raises Conflict if the shadow lacks some of it."""
    segments = _segments(directory) if directory.is_dir() else []
    if not segments or segments[0].owner != _owner(header):
        for segment in segments:
            segment.close()
        return
    journal = Journal(directory, segments[0].owner, list(segments), host_crashed=True)
    lacking = journal.last - journal.applied
    if lacking:
        journal.close()
        raise Conflict(
            f"the shadow lacks {lacking} changes that are in the journal {directory}",
            action="start the stream in mode journal and drain it before the mode is changed",
        )
    for segment in segments:
        segment.remove()


def _owner(header: Header) -> bytes:
    return hashlib.sha256(header.source + header.target + header.size_bytes.to_bytes(8, "big")).digest()


def _segments(directory: Path) -> list[Segment]:
    """All segments, the oldest first; what a crash left of one that was being made is removed."""
    for path in directory.glob(f"*{SUFFIX}.new"):
        path.unlink(missing_ok=True)
    found: list[Segment] = []
    try:
        found.extend(open_segment(path) for path in sorted(directory.glob(f"*{SUFFIX}")))
    except BaseException:
        for segment in found:
            segment.close()
        raise
    return found


def _again(error: WhimbrelError) -> WhimbrelError:
    return type(error)(error.message, action=error.action)
