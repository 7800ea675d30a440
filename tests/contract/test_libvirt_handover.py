"""libvirt passes the contract suite of handovers; what is particular to it is below."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from drivers.libvirt.held import NOWHERE
from labs.kvm import KvmLab
from tests.contract.libvirt_sharing import LibvirtSharing
from tests.contract.sharing_harness import SharingHarness
from tests.contract.suites.handover import HandoverContract
from whimbrel.errors import Conflict, NotFound

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]


class _Libvirt(HandoverContract):
    @pytest.fixture
    def sharing(self, kvm_lab: KvmLab) -> Iterator[SharingHarness]:
        made = LibvirtSharing(kvm_lab)
        yield made
        made.end()


class TestLibvirtHandover(_Libvirt): ...


class TestLibvirtHandoverRaw(_Libvirt):
    disk_format = "raw"


class TestLocksAskedOfQemu(_Libvirt):
    """As from a mover on another machine: it sees no files, and lets a QEMU of the host try to open them."""

    @pytest.fixture
    def sharing(self, kvm_lab: KvmLab, monkeypatch: pytest.MonkeyPatch) -> Iterator[SharingHarness]:
        made = LibvirtSharing(kvm_lab)
        for cloud in (made.source, made.target):
            monkeypatch.setattr(cloud.handover, "_local", False)
        yield made
        made.end()


class TestOfLibvirt:
    @pytest.fixture
    def sharing(self, kvm_lab: KvmLab) -> Iterator[LibvirtSharing]:
        made = LibvirtSharing(kvm_lab)
        yield made
        made.end()

    def test_the_password_of_the_console_comes_back_too(self, sharing: LibvirtSharing) -> None:
        ref = sharing.make_vm([(1 << 20, "qcow2")])
        whole = sharing.secret_definition(ref)
        assert "hidden" in whole
        vm = sharing.source.compute.inspect(ref)
        port = sharing.source.handover
        assert port is not None
        port.release(vm, migration="0011223344", turn=1)
        released = sharing.secret_definition(ref)
        assert "hidden" in released
        assert f"<source file='{NOWHERE}" in released
        port.reclaim(vm, migration="0011223344", turn=1)
        assert sharing.secret_definition(ref) == whole

    def test_who_starts_it_by_hand_reads_why_it_does_not(self, sharing: LibvirtSharing) -> None:
        vm = sharing.source.compute.inspect(sharing.make_vm([(1 << 20, "qcow2")]))
        port = sharing.source.handover
        assert port is not None
        port.release(vm, migration="0011223344", turn=1)
        with pytest.raises(Conflict, match="whimbrel-has-taken-this-disk") as refusal:
            sharing.source.compute.start(vm.ref)
        assert "roll back" in refusal.value.action

    def test_the_metadata_may_be_lost(self, sharing: LibvirtSharing) -> None:
        """Somebody defines the shell anew without our mark: the definition that the workflow holds gives the disks."""
        vm = sharing.source.compute.inspect(sharing.make_vm([(1 << 20, "qcow2"), (1 << 20, "raw")]))
        port = sharing.source.handover
        assert port is not None
        port.release(vm, migration="0011223344", turn=1)
        shell = sharing.secret_definition(vm.ref)
        connection = sharing._lab.connect("a")
        connection.defineXML(re.sub(r"<metadata.*</metadata>", "", shell, flags=re.DOTALL))
        connection.close()
        assert port.held(vm.ref) is None
        assert not sharing.force_start(sharing.source, vm.ref)
        assert port.reclaim(vm, migration="0011223344", turn=1).definition_digest == vm.definition_digest
        assert sharing.force_start(sharing.source, vm.ref)

    def test_a_saved_memory_image_keeps_its_disks(self, sharing: LibvirtSharing) -> None:
        """Starting it would open the disks by a definition of its own."""
        vm = sharing.source.compute.inspect(sharing.make_vm([(1 << 20, "qcow2")], running=True))
        connection = sharing._lab.connect("a")
        connection.lookupByUUIDString(vm.ref).managedSave()
        port = sharing.source.handover
        assert port is not None
        with pytest.raises(Conflict, match="saved memory image"):
            port.release(vm, migration="0011223344", turn=1)
        connection.lookupByUUIDString(vm.ref).managedSaveRemove()
        connection.close()
        port.release(vm, migration="0011223344", turn=1)

    @pytest.mark.parametrize("where", ["shared", "default"])
    def test_a_chain_must_be_on_the_storage_of_both(self, sharing: LibvirtSharing, where: str) -> None:
        """A linked clone whose template is in the shared pool is seen whole; one whose template is not, is refused."""
        ref = sharing.make_vm([(1 << 20, "qcow2")])
        image = Path(sharing.source.compute.inspect(ref).disks[0].location)
        base = sharing._lab.pool_path("a", where) / f"template-{ref}.qcow2"
        image.rename(base)
        command = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(base), str(image)]
        subprocess.run(command, check=True)
        connection = sharing._lab.connect("a")
        for pool in connection.listAllStoragePools():
            pool.refresh()
        connection.close()
        vm = sharing.source.compute.inspect(ref)
        source, target = sharing.source.handover, sharing.target.handover
        assert source is not None
        assert target is not None
        stored = source.stored(vm)
        assert [image.handle for image in stored[0].chain] == [base.name]
        assert [image.pool for image in stored[0].chain] == [where]
        if where == "shared":
            released = source.release(vm, migration="0011223344", turn=1)
            assert target.adopt(released, {}, migration="0011223344")[0].volume.location == str(image)
            assert source.reclaim(vm, migration="0011223344", turn=1).definition_digest == vm.definition_digest
        else:
            with pytest.raises(NotFound):
                target.look(stored, {})
            base.unlink()
