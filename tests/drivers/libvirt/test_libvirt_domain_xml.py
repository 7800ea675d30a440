"""Domain XML read into the model: pure."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers.libvirt import domain_xml, tag
from whimbrel.model.vm import Power

FULL = """
<domain type='kvm' id='7'>
  <name>app01</name><uuid>11111111-2222-3333-4444-555555555555</uuid>
  <metadata><other:note xmlns:other='http://example.org/other'>kept</other:note></metadata>
  <memory unit='GiB'>2</memory><currentMemory unit='KiB'>1048576</currentMemory>
  <vcpu placement='static' current='2' cpuset='0-3'>4</vcpu>
  <os firmware='efi'><type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
    <firmware><feature enabled='yes' name='secure-boot'/></firmware></os>
  <devices>
    <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/pool/a.qcow2' index='2'/>
      <backingStore type='file' index='3'><format type='qcow2'/><source file='/pool/base.qcow2'/>
        <backingStore type='file'><source file='/pool/root.raw'/><backingStore/></backingStore></backingStore>
      <target dev='vda' bus='virtio'/><serial>S1</serial><boot order='1'/></disk>
    <disk type='block' device='disk'><driver name='qemu' type='raw'/><source dev='/dev/vg/lv'/>
      <target dev='sda' bus='scsi'/><readonly/><shareable/></disk>
    <disk type='volume' device='disk'><driver name='qemu' type='qcow2'/><source pool='p' volume='v'/>
      <target dev='vdb' bus='virtio'/><encryption format='luks'/></disk>
    <disk type='network' device='disk'><source protocol='rbd' name='pool/image'/><target dev='vdc' bus='virtio'/></disk>
    <disk type='file' device='cdrom'><source file='/iso/x.iso'/><target dev='hda' bus='ide'/><readonly/></disk>
    <interface type='network'><mac address='52:54:00:AA:BB:01'/><source network='lan'/>
      <model type='virtio'/></interface>
    <interface type='bridge'><mac address='52:54:00:aa:bb:02'/><source bridge='br0'/><model type='e1000e'/>
      <link state='down'/></interface>
    <interface type='direct'><mac address='52:54:00:aa:bb:03'/><source dev='eth1' mode='bridge'/></interface>
    <interface type='user'><mac address='52:54:00:aa:bb:04'/></interface>
    <serial type='file'><source path='/var/log/app01.log'/><target port='0'/></serial>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
  </devices>
