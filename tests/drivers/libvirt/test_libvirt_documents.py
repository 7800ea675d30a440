"""Documents written for libvirt and read from it: backups, checkpoints, sessions, volumes, networks, capabilities."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers.libvirt import backup_xml, checkpoints, host, network, qmp, tag, tracking, volumes
from drivers.libvirt.checkpoints import Checkpoint
from drivers.libvirt.images import disk_format
from drivers.libvirt.reach import Address, Reach
from drivers.libvirt.session_xml import SessionDisk, _letters, session_xml
from whimbrel.model.naming import point_key
from whimbrel.model.vm import VolumeSpec

MIGRATION = "0123456789"
KEY = point_key(MIGRATION, 7)


# --- backup jobs


def as_running(xml: str) -> str:
    """What libvirt tells of a job begun by ``xml``: export names and bitmaps are filled in."""
    backup = ET.fromstring(xml)
    for node in backup.findall("disks/disk[@backup='yes']"):
        node.set("exportname", node.get("name", ""))
        if node.get("backupmode") == "incremental":
            node.set("exportbitmap", f"backup-{node.get('name')}")
    return ET.tostring(backup, encoding="unicode")


@given(st.lists(st.sampled_from(["vda", "vdb", "sda", "sdb"]), unique=True, min_size=1), st.data())
def test_a_job_is_recognised_by_what_began_it(disks: list[str], data: st.DataObject) -> None:
    tracked = data.draw(st.lists(st.sampled_from(disks), unique=True))
    scratch = {disk: f"/pool/{backup_xml.scratch_name(KEY, disk)}" for disk in disks}
    address = data.draw(st.sampled_from([Address(unix_path="/r/x.sock"), Address(host="10.0.0.1", port=10999)]))
    since = dict.fromkeys(tracked, point_key(MIGRATION, 6))
    job = backup_xml.read_job(as_running(backup_xml.backup_xml(address, scratch, ["vdz"], since=since)))
    assert job is not None
    assert (job.key, job.address) == (KEY, address)
    assert job.since == (point_key(MIGRATION, 6) if tracked else None)
    assert {disk.name: disk.scratch for disk in job.disks} == scratch
    assert {disk.name for disk in job.disks if disk.bitmap} == set(tracked)


def test_a_job_of_another_tool_has_no_key() -> None:
    xml = (
        "<domainbackup mode='pull'><server transport='unix' socket='/x'/><disks><disk name='vda' backup='yes'>{}</disk>"
        "</disks></domainbackup>"
    )
    for scratch in ("<scratch file='/s/tmp.qcow2'/>", "<scratch dev='/dev/x'/>", ""):
        job = backup_xml.read_job(xml.format(scratch))
        assert job is not None
        assert job.key is None
    assert backup_xml.read_job("<domainbackup mode='push'><disks/></domainbackup>") is None


def test_tls_is_asked_for_on_tcp_only() -> None:
    over_tcp = backup_xml.backup_xml(Address(host="h", port=1), {"vda": "/s"}, [], since={}, tls=True)
    assert ET.fromstring(over_tcp).find("server").attrib == {  # type: ignore[union-attr]
        "transport": "tcp",
        "name": "h",
        "port": "1",
        "tls": "yes",
    }
    assert "tls" not in backup_xml.backup_xml(Address(unix_path="/x"), {"vda": "/s"}, [], since={}, tls=True)


def test_a_checkpoint_tracks_only_what_it_is_told() -> None:
    xml = ET.fromstring(backup_xml.checkpoint_xml(KEY, ["vda"], ["vdb", "sda"]))
    assert xml.findtext("name") == KEY
    assert {node.get("name"): node.get("checkpoint") for node in xml.findall("disks/disk")} == {
        "vda": "bitmap",
        "vdb": "no",
        "sda": "no",
    }


# --- checkpoints


def entry(name: str, parent: str | None, *disks: str) -> Checkpoint:
    return Checkpoint(name, parent, datetime(2026, 1, 1, tzinfo=UTC), dict.fromkeys(disks or ("vda",), name))


class FakeCheckpoint:
    def __init__(self, name: str, parent: str | None, second: int) -> None:
        above = f"<parent><name>{parent}</name></parent>" if parent else ""
        self.xml = (
            f"<domaincheckpoint><name>{name}</name>{above}<creationTime>{second}</creationTime><disks>"
            f"<disk name='vda' checkpoint='bitmap' bitmap='{name}'/><disk name='vdb' checkpoint='no'/></disks>"
            "</domaincheckpoint>"
        )

    def getXMLDesc(self, _flags: int) -> str:  # noqa: N802 - libvirt's name
        return self.xml


class FakeDomain:
    def __init__(self, *found: FakeCheckpoint) -> None:
        self.found = found

    def listAllCheckpoints(self) -> tuple[FakeCheckpoint, ...]:  # noqa: N802 - libvirt's name
        return self.found


@given(st.permutations(range(6)))
def test_checkpoints_are_read_parents_first(order: list[int]) -> None:
    """libvirt lists them in any order, and several may be made within one second."""
    made = [FakeCheckpoint(f"c{number}", f"c{number - 1}" if number else None, 100) for number in range(6)]
    known = checkpoints.read(FakeDomain(*(made[number] for number in order)))
    assert [item.name for item in known] == [f"c{number}" for number in range(6)]
    assert known[0].bitmaps == {"vda": "c0"}
    assert [item.name for item in checkpoints.since(known, "c3")] == ["c3", "c4", "c5"]
    assert checkpoints.since(known, "nope") == []


def node(*bitmaps: qmp.Bitmap) -> qmp.Node:
    return qmp.Node("n", "a", 1, "qcow2", "1.1", "/f", bitmaps)


def bitmap(name: str, *, inconsistent: bool = False) -> qmp.Bitmap:
    return qmp.Bitmap(name, recording=not inconsistent, persistent=True, inconsistent=inconsistent)


def test_damage_is_named() -> None:
    known = [entry("whole", None), entry("missing", "whole"), entry("broken", "missing"), entry("other", None, "vdb")]
    nodes = {"vda": node(bitmap("whole"), bitmap("broken", inconsistent=True), bitmap("alone"))}
    assert set(tracking.damage(known, nodes)) == {"missing", "broken", "alone"}
    assert tracking.damage([entry("whole", None)], {"vda": node(bitmap("whole"))}) == {}


# --- sessions


@pytest.mark.parametrize("writable", [True, False])
def test_a_session_never_runs_and_tells_what_it_is(writable: bool) -> None:
    disks = [SessionDisk("vda", "/pool/a.qcow2", "qcow2"), SessionDisk("sda", "/dev/vg/b", "raw")]
    domain = ET.fromstring(
        session_xml("k", disks, migration=MIGRATION, writable=writable, address="h 7", cache="none", note="n")
    )
    mark = tag.find(domain)
    assert mark is not None
    assert (mark.get("role"), mark.get("disks"), mark.get("address"), mark.get("note")) == (
        "session",
        "vda sda",
        "h 7",
        "n",
    )
    assert mark.get("mode") == ("write" if writable else "read")
    assert datetime.fromisoformat(mark.get("opened", "")).tzinfo is not None
    nodes = domain.findall("devices/disk")
    assert [item.get("type") for item in nodes] == ["file", "block"]
    assert [item.find("readonly") is None for item in nodes] == [writable, writable]
    assert domain.find("devices/interface") is None
    assert ("share-rw=on" in ET.tostring(domain, encoding="unicode")) is writable


@given(st.integers(0, 2000))
def test_disk_letters_are_unique_and_ordered(index: int) -> None:
    assert (len(_letters(index)), _letters(index)) < (len(_letters(index + 1)), _letters(index + 1))
    assert [_letters(number) for number in (0, 25, 26, 701, 702)] == ["a", "z", "aa", "zz", "aaa"]


@given(st.text(min_size=1, max_size=80))
def test_addresses_are_derived_and_short(key: str) -> None:
    unix = Reach(transport="unix", runtime_dir="/run/whimbrel", nbd_host="h")
    (only,) = unix.candidates(key)
    assert only == next(unix.candidates(key))
    assert len(only.unix_path or "") < 50
    tcp = Reach(transport="tcp", runtime_dir="", nbd_host="h")
    ports = [address.port for address in tcp.candidates(key)]
    assert ports == [address.port for address in tcp.candidates(key)]
    assert len(set(ports)) == len(ports) == 16
    assert all(1024 < port < 65536 for port in ports)
    other = Reach(transport="unix", runtime_dir="/run/whimbrel", nbd_host="h", salt="another daemon")
    assert next(other.candidates(key)) != only
    for address in (only, next(tcp.candidates(key)), Address(host="fd00::1", port=7)):
        assert Address.parse(address.text) == address


# --- volumes, networks, hosts


def test_qcow2_volumes_say_their_version() -> None:
    def compat(form: Any) -> str | None:
        spec = VolumeSpec(name="n", pool="p", size_bytes=7, format=form, migration=MIGRATION)
        xml = ET.fromstring(volumes.volume_xml(spec))
        assert xml.findtext("capacity") == "7"
        assert xml.findtext("allocation") == "0"
        return xml.findtext("target/compat")

    assert [compat(form) for form in ("qcow2", "qcow2-v2", "raw")] == ["1.1", "0.10", None]


def test_image_formats() -> None:
    given_ = [("raw", None), ("qcow2", "1.1"), ("qcow2", "0.10"), ("qcow2", None), ("vmdk", None)]
    assert [disk_format(*one) for one in given_] == ["raw", "qcow2", "qcow2-v2", "qcow2", "other"]


def test_networks() -> None:
    nat = (
        "<network><name>n</name><forward mode='nat'/><mtu size='9000'/><ip address='10.1.2.1' netmask='255.255.255.0'/>"
        "<ip family='ipv6' address='fd00::1' prefix='64'/></network>"
    )
    facts = network.read_network(nat, active=True)
    assert (facts.name, facts.isolated, facts.mtu, facts.cidrs) == ("n", False, 9000, ("10.1.2.0/24", "fd00::/64"))
    alone = network.read_network("<network><name>i</name></network>", active=False)
    assert (alone.isolated, alone.mtu, alone.active, alone.cidrs) == (True, None, False, ())


def test_domain_capabilities() -> None:
    xml = """<domainCapabilities><arch>x86_64</arch><vcpu max='288'/><os><enum name='firmware'><value>efi</value></enum>
      <loader><enum name='secure'><value>yes</value></enum></loader></os>
      <cpu><mode name='custom'><model usable='yes'>B</model><model usable='no'>Z</model><model>A</model></mode></cpu>
      <devices><disk><enum name='bus'><value>virtio</value><value>sata</value></enum></disk></devices>
      <features><backup supported='yes'/></features></domainCapabilities>"""
    caps = host.read_domain_capabilities(xml)
    assert (caps.vcpus_max, caps.backup, caps.cpu_models) == (288, True, ("A", "B"))
    assert caps.firmwares == ("bios", "uefi", "uefi-secure")
    assert caps.disk_buses == ("virtio", "sata")
    bare = host.read_domain_capabilities("<domainCapabilities/>")
    assert (bare.firmwares, bare.backup, bare.vcpus_max) == (("bios",), False, None)


def test_machines() -> None:
    xml = """<capabilities><guest><os_type>hvm</os_type><arch name='x86_64'>
      <machine canonical='pc-q35-7.2'>q35</machine><domain type='kvm'/></arch></guest>
      <guest><os_type>exe</os_type><arch name='x'/></guest></capabilities>"""
    assert host.read_machines(xml) == (("x86_64",), ("pc-q35-7.2", "q35"))
