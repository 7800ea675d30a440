"""Xen guests read into the model and rebuilt for KVM: pure, and once defined by a real libvirtd."""

# ruff: noqa: N802 - the stand-in answers by the names that libvirt gives

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree as ET

import libvirt
import pytest

from drivers.libvirt import domain_xml, domains, rebuild_xml, xen_xml
from tests.drivers.libvirt.xen_guests import (
    GUESTS,
    HVM_UEFI,
    HVM_WINDOWS,
    PARTITION,
    PV_DIRECT_KERNEL,
    PV_PYGRUB,
    PVH,
)
from whimbrel.errors import Unsupported
from whimbrel.model.vm import Power, TargetDisk, TargetVm, VmSpec, VolumeRef

SIZE = 1 << 20


class StoppedDomain:
    """What ``domains.spec`` asks of a virDomain of a Xen host."""

    def __init__(self, xml: str) -> None:
        self._xml = xml

    def XMLDesc(self, _flags: int = 0) -> str:
        return self._xml

    def UUIDString(self) -> str:
        return ET.fromstring(self._xml).findtext("uuid") or ""

    def name(self) -> str:
        return ET.fromstring(self._xml).findtext("name") or ""

    def state(self) -> tuple[int, int]:
        return libvirt.VIR_DOMAIN_SHUTOFF, 0

    def isActive(self) -> bool:
        return False

    def isPersistent(self) -> bool:
        return True

    def autostart(self) -> int:
        return 1

    def blockInfo(self, _disk: str) -> tuple[int, int, int]:
        return SIZE, 4096, SIZE


class HostWithoutPools:
    def storageVolLookupByPath(self, _path: str) -> Any:
        missing = libvirt.libvirtError("no such volume")
        missing.err = (libvirt.VIR_ERR_NO_STORAGE_VOL, 0, "no such volume", 2, "", "", "", 0, 0)
        raise missing


def spec_of(xml: str) -> VmSpec:
    return domains.spec(HostWithoutPools(), StoppedDomain(xml))


def target_of(vm: VmSpec, directory: str = "/pool") -> TargetVm:
    disks = tuple(
        TargetDisk(
            spec=disk,
            volume=VolumeRef(
                name=disk.key, pool="p", size_bytes=SIZE, format="qcow2", location=f"{directory}/{disk.key}.qcow2"
            ),
        )
        for disk in vm.disks
    )
    nics = tuple(nic.model_copy(update={"network": "user"}) for nic in vm.nics)
    return TargetVm(migration="0123456789", name=vm.name, source=vm, disks=disks, nics=nics)


def rebuilt(xml: str, kind: str = "kvm") -> ET.Element:
    return domain_xml.parse(rebuild_xml.rebuild(target_of(spec_of(xml)), default_type=kind))


def buses(domain: ET.Element) -> dict[str, str]:
    return {str(node.get("dev")): str(node.get("bus")) for node in domain.findall("devices/disk/target")}


def changes(xml: str) -> str:
    return "\n".join(xen_xml.for_kvm(domain_xml.parse(xml)).changes)


def test_a_pv_guest_in_the_inventory() -> None:
    vm = spec_of(PV_PYGRUB)
    assert (vm.name, vm.power, vm.vcpus, vm.memory_bytes) == ("mail", Power.OFF, 2, 1 << 30)
    assert (vm.machine, vm.firmware, vm.arch, vm.autostart) == ("pc", "bios", "x86_64", True)
    assert [(disk.key, disk.bus, disk.format, disk.location) for disk in vm.disks] == [
        ("xvda", "virtio", "raw", "/dev/vg0/mail-root"),
        ("xvdb", "virtio", "raw", "/dev/vg0/mail-spool"),
    ]
    assert [(nic.mac, nic.network, nic.model) for nic in vm.nics] == [("00:16:3e:1a:2b:3c", "bridge:xenbr0", "virtio")]
    assert "type='xen'" in vm.definition
    assert vm.definition_digest == domain_xml.digest(PV_PYGRUB)


def test_formats_of_xens_own_backends() -> None:
    assert [disk.format for disk in spec_of(PV_DIRECT_KERNEL).disks] == ["raw", "other"]
    assert [disk.format for disk in spec_of(HVM_UEFI).disks][1] == "raw"
    assert spec_of(HVM_UEFI).disks[0].format.startswith("qcow2")


@pytest.mark.parametrize("xml", GUESTS.values(), ids=GUESTS)
def test_nothing_of_xen_is_left(xml: str) -> None:
    domain = rebuilt(xml)
    text = ET.tostring(domain, encoding="unicode").lower()
    for word in ("xenbus", "xenpv", "xenfv", "hvmloader", "pygrub", "netfront", "vif-bridge", "'xen'", '"xen"', "tap2"):
        assert word not in text
    assert domain.get("type") == "kvm"
    assert domain_xml.text(domain, "os/type") == "hvm"
    source = domain_xml.parse(xml)
    for path in ("name", "uuid", "memory", "vcpu"):
        assert domain_xml.text(domain, path) == domain_xml.text(source, path)
    assert domain.find("features/acpi") is not None
    for name in ("kernel", "initrd", "cmdline", "loader"):
        assert domain.find(f"os/{name}") is None
    for disk in domain.findall("devices/disk"):
        driver = disk.find("driver")
        assert driver is not None
        assert driver.get("name") == "qemu"
        assert disk.find("backenddomain") is None


