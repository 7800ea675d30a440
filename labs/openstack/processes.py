"""The lab's processes: started inside its network namespace, found by it, ended by pid.

A process belongs to the lab when it runs in the lab's network namespace. This is read from the kernel each time, so
that no recorded pid can hit a stranger, and what a dead daemon left behind (QEMU, privsep helpers) is found as well.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from labs.kvm.errors import LabError, with_log
from labs.kvm.processes import is_alive, wait_gone
from labs.openstack.layout import OpenStackLayout, venv_dir

POLL_S = 0.1
START_TIMEOUT_S = 240  # imports alone take seconds, and 30 daemons share the machine


@dataclass(frozen=True)
class Daemon:
    """One service: how it is started, and how to tell that it is well."""

    name: str
    command: Sequence[str]
    healthy: Callable[[], bool] = field(default=lambda: True)
    """Cheap check; an exception counts as "not yet"."""
    environment: Mapping[str, str] = field(default_factory=dict)
    binds: Sequence[tuple[Path, Path]] = ()
    """Directories of the lab that take the place of the system's, in this daemon's own mount namespace."""
    hostname: str | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    grace_s: float = 4


def environment(layout: OpenStackLayout, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of the lab's programs: nothing of the caller's reaches them."""
    return {
        "PATH": f"{venv_dir()}/bin:/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin",
        "HOME": str(layout.root),
        "LANG": "C.UTF-8",
        "PYTHONWARNINGS": "ignore",
        "OVS_RUNDIR": str(layout.ovs_run),
        **(extra or {}),
    }


def run(layout: OpenStackLayout, command: Sequence[str], *, log: str, stdin: str | None = None, **env: str) -> str:
    """Run a command inside the lab and return what it prints; raises LabError with the command's last lines."""
    done = subprocess.run(
        ["ip", "netns", "exec", layout.namespace, *command],
        input=stdin,
        stdin=None if stdin is not None else subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env=environment(layout, env),
    )
    path = layout.logs / f"{log}.log"
    with path.open("a") as file:
        file.write(f"$ {shlex.join(command)[:300]}\n{done.stdout[-20000:]}{done.stderr}")
    if done.returncode:
        raise with_log(f"{Path(command[0]).name} {' '.join(command[1:4])} ended with {done.returncode}", path)
    return done.stdout


