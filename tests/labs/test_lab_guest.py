"""The lab's guest keeps its promises; every proof in the end-to-end tests leans on them."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from labs.kvm import DiskSpec, KvmLab, LabError, LabGuest

pytestmark = [pytest.mark.lab, pytest.mark.timeout(400)]
Make = Callable[..., LabGuest]
SMALL = DiskSpec(16 << 20, "raw")


def sha256_of(path: Path, tmp_path: Path) -> str:
    """Hash the virtual disk in any image, computed on the host by qemu-img and hashlib."""
    raw = tmp_path / "whole.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", path, raw], check=True)
    return hashlib.sha256(raw.read_bytes()).hexdigest()


def test_records_are_whole_and_none_is_missing_after_a_clean_stop(lab_guest: Make) -> None:
    guest = lab_guest(rate=10, dirty_kib=256)
    guest.start()
    guest.wait_console(r"n=15 ")
    guest.shutdown()

    found = guest.records_on("a")
    acknowledged = guest.acknowledged()
    assert found.boots == 1
    assert found.last >= 15
    assert found.gaps() == []
    assert found.bad_slots == ()
    assert found.misplaced_slots == ()
    assert list(found.records) == acknowledged, "the console acknowledges exactly what is on disk"
    assert [record.kind for record in found.records[-2:]] == ["run", "final"]


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_the_guests_own_hash_is_that_of_its_image(lab_guest: Make, tmp_path: Path, image_format: str) -> None:
    guest = lab_guest(disks=(DiskSpec(16 << 20, image_format),), dirty_kib=512)  # type: ignore[arg-type]
    guest.start()
    guest.wait_console(r"n=5 ")
    last = guest.stop_writing()
    whole = guest.hash("vda")
    second_mib = guest.hash("vda", 1 << 20, 1 << 20)
    assert guest.hash("vda") == whole, "nothing writes while the writers rest"
    assert guest.last_record() == last
    path = guest.disk_paths()["vda"]
    guest.destroy()

    assert sha256_of(path, tmp_path) == whole
    content = (tmp_path / "whole.raw").read_bytes()
    assert hashlib.sha256(content[1 << 20 : 2 << 20]).hexdigest() == second_mib


def test_writers_rest_and_start_again(lab_guest: Make) -> None:
    guest = lab_guest(disks=(SMALL,), rate=10)
    guest.start()
    guest.wait_console(r"n=3 ")
    last = guest.stop_writing()
    guest.start_writing()
    guest.wait_console(rf"n={last + 3} ")
    assert guest.stop_writing() >= last + 3


def test_boot_counter_and_numbering_go_on_over_a_restart_and_a_full_ring(lab_guest: Make) -> None:
    guest = lab_guest(disks=(SMALL,), rate=20, slots=16)
    guest.start()
    guest.wait_console(r"n=20 ")  # the ring has wrapped
    guest.shutdown()
    last = guest.records_on("a").last
    guest.start()
    guest.wait_console(rf"^WBREC1 kind=run boot=2 n={last + 3} ")
    assert guest.boot_count() == 2
    guest.shutdown()

    found = guest.records_on("a")
    assert f"resumed={last} " in guest.console_text()
    assert found.boots == 2
    assert len(found.records) == found.slots == 16
    assert found.gaps() == []
    assert found.lost(guest.acknowledged()) == []


def test_the_power_button_stops_it_cleanly_within_a_bound(lab_guest: Make) -> None:
    guest = lab_guest(disks=(SMALL,))
    guest.start()
    assert guest.shutdown(timeout_s=60) < 60
    console = guest.console_text()
    assert console.index("WB BUTTON") < console.index("kind=final") < console.index("WB STOPPED boot=1")
    assert not guest.is_running()
    assert guest.pid() is None


def test_a_guest_may_ignore_the_button(lab_guest: Make) -> None:
    guest = lab_guest(disks=(SMALL,), ignore_acpi=True)
    guest.start()
    with pytest.raises(LabError, match="did not power off"):
        guest.shutdown(timeout_s=5)
    guest.wait_console("WB BUTTON ignored")
    guest.ping()
    assert guest.is_running()


def test_every_disk_of_either_bus_gets_every_record(lab_guest: Make) -> None:
    guest = lab_guest(disks=(SMALL, DiskSpec(16 << 20, "qcow2"), DiskSpec(16 << 20, "qcow2", bus="scsi")))
    guest.start()
    assert sorted(guest.command("disks").split()) == ["sda", "vda", "vdb"]
    guest.wait_console(r"n=5 ")
    guest.shutdown()
    on_vda, on_vdb, on_sda = (guest.records_on("a", disk) for disk in ("vda", "vdb", "sda"))
    assert on_vda.last >= 5
    assert on_vda.records == on_vdb.records == on_sda.records
    assert on_vda.bad_slots == on_vdb.bad_slots == on_sda.bad_slots == ()


def test_it_sees_the_nic_with_the_mac_it_was_given(kvm_lab: KvmLab, lab_guest: Make) -> None:
    network = "lab" if kvm_lab.has_network("a") else None
    guest = lab_guest(disks=(SMALL,), mac="52:54:00:AB:CD:01", network=network)
    guest.start()
    assert guest.command("macs") == "52:54:00:ab:cd:01"


def test_qemu_killed_loses_no_acknowledged_record(lab_guest: Make) -> None:
    guest = lab_guest(rate=10)
    guest.start()
    guest.wait_console(r"n=10 ")
    guest.kill_qemu()
    acknowledged = guest.acknowledged()
    found = guest.records_on("a")
    assert acknowledged[-1].n >= 10
    assert found.lost(acknowledged) == []
    assert [record.kind for record in acknowledged if record.kind == "final"] == []


def test_a_write_error_is_said_and_ends_the_writing(kvm_lab: KvmLab, lab_guest: Make) -> None:
    pool = kvm_lab.add_small_pool("b", 2 << 20)
    guest = lab_guest("b", disks=(SMALL,), rate=0)
    path = guest.disk_paths("b")["vda"]
    moved = kvm_lab.pool_path("b", pool) / path.name
    subprocess.run(["qemu-img", "create", "-q", "-f", "raw", moved, str(16 << 20)], check=True)
    with kvm_lab.connect("b") as connection:
        xml = connection.lookupByName(guest.name).XMLDesc()
        xml = xml.replace(str(path), str(moved)).replace("type='raw'/>", "type='raw' error_policy='report'/>", 1)
        connection.defineXML(xml)
    guest.start("b")
    guest.set_dirty_kib(4096)  # the hot area starts beyond what the pool can hold
    guest.wait_console(r"WB IOERR disk=vda")
    path.unlink()
