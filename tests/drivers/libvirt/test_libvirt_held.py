"""Taking disks from a definition and giving them back, on XML alone; and the locks of images, on files alone."""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from drivers.libvirt import domain_xml, held, tag
from drivers.libvirt.image_lock import FLOCK, is_open_somewhere
from whimbrel.model.handover import Hold

DEFINITION = """
<domain type='kvm'><name>app</name><uuid>5b1f9a52-3f0e-4b0e-9c84-6a2f4a1f1c55</uuid>{metadata}
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='none'/><source file='/pool/a.qcow2'/>
      <backingStore type='file'><format type='qcow2'/><source file='/pool/base.qcow2'/></backingStore>
      <target dev='vda' bus='virtio'/><serial>one</serial><boot order='1'/>
      <address type='pci' domain='0x0000' bus='0x04' slot='0x00' function='0x0'/></disk>
    <controller type='scsi' index='0'/>
    <disk type='block' device='lun'><source dev='/dev/disk/by-id/wwn-1'/><target dev='sda' bus='scsi'/></disk>
    <disk type='file' device='cdrom'><source file='/iso/install.iso'/><target dev='sdb' bus='sata'/></disk>
    <interface type='network'><mac address='52:54:00:00:00:01'/><source network='lab'/></interface>
  </devices></domain>
"""
FOREIGN = "<metadata><other:note xmlns:other='https://example.org'>keep</other:note></metadata>"


def definition(metadata: str = "") -> ET.Element:
    return domain_xml.parse(DEFINITION.format(metadata=metadata))


def same(one: ET.Element, other: ET.Element) -> bool:
    texts = [ET.canonicalize(ET.tostring(each, encoding="unicode"), strip_text=True) for each in (one, other)]
    return texts[0] == texts[1]


@pytest.mark.parametrize("metadata", ["", FOREIGN])
def test_what_was_taken_comes_back_in_place(metadata: str) -> None:
    taken = definition(metadata)
    held.take(taken, migration="m1", turn=1)
    assert held.hold_of(taken) == Hold(migration="m1", turn=1)
    assert held.is_taken(taken)
    written = domain_xml.parse(ET.tostring(taken, encoding="unicode"))
    assert same(held.before(written), definition(metadata))
    held.give_back(written)
    assert same(written, definition(metadata))
    assert not held.is_taken(written)


def test_no_image_is_named_by_what_is_left() -> None:
    taken = definition()
    held.take(taken, migration="m1", turn=1)
    left = [(disk.key, disk.location, disk.chain) for disk in domain_xml.disks(taken)]
    assert left == [
        ("vda", f"{held.NOWHERE}/m1/vda", ()),
        ("sda", f"{held.NOWHERE}/m1/sda", ()),
        ("sdb", "/iso/install.iso", ()),
    ]


def test_taken_twice_is_taken_once_with_the_newer_turn() -> None:
    taken = definition()
    for turn in (1, 2):
        held.take(taken, migration="m1", turn=turn)
    assert held.hold_of(taken) == Hold(migration="m1", turn=2)
    assert same(held.before(taken), definition())


def test_lost_metadata_is_replaced_by_the_definition_of_before() -> None:
    taken = definition()
    held.take(taken, migration="m1", turn=1)
    metadata = taken.find("metadata")
    assert metadata is not None
    taken.remove(metadata)
    assert held.hold_of(taken) is None
    assert held.is_taken(taken)
    held.give_back(taken, definition())
    assert same(taken, definition())


def test_a_definition_that_has_its_disks_is_left_alone() -> None:
    own = definition(FOREIGN)
    held.give_back(own, definition())
    assert same(own, definition(FOREIGN))


def test_a_change_by_hand_meanwhile_is_kept() -> None:
    """Somebody gave the shell another card: the disks come back, the card stays."""
    taken = definition()
    held.take(taken, migration="m1", turn=1)
    mac = taken.find("devices/interface/mac")
    assert mac is not None
    mac.set("address", "52:54:00:00:00:02")
    held.give_back(taken)
    assert [disk.location for disk in domain_xml.disks(taken)][:2] == ["/pool/a.qcow2", "/dev/disk/by-id/wwn-1"]
    assert domain_xml.nics(taken)[0].mac == "52:54:00:00:00:02"


def test_the_hold_is_no_part_of_the_digest() -> None:
    marked = definition()
    held.take(marked, migration="m1", turn=1)
    again = definition()
    held.take(again, migration="m1", turn=2)
    digests = {domain_xml.digest(ET.tostring(each, encoding="unicode")) for each in (marked, again)}
    assert len(digests) == 1
    tag.strip(marked)
    assert held.hold_of(marked) is None


F_OFD_SETLK = 37


@pytest.mark.parametrize(("kind", "at", "seen"), [(0, 101, True), (0, 201, True), (1, 103, True), (0, 50, False)])
def test_locks_of_others_are_seen(tmp_path: Path, kind: int, at: int, seen: object) -> None:
    """As QEMU takes them: shared locks on single bytes, by an open file description of its own."""
    image = tmp_path / "image"
    image.write_bytes(b"x")
    assert not is_open_somewhere(str(image))
    descriptor = os.open(image, os.O_RDWR)
    asked = struct.pack(FLOCK, fcntl.F_RDLCK if kind == 0 else fcntl.F_WRLCK, os.SEEK_SET, at, 1, 0)
    fcntl.fcntl(descriptor, F_OFD_SETLK, asked.ljust(struct.calcsize(FLOCK) + 4, b"\0"))
    assert is_open_somewhere(str(image)) == seen
    os.close(descriptor)
    assert not is_open_somewhere(str(image))


def test_an_image_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        is_open_somewhere(str(tmp_path / "none"))
