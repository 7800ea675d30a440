"""The target's XML: what is kept, what is dropped, what is replaced. Pure."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest

from drivers.libvirt import domain_xml, rebuild_xml, tag
from whimbrel.errors import InvalidPlan
from whimbrel.model.vm import DiskFormat, DiskSpec, Firmware, NicSpec, Power, TargetDisk, TargetVm, VmSpec, VolumeRef

SOURCE = """
<domain type='kvm' id='3'>
  <name>app01</name><uuid>11111111-2222-3333-4444-555555555555</uuid><title>App</title>
  <metadata><x:y xmlns:x='http://example.org/x'>z</x:y></metadata>
  <memory unit='KiB'>1048576</memory><vcpu cpuset='0-1'>2</vcpu>
  <cputune><shares>100</shares><vcpupin vcpu='0' cpuset='1'/></cputune>
  <numatune><memory mode='strict' nodeset='0'/></numatune>
  <resource><partition>/machine</partition></resource>
  <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
    <loader readonly='yes' secure='yes' type='pflash'>/usr/share/OVMF/CODE.fd</loader>
    <nvram>/var/nvram/app01.fd</nvram></os>
  <cpu mode='custom' match='exact'><model fallback='forbid'>Skylake-Server</model></cpu>
  <clock offset='localtime'/>
  <devices>
    <emulator>/usr/libexec/qemu-kvm</emulator>
    <disk type='network' device='disk'><driver name='qemu' type='raw' cache='none' io='native' discard='unmap'/>
      <source protocol='rbd' name='p/i'/><backingStore/><target dev='vda' bus='scsi'/>
      <iotune><total_iops_sec>9</total_iops_sec></iotune>
      <serial>DISK-1</serial><boot order='2'/><alias name='scsi0-0-0-0'/>
      <address type='drive' controller='0' bus='0' target='0' unit='0'/></disk>
    <disk type='file' device='disk'><source file='/s/scratch.raw'/><target dev='vdz' bus='virtio'/></disk>
    <disk type='file' device='cdrom'><source file='/iso/x.iso'/><target dev='sdc' bus='sata'/><readonly/></disk>
    <interface type='bridge'><mac address='52:54:00:AA:BB:01'/><source bridge='br0'/><target dev='vnet3'/>
      <virtualport type='openvswitch'/><filterref filter='clean-traffic'/><model type='e1000e'/><boot order='1'/>
      <address type='pci' domain='0x0000' bus='0x01' slot='0x00' function='0x0'/></interface>
    <interface type='network'><mac address='52:54:00:aa:bb:02'/><source network='old'/>
      <model type='virtio'/></interface>
    <serial type='pty' tty='/dev/pts/4'><source path='/dev/pts/4'/><target port='0'/></serial>
    <console type='pty' tty='/dev/pts/4'><source path='/dev/pts/4'/><target type='serial' port='0'/></console>
    <channel type='unix'><source mode='bind' path='/var/lib/libvirt/qemu/channel/x'/>
      <target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <graphics type='vnc' port='5903' autoport='yes' listen='10.1.2.3'>
      <listen type='address' address='10.1.2.3'/></graphics>
    <hostdev mode='subsystem' type='pci'><source><address bus='3'/></source></hostdev>
    <filesystem type='mount'><source dir='/srv'/><target dir='srv'/></filesystem>
    <tpm model='tpm-crb'><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend><alias name='ua-rng'/></rng>
  </devices>
  <seclabel type='dynamic' model='selinux'/>
