"""The lab's clouds are real, apart from each other, and survive what tests do to them."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import libvirt
import pytest

from labs.kvm import DiskSpec, KvmLab, LabError, LabGuest
from labs.ports import lend_port

pytestmark = [pytest.mark.lab, pytest.mark.timeout(400)]
Make = Callable[..., LabGuest]
SMALL = DiskSpec(16 << 20, "qcow2")


def test_up_again_changes_nothing(kvm_lab: KvmLab) -> None:
    before = kvm_lab.status()
    kvm_lab.up(["a", "b"])
    after = kvm_lab.status()
    assert [state.name for state in after] == ["a", "b"]
    assert all(state.healthy for state in after)
    assert [state.pid for state in after] == [state.pid for state in before]


def test_clouds_see_nothing_of_each_other(kvm_lab: KvmLab, lab_guest: Make) -> None:
    guest = lab_guest("a", disks=(SMALL,))
    assert guest.is_defined("a")
    assert not guest.is_defined("b")
    with kvm_lab.connect("a") as one, kvm_lab.connect("b") as other:
        assert guest.name in [domain.name() for domain in one.listAllDomains()]
        assert guest.name not in [domain.name() for domain in other.listAllDomains()]
        with pytest.raises(libvirt.libvirtError):
            other.storageVolLookupByPath(str(guest.disk_paths()["vda"]))
        host_uuids = [connection.getCapabilities().split("<uuid>")[1].split("<")[0] for connection in (one, other)]
    assert host_uuids[0] != host_uuids[1]


def test_a_guest_outlives_its_daemon(kvm_lab: KvmLab, lab_guest: Make) -> None:
    guest = lab_guest("a", disks=(SMALL,))
    guest.start("a")
    qemu = guest.pid("a")
    dead = kvm_lab.kill_libvirtd("a")
    assert not kvm_lab.status()[0].healthy
    with pytest.raises(libvirt.libvirtError):
        kvm_lab.connect("a")
    guest.ping()

    kvm_lab.start_libvirtd("a")
    state = kvm_lab.status()[0]
    assert state.healthy
    assert state.pid != dead
    assert guest.is_running("a")
    assert guest.pid("a") == qemu
    with kvm_lab.connect("a") as connection:
        assert connection.storagePoolLookupByName("default").isActive()


def test_killing_a_daemon_that_does_not_run_is_said(kvm_lab: KvmLab) -> None:
    kvm_lab.stop_libvirtd("b")
    try:
        with pytest.raises(LabError, match="does not run"):
            kvm_lab.kill_libvirtd("b")
        kvm_lab.stop_libvirtd("b")
    finally:
        kvm_lab.start_libvirtd("b")


def test_a_daemon_that_cannot_start_names_its_log(new_lab: KvmLab) -> None:
    new_lab.up(["a"])
    new_lab.stop_libvirtd("a")
    conf = new_lab.cloud("a").daemon_config
    conf.write_text(conf.read_text() + "no_such_setting = [\n")
    with pytest.raises(LabError, match=r"cloud a ended right after its start; log: .*libvirtd\.log"):
        new_lab.start_libvirtd("a")
    new_lab.up(["a"])  # writes its configuration anew
    assert new_lab.status()[0].healthy


def test_the_small_pool_really_is_small(kvm_lab: KvmLab) -> None:
    pool = kvm_lab.add_small_pool("b", 4 << 20)
    target = kvm_lab.pool_path("b", pool) / "fill"
    with pytest.raises(OSError, match="No space left"):
        target.write_bytes(os.urandom(5 << 20))
    target.unlink()
    kvm_lab.add_small_pool("b", 8 << 20)
    target.write_bytes(os.urandom(5 << 20))
    with kvm_lab.connect("b") as connection:
        small = connection.storagePoolLookupByName(pool)
        small.refresh()
        assert small.info()[1] == 8 << 20
        assert small.listVolumes() == ["fill"]
    target.unlink()


def test_the_daemon_answers_over_tls_to_the_labs_client_only(kvm_lab: KvmLab, tmp_path: Path) -> None:
    uri = kvm_lab.tls_uri("a")
    connection = libvirt.open(uri)
    assert connection.getType() == "QEMU"
    connection.close()
    from labs.kvm.tls import ensure_certificates

    ensure_certificates(tmp_path)  # another authority
    with pytest.raises(libvirt.libvirtError):
        libvirt.open(uri.split("pkipath=")[0] + f"pkipath={tmp_path / 'libvirt'}")


def test_a_backup_is_exported_over_tls_and_refuses_strangers(kvm_lab: KvmLab, lab_guest: Make) -> None:
    guest = lab_guest("a", disks=(SMALL,))
    guest.start("a")
    with tempfile.TemporaryDirectory() as stranger, kvm_lab.connect("a") as connection:
        from labs.kvm.tls import ensure_certificates

        ensure_certificates(Path(stranger))
        domain = connection.lookupByName(guest.name)
        port = lend_port()
        scratch = kvm_lab.pool_path("a") / f"{guest.name}.scratch"
        domain.backupBegin(
            f"<domainbackup mode='pull'><server transport='tcp' name='127.0.0.1' port='{port}' tls='yes'/><disks>"
            f"<disk name='vda' backup='yes' type='file'><scratch file='{scratch}'/></disk></disks></domainbackup>",
            None,
        )
        try:

            def size(certificates: Path) -> subprocess.CompletedProcess[str]:
                uri = f"nbds://127.0.0.1:{port}/vda?tls-certificates={certificates}"
                return subprocess.run(["nbdinfo", "--size", uri], capture_output=True, text=True, check=False)

            mine = size(kvm_lab.client_tls_dir)
            assert mine.returncode == 0, mine.stderr
            assert mine.stdout.strip() == str(16 << 20)
            assert size(Path(stranger) / "client").returncode != 0
            plain = subprocess.run(["nbdinfo", f"nbd://127.0.0.1:{port}/vda"], capture_output=True, check=False)
            assert plain.returncode != 0
        finally:
            domain.abortJob()
        scratch.unlink(missing_ok=True)
