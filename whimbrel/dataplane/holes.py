"""Making ranges of a file read as zeros, by a hole where possible: Linux fallocate(2), which Python does not offer."""

from __future__ import annotations

import ctypes
import errno
import os

_KEEP_SIZE = 0x01
_PUNCH_HOLE = 0x02
_ZERO_RANGE = 0x10
_NOT_SUPPORTED = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV}
_ZEROS = bytes(1 << 20)
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def _fallocate(fd: int, mode: int, offset: int, length: int) -> bool:
    """Whether the file system did it; raises OSError for real failures."""
    while _libc.fallocate(fd, mode, offset, length) != 0:
        number = ctypes.get_errno()
        if number == errno.EINTR:
            continue
        if number in _NOT_SUPPORTED:
            return False
        raise OSError(number, os.strerror(number))
    return True


def write_all(fd: int, data: memoryview | bytes, offset: int) -> None:
    """Write all of ``data``, however the kernel splits it."""
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, offset)
        offset += done
        view = view[done:]


def zero_range(fd: int, offset: int, length: int, *, may_punch: bool) -> None:
    """Make a range inside the file read as zeros; written as zeros where neither hole nor zero range is supported.

    Raises OSError.
    """
    if length <= 0:
        return
    if may_punch and _fallocate(fd, _KEEP_SIZE | _PUNCH_HOLE, offset, length):
        return
    if _fallocate(fd, _KEEP_SIZE | _ZERO_RANGE, offset, length):
        return
    end = offset + length
    while offset < end:
        part = min(len(_ZEROS), end - offset)
        write_all(fd, memoryview(_ZEROS)[:part], offset)
        offset += part
