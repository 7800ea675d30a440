"""Which processes belong to a cloud, and how they are ended.

A process belongs to a cloud when it sees that cloud's run directory mounted at /run/libvirt. This is read from the
kernel each time, so that no recorded pid can go stale and hit a stranger, and QEMU processes that outlived their
daemon are found as well.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from labs.kvm.layout import CloudLayout

POLL_S = 0.05


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def is_alive(pid: int) -> bool:
    """Tell whether ``pid`` runs; a zombie that waits for its parent does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in {"Z", "X"}


def belongs_to(cloud: CloudLayout, pid: int) -> bool:
    """Tell whether process ``pid`` lives in the mount namespace of ``cloud``."""
    mine = _identity(cloud.run)
    return mine is not None and mine == _identity(Path(f"/proc/{pid}/root/run/libvirt"))


def processes_of(cloud: CloudLayout) -> list[int]:
    """Return the pids of all live processes of ``cloud``, daemon and guests."""
    mine = _identity(cloud.run)
    if mine is None:
        return []
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return [pid for pid in pids if _identity(Path(f"/proc/{pid}/root/run/libvirt")) == mine and is_alive(pid)]


def daemon_pid(cloud: CloudLayout) -> int | None:
    """Return the pid of the cloud's running libvirtd, or None."""
    try:
        pid = int(cloud.pidfile.read_text())
    except (OSError, ValueError):
        return None
    return pid if is_alive(pid) and belongs_to(cloud, pid) else None


def guest_pid(cloud: CloudLayout, guest: str) -> int | None:
    """Return the pid of the QEMU process of ``guest`` on ``cloud``, or None."""
    try:
        pid = int((cloud.run / "qemu" / f"{guest}.pid").read_text())
    except (OSError, ValueError):
        return None
    return pid if is_alive(pid) and belongs_to(cloud, pid) else None


def send(cloud: CloudLayout, pid: int, number: signal.Signals) -> bool:
    """Signal ``pid`` if it (still) belongs to ``cloud``; return whether it was signalled.

    The pidfd is taken before the check, so a pid that is reused in between is never hit.
    """
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        if not belongs_to(cloud, pid):
            return False
        signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(handle)
    return True


def wait_gone(pids: list[int], timeout_s: float) -> list[int]:
    """Wait until none of ``pids`` runs; return those that still do after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while (left := [pid for pid in pids if is_alive(pid)]) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return left


def end(cloud: CloudLayout, pids: list[int], *, grace_s: float = 10) -> list[int]:
    """Terminate ``pids``, kill those that stay after ``grace_s``; return what could not be ended."""
    for pid in pids:
        send(cloud, pid, signal.SIGTERM)
    for pid in (left := wait_gone(pids, grace_s)):
        send(cloud, pid, signal.SIGKILL)
    return wait_gone(left, grace_s)
