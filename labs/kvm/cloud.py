"""One cloud: a real libvirtd in a mount namespace of its own, so that nothing of it is shared with another."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import libvirt

from labs.kvm import processes
from labs.kvm.daemon_config import libvirtd_conf, qemu_conf, with_default_account
from labs.kvm.errors import LabError, with_log
from labs.kvm.layout import CloudLayout, cache_dir
from labs.ports import lend_port

LIBVIRTD = "/usr/sbin/libvirtd"
START_TIMEOUT_S = 90  # the first start probes QEMU, about 8 s on an idle machine
APPEAR_TIMEOUT_S = 20  # the pid file is written first of all
POLL_S = 0.1
# Arguments: pairs (directory, mount point) up to "--", then the command that takes the shell's place.
ENTER = """set -e
while [ "$1" != -- ]; do [ -e "$2" ] || mkdir -p "$2"; mount --bind "$1" "$2"; shift 2; done
shift; exec "$@"
"""


def connect(cloud: CloudLayout) -> libvirt.virConnect:
    """Open a connection to the cloud's daemon; raises libvirt.libvirtError when it does not answer."""
    return libvirt.open(cloud.uri)


def write_config(cloud: CloudLayout, tls: Path) -> None:
    """Create the cloud's directories and (re)write its configuration."""
    for directory in (cloud.runtime, cloud.pool, cloud.small, *(mine for mine, _ in cloud.binds)):
        directory.mkdir(parents=True, exist_ok=True)
    cloud.daemon_config.write_text(libvirtd_conf(cloud, tls, tls_port(cloud)))
    (cloud.etc / "qemu.conf").write_text(qemu_conf(tls))
    for mine, system in cloud.account_tables:
        mine.write_text(with_default_account(system.read_text(), system.name))


def tls_port(cloud: CloudLayout) -> int:
    """Return the TCP port of the cloud's TLS listener, chosen once and kept over restarts."""
    kept = cloud.root / "tls-port"
    if not kept.exists():
        kept.write_text(str(lend_port()))
    return int(kept.read_text())


def start(cloud: CloudLayout) -> None:
    """Start the daemon unless it runs, and wait until it answers. Raises LabError naming its log."""
    if processes.daemon_pid(cloud) is None:
        _launch(cloud)
    _wait_healthy(cloud)


def _launch(cloud: CloudLayout) -> None:
    cloud.pidfile.unlink(missing_ok=True)
    _seed_capabilities(cloud)
    pairs = [str(path) for pair in (*cloud.binds, *cloud.account_tables) for path in pair]
    command = [
        *("setsid", "--fork", "unshare", "--mount", "--propagation", "private", "sh", "-c", ENTER, "sh"),
        *(*pairs, "--", LIBVIRTD, "--listen", "-f", str(cloud.daemon_config), "-p", str(cloud.pidfile)),
    ]
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
    with cloud.log.open("ab") as log:
        subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, cwd="/", check=True)


def _wait_healthy(cloud: CloudLayout) -> None:
    begin = time.monotonic()
    seen = False
    failure = "it did not answer"
    while (waited := time.monotonic() - begin) < START_TIMEOUT_S:
        alive = processes.daemon_pid(cloud) is not None
        if not alive and (seen or waited > APPEAR_TIMEOUT_S):
            raise with_log(f"libvirtd of cloud {cloud.name} ended right after its start", cloud.log)
        seen = seen or alive
        try:
            if alive:
                _probe(cloud)
                return
        except libvirt.libvirtError as error:
            failure = str(error)
        time.sleep(POLL_S)
    raise with_log(f"libvirtd of cloud {cloud.name} not healthy after {START_TIMEOUT_S} s: {failure}", cloud.log)


def _probe(cloud: CloudLayout) -> None:
    connection = connect(cloud)
    try:
        connection.getCapabilities()  # makes the daemon probe QEMU now, and not in somebody's first call
    finally:
        connection.close()
    _copy_capabilities(cloud.capabilities, cache_dir() / "capabilities")


def _copy_capabilities(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for entry in source.glob("*.xml"):
        partial = target / f".{entry.name}.{os.getpid()}"
        shutil.copyfile(entry, partial)
        partial.replace(target / entry.name)


def _seed_capabilities(cloud: CloudLayout) -> None:
    # libvirt checks the entry against the QEMU binary and itself, so a stale one is only ignored.
    if not cloud.capabilities.exists():
        _copy_capabilities(cache_dir() / "capabilities", cloud.capabilities)


def kill(cloud: CloudLayout) -> int:
    """Kill the daemon with SIGKILL, guests stay; return its pid. Raises LabError when it does not run."""
    pid = processes.daemon_pid(cloud)
    if pid is None or not processes.send(cloud, pid, signal.SIGKILL):
        raise LabError(f"libvirtd of cloud {cloud.name} does not run")
    if processes.wait_gone([pid], 30):
        raise LabError(f"libvirtd of cloud {cloud.name} (pid {pid}) did not die")
    return pid


def stop(cloud: CloudLayout) -> None:
    """End the daemon politely, guests stay. A daemon that does not run is fine."""
    pid = processes.daemon_pid(cloud)
    if pid is not None and processes.end(cloud, [pid]):
        raise LabError(f"libvirtd of cloud {cloud.name} (pid {pid}) could not be ended")


def end_everything(cloud: CloudLayout) -> None:
    """End the daemon first, then every process left in its namespace. Raises LabError for what stays."""
    stop(cloud)
    left = processes.end(cloud, processes.processes_of(cloud))
    if left:
        raise LabError(f"processes of cloud {cloud.name} could not be ended: {left}")
