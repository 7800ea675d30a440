"""Whether anybody has an image open, by the locks that QEMU holds on it.

QEMU locks one byte per permission from offset 100 on (what it does) and from 200 on (what it lets nobody else do):
``RAW_LOCK_PERM_BASE`` and ``RAW_LOCK_SHARED_BASE`` in its ``block/file-posix.c``. They are open-file-description locks
and pass through NFS, so a QEMU on another host is seen. Asking takes no lock.
"""

from __future__ import annotations

import fcntl
import os
import struct

F_OFD_GETLK = 36
"""``fcntl.h`` on Linux; Python has no name for it before 3.13."""
LOCKED_FROM, LOCKED_BYTES = 100, 164
FLOCK = "hhqqi"
"""``struct flock``: type, whence, start, length, pid."""


def is_open_somewhere(path: str) -> bool:
    """Whether a QEMU has the image at ``path`` open. Raises OSError (no such file, locks not supported)."""
    asked = struct.pack(FLOCK, fcntl.F_WRLCK, os.SEEK_SET, LOCKED_FROM, LOCKED_BYTES, 0)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        answer = fcntl.fcntl(descriptor, F_OFD_GETLK, asked.ljust(struct.calcsize(FLOCK) + 4, b"\0"))
    finally:
        os.close(descriptor)
    return int(struct.unpack_from("h", answer)[0]) != fcntl.F_UNLCK
