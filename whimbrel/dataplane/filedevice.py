"""A raw image file or a block device of this machine."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator

from whimbrel.dataplane.holes import write_all, zero_range
from whimbrel.dataplane.lanes import SyncLane
from whimbrel.errors import (
    Conflict,
    NotFound,
    PermissionDenied,
    QuotaExceeded,
    Unavailable,
    Unsupported,
    WhimbrelError,
)
from whimbrel.model.extent import Extent, merge
from whimbrel.ports.block import BlockLane

_ERRORS: dict[int, tuple[type[WhimbrelError], str]] = {
    errno.ENOENT: (NotFound, "does not exist"),
    errno.EACCES: (PermissionDenied, "may not be opened by this process"),
    errno.EPERM: (PermissionDenied, "may not be opened by this process"),
    errno.EROFS: (PermissionDenied, "lies on a file system that is read-only"),
    errno.EISDIR: (Conflict, "is a directory"),
    errno.ENOSPC: (QuotaExceeded, "cannot grow: no space is left on its file system"),
    errno.EDQUOT: (QuotaExceeded, "cannot grow: the quota of its file system is used up"),
}


class FileDevice:
    """Implements whimbrel.ports.block.BlockDevice over pread and pwrite; holes by SEEK_HOLE and fallocate."""

    def __init__(self, path: str | os.PathLike[str], *, writable: bool = False) -> None:
        self.path = os.fspath(path)
        self._read_only = not writable
        self._lock = threading.Lock()
        self._lanes: list[SyncLane] = []
        self._fd = -1
        try:
            self._fd = os.open(self.path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
            # The end as lseek sees it: fstat has no size for a block device.
            self._size_bytes = os.lseek(self._fd, 0, os.SEEK_END)
        except OSError as error:
            self.close()
            raise self._translate(error) from error

    @property
    def size_bytes(self) -> int:
        """Length of the file or block device when it was opened."""
        return self._size_bytes

    @property
    def read_only(self) -> bool:
        """Whether writes are refused."""
        return self._read_only

    @property
    def block_bytes(self) -> int:
        """1: the page cache takes any range."""
        return 1

    def lane(self) -> BlockLane:
        """See BlockDevice; work is done in the thread that submits."""
        lane = SyncLane(self)
        with self._lock:
            self._lanes.append(lane)
        return lane

    def extents(self, start: int = 0, length: int | None = None) -> Iterator[Extent]:
        """See BlockDevice; without SEEK_HOLE (many block devices) all is data."""
        end = self._size_bytes if length is None else min(start + length, self._size_bytes)
        return merge(self._runs(start, end))

    def changed(self, start: int = 0, length: int | None = None) -> Iterator[Extent]:
        """Raises Unsupported: a raw file has no change tracking."""
        raise Unsupported(f"{self.path} is raw: it does not track changes", action="use the block-hash scan")

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from ``offset``; raises Unavailable if the file ends before."""
        while buffer:
            try:
                done = os.preadv(self._fd, [buffer], offset)
            except OSError as error:
                raise self._translate(error) from error
            if done == 0:
                raise Unavailable(f"{self.path} ends at {offset}, it had {self._size_bytes} bytes when it was opened")
            offset += done
            buffer = buffer[done:]

    def write_from(self, offset: int, data: memoryview) -> None:
        """Write all of ``data`` inside the device."""
        self._check_write(offset, len(data))
        try:
            write_all(self._fd, data, offset)
        except OSError as error:
            raise self._translate(error) from error

    def zero(self, offset: int, length: int, *, may_punch: bool) -> None:
        """Make a range inside the device read as zeros."""
        self._check_write(offset, length)
        try:
            zero_range(self._fd, offset, length, may_punch=may_punch)
        except OSError as error:
            raise self._translate(error) from error

    def flush(self) -> None:
        """Make everything written durable (fdatasync)."""
        if self._read_only:
            return
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise self._translate(error) from error

    def close(self) -> None:
        """Close all lanes and the file."""
        with self._lock:
            for lane in self._lanes:
                lane.close()
            self._lanes.clear()
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def _runs(self, at: int, end: int) -> Iterator[Extent]:
        while at < end:
            try:
                data = min(os.lseek(self._fd, at, os.SEEK_DATA), end)
                if data > at:
                    yield Extent(at, data - at, zero=True)
                if data == end:
                    return
                hole = min(os.lseek(self._fd, data, os.SEEK_HOLE), end)
            except OSError as error:
                if error.errno == errno.ENXIO:  # no data from here to the end
                    yield Extent(at, end - at, zero=True)
                    return
                if error.errno in {errno.EINVAL, errno.EOPNOTSUPP, errno.ESPIPE}:
                    yield Extent(at, end - at)
                    return
                raise self._translate(error) from error
            yield Extent(data, hole - data)
            at = hole

    def _check_write(self, offset: int, length: int) -> None:
        if self._read_only:
            raise PermissionDenied(f"{self.path} was opened read-only")
        if offset < 0 or offset + length > self._size_bytes:
            raise Unavailable(f"{length} bytes at {offset} are outside {self.path} of {self._size_bytes} bytes")

    def _translate(self, error: OSError) -> WhimbrelError:
        kind, words = _ERRORS.get(error.errno or 0, (Unavailable, f"failed: {error.strerror}"))
        return kind(f"{self.path} {words}", cause=error)
