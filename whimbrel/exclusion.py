"""One at a time: attempts of one step that run at once on this machine wait for each other.

An activity that is tried again may still run in another thread or worker. libvirt 9.0 itself dies when one client
removes a checkpoint while another reads it, and only one backup job per VM is possible. The kernel gives the lock up
when its holder is killed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from whimbrel.errors import NotReady

WAIT_S = 120.0
POLL_S = 0.05


def lock_path(*names: str) -> Path:
    """The lock file for these names: one per user, machine and names."""
    directory = Path(tempfile.gettempdir()) / f"whimbrel-locks-{os.getuid()}"
    directory.mkdir(mode=0o700, exist_ok=True)
    return directory / hashlib.blake2b("\n".join(names).encode(), digest_size=12).hexdigest()


@contextmanager
def alone(*names: str, wait_s: float = WAIT_S) -> Iterator[None]:
    """Hold the lock of these names; not reentrant. Raises NotReady when another holds it for ``wait_s``."""
    deadline = time.monotonic() + wait_s
    with lock_path(*names).open("a") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise NotReady("an earlier attempt of this step still runs", waits_for=names[-1]) from error
            time.sleep(POLL_S)
        yield