</domain>
"""


def with_os(inside: str) -> str:
    return f"<domain><os{inside}</os></domain>"


def test_size_and_cpus() -> None:
    domain = domain_xml.parse(FULL)
    assert domain_xml.size_bytes(domain.find("memory")) == 2 << 30
    assert domain_xml.vcpus(domain) == 2
    assert domain_xml.vcpus(domain_xml.parse("<domain/>")) == 1
    assert domain_xml.size_bytes(None) == 0


@pytest.mark.parametrize(
    ("unit", "factor"),
    [("b", 1), ("bytes", 1), ("KB", 1000), ("KiB", 1024), ("M", 1 << 20), ("MB", 10**6), ("TiB", 1 << 40)],
)
def test_every_unit(unit: str, factor: int) -> None:
    node = domain_xml.parse(f"<memory unit='{unit}'> 3 </memory>")
    assert domain_xml.size_bytes(node) == 3 * factor


def test_kib_is_the_default_unit() -> None:
    assert domain_xml.size_bytes(domain_xml.parse("<memory>8</memory>")) == 8192


@pytest.mark.parametrize(
    ("inside", "kind"),
    [
        ("><type>hvm</type>", "bios"),
        ("><loader type='rom'>/bios.bin</loader>", "bios"),
        (" firmware='bios'>", "bios"),
        (" firmware='efi'>", "uefi"),
        ("><loader type='pflash' readonly='yes'>/OVMF_CODE.fd</loader>", "uefi"),
        ("><loader type='pflash' secure='yes'>/OVMF_CODE.fd</loader>", "uefi-secure"),
        ("><loader type='pflash' secure='no'>/OVMF_CODE.fd</loader>", "uefi"),
        (" firmware='efi'><firmware><feature enabled='yes' name='secure-boot'/></firmware>", "uefi-secure"),
        (" firmware='efi'><firmware><feature enabled='no' name='secure-boot'/></firmware>", "uefi"),
    ],
)
def test_firmware(inside: str, kind: str) -> None:
    assert domain_xml.firmware(domain_xml.parse(with_os(inside))) == kind


def test_a_domain_without_os_element_is_bios() -> None:
    assert domain_xml.firmware(domain_xml.parse("<domain/>")) == "bios"


def test_disks() -> None:
    disks = {disk.key: disk for disk in domain_xml.disks(domain_xml.parse(FULL))}
    assert list(disks) == ["vda", "sda", "vdb", "vdc", "hda"]
    vda = disks["vda"]
    assert (vda.location, vda.format, vda.bus, vda.serial, vda.boot_order) == (
        "/pool/a.qcow2",
        "qcow2",
        "virtio",
        "S1",
        1,
    )
    assert vda.chain == ("/pool/base.qcow2", "/pool/root.raw")
    assert (disks["sda"].location, disks["sda"].read_only, disks["sda"].shareable) == ("/dev/vg/lv", True, True)
    assert (disks["vdb"].pool_volume, disks["vdb"].encrypted) == (("p", "v"), True)
    assert disks["vdc"].location == "rbd:pool/image"
    assert (disks["hda"].device, disks["hda"].location) == ("cdrom", "/iso/x.iso")


def test_nics_keep_their_order_and_lose_their_case() -> None:
    nics = domain_xml.nics(domain_xml.parse(FULL))
    assert [(nic.key, nic.mac[-2:], nic.network, nic.link_up) for nic in nics] == [
        ("nic0", "01", "lan", True),
        ("nic1", "02", "bridge:br0", False),
        ("nic2", "03", "direct:eth1", True),
        ("nic3", "04", "user", True),
    ]
    assert nics[0].mac == "52:54:00:aa:bb:01"


def test_console_and_agent() -> None:
    domain = domain_xml.parse(FULL)
    assert domain_xml.console_log(domain) == "/var/log/app01.log"
    assert domain_xml.has_agent_channel(domain)
    logged = "<domain><devices><console type='pty'><log file='/l'/></console></devices></domain>"
    assert domain_xml.console_log(domain_xml.parse(logged)) == "/l"
    bare = domain_xml.parse("<domain><devices><serial type='pty'/></devices></domain>")
    assert domain_xml.console_log(bare) is None
    assert not domain_xml.has_agent_channel(bare)


def test_every_state_of_libvirt_is_a_power_state() -> None:
    assert {domain_xml.POWER_BY_STATE[state] for state in range(1, 8)} == set(Power) - {Power.UNKNOWN}


def test_digest_ignores_our_mark_layout_and_attribute_order() -> None:
    marked = domain_xml.parse(FULL)
    tag.put(marked, tag.element("0123456789", "vm"))
    assert domain_xml.digest(ET.tostring(marked, encoding="unicode")) == domain_xml.digest(FULL)
    one = "<domain><a x='1' y='2'/></domain>"
    assert domain_xml.digest(one) == domain_xml.digest('<domain>\n  <a y="2" x="1"></a>\n</domain>')
    alone = domain_xml.parse("<domain><name>x</name></domain>")
    tag.put(alone, tag.element("0123456789", "vm"))
    assert domain_xml.digest(ET.tostring(alone, encoding="unicode")) == domain_xml.digest(
        "<domain><name>x</name></domain>"
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [("<vcpu placement='static' current='2'", "<vcpu placement='static' current='3'"), ("S1", "S2"), ("lan", "dmz")],
)
def test_digest_tells_definitions_apart(old: str, new: str) -> None:
    assert domain_xml.digest(FULL.replace(old, new)) != domain_xml.digest(FULL)


def test_tag_is_put_found_replaced_and_stripped() -> None:
    domain = domain_xml.parse(FULL)
    assert tag.find(domain) is None
    tag.put(domain, tag.element("aaaaaaaaaa", "vm"))
    tag.put(domain, tag.element("bbbbbbbbbb", "vm"))
    assert tag.migration_of(domain, "vm") == "bbbbbbbbbb"
    assert tag.migration_of(domain, "session") is None
    assert not tag.is_session(domain)
    tag.strip(domain)
    assert tag.find(domain) is None
    assert domain.find("metadata/{http://example.org/other}note") is not None


def test_strip_leaves_no_empty_metadata() -> None:
    domain = domain_xml.parse("<domain/>")
    tag.put(domain, tag.element("aaaaaaaaaa", "session"))
    assert tag.is_session(domain)
    tag.strip(domain)
    assert domain.find("metadata") is None
    tag.strip(domain)


@given(st.uuids())
def test_uuids_are_known(uuid: object) -> None:
    assert domain_xml.is_uuid(str(uuid))
    assert domain_xml.is_uuid(str(uuid).upper())
    assert not domain_xml.is_uuid(str(uuid)[:-1])


@given(st.text(max_size=40))
def test_names_are_not_taken_for_uuids(name: str) -> None:
    assert not domain_xml.is_uuid(name) or len(name) == 36