@pytest.mark.parametrize("xml", GUESTS.values(), ids=GUESTS)
def test_converting_again_changes_nothing_and_the_given_definition_stays(xml: str) -> None:
    given = domain_xml.parse(xml)
    before = ET.canonicalize(ET.tostring(given, encoding="unicode"))
    once = xen_xml.for_kvm(given)
    assert ET.canonicalize(ET.tostring(given, encoding="unicode")) == before
    twice = xen_xml.for_kvm(once.domain)
    assert (twice.domain, twice.changes) == (once.domain, ())
    assert once.changes


def test_pygrub_and_host_kernels_are_told() -> None:
    assert "pygrub" in changes(PV_PYGRUB)
    assert "boot loader" in changes(PV_PYGRUB)
    assert "kernel of the source's host" in changes(PV_DIRECT_KERNEL)
    assert "kernel of the source's host" in changes(PVH)
    assert "disk xvda: bus xen becomes virtio" in changes(PV_PYGRUB)
    assert "its driver domain is dropped" in changes(PV_DIRECT_KERNEL)
    assert "hvc0 becomes serial port ttyS0" in changes(PV_PYGRUB)
    assert "Xen's own tools" in changes(PV_DIRECT_KERNEL)


def test_windows_keeps_what_it_has_drivers_for() -> None:
    domain = rebuilt(HVM_WINDOWS)
    assert buses(domain) == {"hda": "ide", "hdc": "ide"}
    kind = domain.find("os/type")
    assert kind is not None
    assert kind.get("machine") == "pc"
    assert [node.get("type") for node in domain.findall("devices/interface/model")] == ["e1000", "rtl8139"]
    assert [node.get("dev") for node in domain.findall("os/boot")] == ["hd", "cdrom"]
    assert domain.find("features/viridian") is None
    assert domain.find("features/pae") is not None
    assert domain.find("clock/timer") is None
    clock = domain.find("clock")
    assert clock is not None
    assert clock.get("offset") == "variable"
    assert domain.find("devices/hostdev") is None
    assert domain.find("devices/disk[@device='cdrom']/source") is None
    video = domain.find("devices/video/model")
    assert video is not None
    assert video.get("type") == "cirrus"
    assert "virtio" not in changes(HVM_WINDOWS)
    assert "machine: xenfv becomes pc" in changes(HVM_WINDOWS)
    assert domain.find("cpu") is not None
    assert rebuilt(HVM_WINDOWS, kind="qemu").find("cpu") is None


def test_uefi_goes_to_q35_with_sata() -> None:
    domain = rebuilt(HVM_UEFI)
    os_element, kind = domain.find("os"), domain.find("os/type")
    assert os_element is not None
    assert kind is not None
    assert (os_element.get("firmware"), kind.get("machine")) == ("efi", "q35")
    assert buses(domain) == {"hda": "sata", "xvdb": "virtio", "xvdc": "sata"}
    assert "disk hda: bus ide becomes sata" in changes(HVM_UEFI)
    assert spec_of(HVM_UEFI).firmware == "uefi"


def test_a_partition_as_a_disk_is_refused_and_told_before() -> None:
    conversion = xen_xml.for_kvm(domain_xml.parse(PARTITION))
    assert len(conversion.blockers) == 2
    assert "xvda1" in conversion.blockers[0]
    with pytest.raises(Unsupported) as refused:
        rebuilt(PARTITION)
    assert "xvda1" in refused.value.message


def test_a_kvm_definition_is_left_alone() -> None:
    domain = domain_xml.parse(
        "<domain type='kvm'><os><type machine='pc'>hvm</type></os><features><xen/></features></domain>"
    )
    assert xen_xml.for_kvm(domain) == xen_xml.Conversion(domain)


@pytest.mark.lab
@pytest.mark.timeout(600)
@pytest.mark.parametrize("xml", [PV_PYGRUB, PV_DIRECT_KERNEL, HVM_WINDOWS, PVH], ids=["pv", "kernel", "hvm", "pvh"])
def test_libvirt_and_qemu_take_the_rebuilt_machine(xml: str, kvm_lab: Any) -> None:
    vm = spec_of(xml)
    conn = kvm_lab.connect("b")
    pool = conn.storagePoolLookupByName("default")
    wanted = target_of(vm)
    for disk in wanted.disks:
        pool.createXML(
            f"<volume><name>xen-{vm.name}-{disk.spec.key}</name><capacity>{SIZE}</capacity><target>"
            "<format type='qcow2'/></target></volume>"
        )
    places = {
        disk.spec.key: pool.storageVolLookupByName(f"xen-{vm.name}-{disk.spec.key}").path() for disk in wanted.disks
    }
    wanted = wanted.model_copy(
        update={
            "disks": tuple(
                disk.model_copy(update={"volume": disk.volume.model_copy(update={"location": places[disk.spec.key]})})
                for disk in wanted.disks
            )
        }
    )
    domain = conn.defineXML(rebuild_xml.rebuild(wanted, default_type="qemu"))
    try:
        domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
        live = domain_xml.parse(domain.XMLDesc())
        assert [disk.key for disk in domain_xml.disks(live) if disk.device == "disk"] == [disk.key for disk in vm.disks]
        assert [(nic.mac, nic.model) for nic in domain_xml.nics(live)] == [(nic.mac, nic.model) for nic in vm.nics]
    finally:
        if domain.isActive():
            domain.destroy()
        domain.undefine()
        for key in places:
            pool.storageVolLookupByName(f"xen-{vm.name}-{key}").delete(0)
        conn.close()
