"""The proofs of these tests can fail: what is planted is found, one byte that differs is seen."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import libvirt
import pytest

from labs.kvm import DiskSpec, LabGuest
from tests.e2e.images import MIB, differing_blocks, fill
from tests.e2e.remains import leftovers, shared_files
from tests.e2e.scene import Scene, with_domain

pytestmark = [pytest.mark.lab, pytest.mark.e2e, pytest.mark.timeout(600)]
ID = "0123456789"
CHECKPOINT = f"<domaincheckpoint><name>whimbrel-{ID}-0001</name></domaincheckpoint>"
SESSION = (
    f"<domain type='qemu'><name>whimbrel-{ID}-writer</name><memory>4096</memory><os><type>hvm</type></os></domain>"
)


def test_leftovers_are_found(scene: Scene) -> None:
    scene.boot("qcow2", data_mib=1)
    stage, guest = scene.stage, scene.guest
    before = shared_files(stage)

    def look() -> list[str]:
        return leftovers(stage, guest, ID, allowed=before)

    assert look() == []
    planted = [
        stage.lab.pool_path("b") / f"{guest.name}-vda-{ID}",
        stage.lab.pool_path("a") / f"{guest.name}-vda.scratch",
        stage.lab.nbd_dir("a") / "abc.sock",
        stage.lab.scratch_dir("b") / "abc",
        stage.directory / "state" / "manifests" / ID / "vda.manifest",
    ]
    for path in planted:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with_domain(stage, "a", guest.name, lambda domain: domain.checkpointCreateXML(CHECKPOINT, 0))
    connection = stage.lab.connect("b")
    try:
        session = connection.createXML(SESSION, libvirt.VIR_DOMAIN_START_PAUSED)
        found = "\n".join(look())
        for path in planted:
            assert str(path) in found
        assert f"a: checkpoint whimbrel-{ID}-0001" in found
        assert f"a: bitmap whimbrel-{ID}-0001 in QEMU" in found
        assert f"b: domain whimbrel-{ID}-writer" in found
        assert "b: process " in found
        session.destroy()
    finally:
        connection.close()
        for path in planted:
            path.unlink()
        planted[-1].parent.rmdir()
    guest.stop_writing()
    guest.destroy("a")
    assert f"a: bitmap whimbrel-{ID}-0001 in {guest.name}-vda.qcow2" in look()


def test_one_byte_that_differs_is_seen(tmp_path: Path, lab_guest: Callable[..., LabGuest]) -> None:
    guest = lab_guest(disks=(DiskSpec(format="raw"),))
    raw = guest.disk_paths("a")["vda"]
    fill(raw, "raw", 32 * MIB, MIB)
    other = tmp_path / "other.qcow2"
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, other], check=True)
    assert differing_blocks(raw, other) == set()
    with raw.open("r+b") as disk:
        disk.seek(33 * MIB - 1)
        disk.write(b"\xff")
    assert differing_blocks(raw, other) == {33 * MIB // 4096 - 1}
