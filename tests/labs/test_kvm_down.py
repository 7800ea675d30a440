"""What the lab started it ends, all of it, and nothing else."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from labs.kvm import DiskSpec, GuestSpec, KvmLab
from labs.kvm.layout import LabLayout
from labs.kvm.processes import is_alive, processes_of, send

pytestmark = [pytest.mark.lab, pytest.mark.timeout(400)]


def leftovers(layout: LabLayout, bridge: str) -> list[str]:
    """Everything of a lab that is still to be seen on the machine."""
    found = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(layout.root) in line]
    found += [str(path) for path in (layout.root, layout.runtime, Path("/sys/class/net") / bridge) if path.exists()]
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(layout.root) in command and "pytest" not in command:
                found.append(command)
    return found


@pytest.mark.parametrize("daemon_dead", [False, True])
def test_down_leaves_nothing(new_lab: KvmLab, *, daemon_dead: bool) -> None:
    new_lab.up(["a"])
    cloud = new_lab.cloud("a")
    guest = new_lab.create_guest(GuestSpec("left", disks=(DiskSpec(16 << 20),)), "a")
    guest.start("a")
    pids = processes_of(cloud)
    qemu = guest.pid("a")
    assert qemu in pids
    assert len(pids) >= 2
    assert leftovers(new_lab.layout, cloud.bridge)
    if daemon_dead:
        new_lab.kill_libvirtd("a")

    new_lab.down()
    assert [pid for pid in pids if is_alive(pid)] == []
    assert leftovers(new_lab.layout, cloud.bridge) == []
    new_lab.down()  # and again, with nothing to do


def test_down_may_keep_the_data(new_lab: KvmLab) -> None:
    new_lab.up(["a"])
    guest = new_lab.create_guest(GuestSpec("kept", disks=(DiskSpec(16 << 20),)), "a")
    disk = guest.disk_paths("a")["vda"]
    pids = processes_of(new_lab.cloud("a"))
    new_lab.down(keep_data=True)
    assert [pid for pid in pids if is_alive(pid)] == []
    assert disk.exists()
    new_lab.up(["a"])
    assert guest.disk_paths("a")["vda"] == disk


def test_one_lab_leaves_the_other_alone(kvm_lab: KvmLab, new_lab: KvmLab) -> None:
    before = [state.pid for state in kvm_lab.status()]
    new_lab.up(["a"])
    assert new_lab.uri("a") != kvm_lab.uri("a")
    new_lab.down()
    assert [state.pid for state in kvm_lab.status()] == before
    assert all(state.healthy for state in kvm_lab.status())


def test_a_stranger_is_never_signalled(kvm_lab: KvmLab) -> None:
    cloud = kvm_lab.cloud("a")
    stranger = subprocess.Popen(["sleep", "300"])
    try:
        pidfile = cloud.run / "qemu" / "stale.pid"
        pidfile.write_text(str(stranger.pid))  # a recorded pid that was reused
        assert stranger.pid not in processes_of(cloud)
        assert kvm_lab.guest("stale").pid("a") is None
        assert send(cloud, stranger.pid, signal.SIGKILL) is False
        assert stranger.poll() is None
        pidfile.unlink()
    finally:
        stranger.kill()
        stranger.wait()