def _namespace_id(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def belongs(layout: OpenStackLayout, pid: int) -> bool:
    """Tell whether ``pid`` runs in the lab's network namespace."""
    mine = _namespace_id(Path("/run/netns", layout.namespace))
    return mine is not None and mine == _namespace_id(Path(f"/proc/{pid}/ns/net"))


def processes_of(layout: OpenStackLayout) -> list[int]:
    """Return the pids of all live processes of the lab."""
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return [pid for pid in pids if belongs(layout, pid) and is_alive(pid)]


def _pidfile(layout: OpenStackLayout, name: str) -> Path:
    return layout.runtime / "pid" / name


def pid_of(layout: OpenStackLayout, name: str) -> int | None:
    """Return the pid of the running daemon ``name``, or None."""
    try:
        pid = int(_pidfile(layout, name).read_text())
    except (OSError, ValueError):
        return None
    return pid if is_alive(pid) and belongs(layout, pid) else None


def log_of(layout: OpenStackLayout, name: str) -> Path:
    """Return the log of a daemon: what it logs and what it prints."""
    return layout.logs / f"{name}.log"


def start(layout: OpenStackLayout, daemon: Daemon) -> None:
    """Start ``daemon`` unless it runs; does not wait."""
    if pid_of(layout, daemon.name) is not None:
        return
    command = list(daemon.command)
    if daemon.binds or daemon.hostname:
        steps = [f"hostname {daemon.hostname}"] if daemon.hostname else []
        for mine, where in daemon.binds:
            steps += [f"{{ [ -e {where} ] || mkdir -p {where}; }}", f"mount --bind {mine} {where}"]
        script = " && ".join([*steps, 'exec "$@"'])
        command = ["unshare", "--mount", "--uts", "--propagation", "private", "sh", "-c", script, "sh", *command]
    with log_of(layout, daemon.name).open("ab") as log:
        started = subprocess.Popen(
            ["ip", "netns", "exec", layout.namespace, *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env=environment(layout, daemon.environment),
            start_new_session=True,
        )
    pidfile = _pidfile(layout, daemon.name)
    pidfile.parent.mkdir(parents=True, exist_ok=True)
    pidfile.write_text(str(started.pid))
    _children.append(started)


_children: list[subprocess.Popen[bytes]] = []  # held so that they are reaped, not warned about


def _reap() -> None:
    _children[:] = [child for child in _children if child.poll() is None]


def wait_healthy(layout: OpenStackLayout, daemon: Daemon, timeout_s: float = START_TIMEOUT_S) -> None:
    """Wait until ``daemon`` is well. Raises LabError that names its log when it died or takes too long."""
    deadline = time.monotonic() + timeout_s
    reason = "it does not answer"
    entered = time.monotonic() + 3
    while True:
        _reap()
        # right after the fork the process is not yet in the namespace
        if pid_of(layout, daemon.name) is None and time.monotonic() > entered:
            raise with_log(f"{daemon.name} ended right after its start", log_of(layout, daemon.name))
        try:
            if daemon.healthy():
                return
        except (OSError, LabError, ValueError, KeyError) as error:
            reason = str(error).partition("\n")[0]
        if time.monotonic() > deadline:
            raise with_log(f"{daemon.name} not healthy after {timeout_s:g} s: {reason}", log_of(layout, daemon.name))
        time.sleep(POLL_S)


def send(layout: OpenStackLayout, pid: int, number: signal.Signals) -> bool:
    """Signal ``pid`` if it (still) belongs to the lab; return whether it was signalled.

    The pidfd is taken before the check, so a pid that is reused in between is never hit.
    """
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        if not belongs(layout, pid):
            return False
        signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(handle)
    return True


def session_of(layout: OpenStackLayout, pid: int) -> list[int]:
    """Return the lab's processes in the session that daemon ``pid`` leads: its workers and helpers."""
    found = []
    for one in processes_of(layout):
        try:
            stat = Path(f"/proc/{one}/stat").read_text()
        except OSError:
            continue
        if int(stat.rpartition(")")[2].split()[3]) == pid:
            found.append(one)
    return found


def end(
    layout: OpenStackLayout, pids: Sequence[int], number: signal.Signals = signal.SIGTERM, grace_s: float = 4
) -> list[int]:
    """Signal ``pids``, kill those that stay after ``grace_s``; return what could not be ended."""
    for pid in pids:
        send(layout, pid, number)
    left = _wait(list(pids), grace_s)
    for pid in left:
        send(layout, pid, signal.SIGKILL)
    return _wait(left, 10)


def _wait(pids: list[int], timeout_s: float) -> list[int]:
    deadline = time.monotonic() + timeout_s
    while pids and time.monotonic() < deadline:
        _reap()
        pids = wait_gone(pids, 0.05)
    return pids


def memory_mib(pid: int) -> int:
    """Return the process's proportional share of memory, in MiB; 0 when it is gone."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) >> 10 for line in text.splitlines() if line.startswith("Pss:")), 0)


def _remote_ports(pid: int) -> set[int]:
    """Return the remote ports of the process's established TCP connections (Linux: proc_net_tcp)."""
    try:
        inodes = {str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()}
        lines = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    except OSError:
        return set()
    established = "01"
    rows = (line.split() for line in lines)
    return {int(row[2][-4:], 16) for row in rows if row[3] == established and f"socket:[{row[9]}]" in inodes}


def talks_to(layout: OpenStackLayout, name: str, port: int | None) -> bool:
    """Tell whether daemon ``name`` holds a connection to ``port``: an RPC service without its message bus is deaf.

    Without a port: whether it has forked its worker.
    """
    pid = pid_of(layout, name)
    if pid is not None and port is None:
        return len(session_of(layout, pid)) > 1
    return pid is not None and any(port in _remote_ports(one) for one in session_of(layout, pid))