</domain>
"""
MIGRATION = "0123456789"


def disk(key: str = "vda", form: DiskFormat = "qcow2", location: str = "/pool/vol") -> TargetDisk:
    spec = DiskSpec(key=key, size_bytes=1 << 20, format="raw", bus="scsi", serial="DISK-1", boot_order=2)
    return TargetDisk(
        spec=spec, volume=VolumeRef(name="vol", pool="p", size_bytes=1 << 20, format=form, location=location)
    )


NIC = NicSpec(key="nic0", mac="52:54:00:aa:bb:01", network="lan", model="e1000e")


def target(
    *disks: TargetDisk,
    nics: tuple[NicSpec, ...] = (NIC,),
    xml: str = SOURCE,
    kind: str = "libvirt",
    firmware: Firmware = "bios",
    name: str = "app01",
) -> TargetVm:
    source = VmSpec(
        ref="r",
        name="app01",
        power=Power.OFF,
        vcpus=2,
        memory_bytes=1 << 30,
        definition=xml,
        definition_kind=kind,
        firmware=firmware,
    )
    return TargetVm(migration=MIGRATION, name=name, source=source, disks=disks or (disk(),), nics=nics)


def built(vm: TargetVm, **options: str) -> ET.Element:
    return domain_xml.parse(rebuild_xml.rebuild(vm, **options))


def test_identity_and_hardware_are_kept() -> None:
    domain = built(target())
    assert domain.findtext("uuid") == "11111111-2222-3333-4444-555555555555"
    assert domain.findtext("title") == "App"
    assert domain.findtext("cpu/model") == "Skylake-Server"
    assert domain.find("clock").get("offset") == "localtime"  # type: ignore[union-attr]
    assert domain.find("os/type").get("machine") == "pc-q35-7.2"  # type: ignore[union-attr]
    assert domain.findtext("cputune/shares") == "100"
    assert domain.findtext("metadata/{http://example.org/x}y") == "z"
    assert domain.find("devices/rng/alias") is not None
    assert domain_xml.has_agent_channel(domain)


@pytest.mark.parametrize(
    "path",
    [
        "resource",
        "seclabel",
        "numatune",
        "cputune/vcpupin",
        "os/loader",
        "os/nvram",
        "devices/emulator",
        "devices/hostdev",
        "devices/filesystem",
        "devices/tpm",
        "devices/channel/source",
        "devices/serial/source",
        "devices/console",
        "devices/interface/filterref",
        "devices/interface/virtualport",
        "devices/interface/target",
        "devices/disk/alias",
        "devices/disk/backingStore",
        "devices/disk[@device='cdrom']/source",
    ],
)
def test_what_belongs_to_the_sources_host_is_dropped(path: str) -> None:
    assert domain_xml.parse(SOURCE).find(path) is not None
    assert built(target()).find(path) is None


@pytest.mark.parametrize(
    "word", ["/dev/pts", "10.1.2.3", "5903", "br0", "/iso", "/var/nvram", "rbd", "vnet3", "cpuset"]
)
def test_no_word_of_the_sources_host_remains(word: str) -> None:
    assert word in SOURCE
    assert word not in rebuild_xml.rebuild(target())


def test_the_disk_is_the_volume_with_the_sources_traits() -> None:
    node = built(target()).find("devices/disk[@device='disk']")
    assert node is not None
    assert node.get("type") == "file"
    assert node.find("source").attrib == {"file": "/pool/vol"}  # type: ignore[union-attr]
    driver = node.find("driver").attrib  # type: ignore[union-attr]
    assert driver == {"name": "qemu", "type": "qcow2", "cache": "none", "io": "native", "discard": "unmap"}
    assert node.findtext("serial") == "DISK-1"
    assert node.find("boot").get("order") == "2"  # type: ignore[union-attr]
    assert node.find("target").attrib == {"dev": "vda", "bus": "scsi"}  # type: ignore[union-attr]
    assert node.find("address") is not None


def test_disks_left_out_of_the_plan_are_dropped_and_drives_stay_empty() -> None:
    keys = [entry.key for entry in domain_xml.disks(built(target()))]
    assert keys == ["vda", "sdc"]
    assert domain_xml.disks(built(target()))[1].location == ""


def test_a_volume_on_a_device_is_a_block_disk() -> None:
    node = built(target(disk(location="/dev/vg/lv", form="raw"))).find("devices/disk")
    assert node is not None
    assert node.get("type") == "block"
    assert node.find("source").attrib == {"dev": "/dev/vg/lv"}  # type: ignore[union-attr]


def test_a_format_that_qemu_cannot_run_is_refused() -> None:
    with pytest.raises(InvalidPlan):
        rebuild_xml.rebuild(target(disk(form="other")))


def test_nics_are_plugged_in_anew_and_found_by_mac() -> None:
    second = NicSpec(key="nic0", mac="52:54:00:aa:bb:02", network="bridge:br9", model="virtio")
    domain = built(target(nics=(NIC, second)))
    nodes = domain.findall("devices/interface")
    assert [domain_xml.nic_network(node) for node in nodes] == ["lan", "bridge:br9"]
    assert nodes[0].find("address") is not None
    assert nodes[0].find("boot") is not None
    assert [nic.model for nic in domain_xml.nics(domain)] == ["e1000e", "virtio"]


def test_a_new_mac_is_found_by_key() -> None:
    changed = NIC.model_copy(update={"mac": "52:54:00:ff:ff:ff", "network": "user"})
    nodes = built(target(nics=(changed,))).findall("devices/interface")
    assert len(nodes) == 1
    assert nodes[0].get("type") == "user"
    assert nodes[0].find("address") is not None


def test_firmware_is_chosen_by_the_target_again() -> None:
    domain = built(target())
    assert domain.find("os").get("firmware") == "efi"  # type: ignore[union-attr]
    assert domain_xml.firmware(domain) == "uefi-secure"


def test_our_mark_is_on_it() -> None:
    assert tag.migration_of(built(target()), "vm") == MIGRATION


def test_a_logged_console_goes_where_it_is_told() -> None:
    xml = SOURCE.replace(
        "<serial type='pty' tty='/dev/pts/4'><source path='/dev/pts/4'/>",
        "<serial type='file'><source path='/logs/a.log' append='on'/>",
    )
    assert domain_xml.console_log(built(target(xml=xml))) == "/logs/a.log"
    assert domain_xml.console_log(built(target(xml=xml), console_dir="/c")) == "/c/app01-0.log"


def test_the_console_of_a_vm_from_another_kind_of_cloud_is_logged_where_a_place_is_named() -> None:
    foreign = target(xml="", kind="openstack")
    assert domain_xml.console_log(built(foreign)) is None
    assert domain_xml.console_log(built(foreign, console_dir="/c")) == "/c/app01-0.log"


@pytest.mark.parametrize(("path", "long"), [("/logs/a.sock", False), ("/run/" + "x" * 98, True)])
def test_a_renamed_vm_logs_and_listens_beside_its_source(path: str, long: bool) -> None:
    """A rehearsal may be on one host with its source, whose log and sockets it must leave alone."""
    for kind in ("file", "unix"):
        xml = SOURCE.replace(
            "<serial type='pty' tty='/dev/pts/4'><source path='/dev/pts/4'/>",
            f"<serial type='{kind}'><source path='{path}'/>",
        )
        node = built(target(xml=xml, name="app01-drill")).find("devices/serial/source")
        assert node is not None
        other = node.get("path", "")
        assert other != path
        assert len(other) <= 107
        assert other.startswith("/run/") if long else other == f"{path}.app01-drill"


def test_rebuilding_is_stable() -> None:
    """The same call again must not redefine the VM as another one."""
    assert rebuild_xml.rebuild(target()) == rebuild_xml.rebuild(target())
    again = target(xml=rebuild_xml.rebuild(target()))
    assert domain_xml.digest(rebuild_xml.rebuild(again)) == domain_xml.digest(rebuild_xml.rebuild(target()))


@pytest.mark.parametrize("firmware", ["bios", "uefi", "uefi-secure"])
def test_a_vm_that_libvirt_does_not_describe(firmware: Firmware) -> None:
    vm = target(disk(), disk("vdb", "raw", "/dev/vg/x"), xml="whatever", kind="memory", firmware=firmware, name="new")
    domain = built(vm, default_type="kvm")
    assert domain.get("type") == "kvm"
    assert domain.findtext("name") == "new"
    assert domain_xml.is_uuid(domain.findtext("uuid") or "")
    assert domain_xml.size_bytes(domain.find("memory")) == 1 << 30
    assert domain_xml.firmware(domain) == firmware
    assert [(entry.key, entry.location, entry.format) for entry in domain_xml.disks(domain)] == [
        ("vda", "/pool/vol", "qcow2"),
        ("vdb", "/dev/vg/x", "raw"),
    ]
    assert domain_xml.disks(domain)[0].boot_order == 2
    assert domain_xml.nics(domain)[0].mac == NIC.mac
    assert rebuild_xml.target_uuid(rebuild_xml.rebuild(vm)) == rebuild_xml.target_uuid(rebuild_xml.rebuild(vm))
