"""The domain that holds disks open for the mover: a paused, empty machine that never runs an instruction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal
from xml.etree import ElementTree as ET

from drivers.libvirt import tag

QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"
ET.register_namespace("qemu", QEMU_NAMESPACE)
MEMORY_MIB = 16
Cache = Literal["none", "writeback"]


@dataclass(frozen=True, slots=True)
class Base:
    """The image below an overlay, whatever the overlay itself says."""

    location: str
    format: str


@dataclass(frozen=True, slots=True)
class SessionDisk:
    """One image to be held open; ``format`` in QEMU's terms."""

    key: str
    location: str
    format: str
    base: Base | None = None
    """None: what the image itself names, if anything."""
    guarded: bool = False
    """Keep writers away from the base, also a raw one; see ``_guard``."""


def alias(index: int) -> str:
    """User alias of the session's n-th disk; by it the image is found again in QMP."""
    return f"ua-whimbrel-{index}"


def session_xml(
    name: str, disks: Sequence[SessionDisk], *, migration: str, writable: bool, address: str, cache: Cache, note: str
) -> str:
    """Domain XML of a session. Our mark carries what a later attempt needs to adopt it: address,
    mode, disk keys, what it is for (``note``) and since when.

    Writable sessions share their disks with the NBD export (``share-rw``), which is the only one that writes: the
    machine's CPUs are never started. libvirt's own ``<shareable/>`` would say the same but is refused for qcow2.
    """
    domain = ET.Element("domain", {"type": "qemu"})
    ET.SubElement(domain, "name").text = name
    mode = "write" if writable else "read"
    keys = " ".join(disk.key for disk in disks)
    opened = datetime.now(UTC).isoformat(timespec="seconds")
    mark = tag.element(migration, "session", mode=mode, disks=keys, address=address, note=note, opened=opened)
    tag.put(domain, mark)
    ET.SubElement(domain, "memory", {"unit": "MiB"}).text = str(MEMORY_MIB)
    ET.SubElement(domain, "vcpu").text = "1"
    ET.SubElement(ET.SubElement(domain, "os"), "type").text = "hvm"
    for event in ("on_poweroff", "on_reboot", "on_crash"):
        ET.SubElement(domain, event).text = "destroy"
    devices = ET.SubElement(domain, "devices")
    for index, disk in enumerate(disks):
        devices.append(_disk(index, disk, writable=writable, cache=cache))
    for index, disk in enumerate(disks):
        if disk.guarded and disk.base is not None and disk.base.format == "raw":
            devices.append(_guard(index, disk.base, cache=cache))
    # Disks can be added to a machine that never runs, and taken out again, on this bus only (``frozen``).
    if writable or any(disk.guarded for disk in disks):
        ET.SubElement(devices, "controller", {"type": "scsi", "model": "virtio-scsi"})
    ET.SubElement(devices, "controller", {"type": "usb", "model": "none"})
    ET.SubElement(devices, "memballoon", {"model": "none"})
    if writable:
        line = ET.SubElement(domain, f"{{{QEMU_NAMESPACE}}}commandline")
        for argument in ("-global", "virtio-blk-device.share-rw=on", "-global", "scsi-hd.share-rw=on"):
            ET.SubElement(line, f"{{{QEMU_NAMESPACE}}}arg", {"value": argument})
    return ET.tostring(domain, encoding="unicode")


def _disk(index: int, disk: SessionDisk, *, writable: bool, cache: Cache) -> ET.Element:
    block = disk.location.startswith("/dev/")
    node = ET.Element("disk", {"type": "block" if block else "file", "device": "disk"})
    ET.SubElement(
        node,
        "driver",
        # Zeroes arrive as NBD write-zeroes requests and become holes by discard='unmap'; looking for zeroes in
        # written data (detect_zeroes) would only cost the host's CPU.
        {"name": "qemu", "type": disk.format, "cache": cache, "discard": "unmap", "detect_zeroes": "off"},
    )
    ET.SubElement(node, "source", {"dev" if block else "file": disk.location})
    if disk.base is not None:
        node.append(_backing(disk.base))
    ET.SubElement(node, "target", {"dev": f"vd{_letters(index)}", "bus": "virtio"})
    if not writable:
        ET.SubElement(node, "readonly")
    ET.SubElement(node, "alias", {"name": alias(index)})
    return node


def _backing(base: Base) -> ET.Element:
    block = base.location.startswith("/dev/")
    below = ET.Element("backingStore", {"type": "block" if block else "file"})
    ET.SubElement(below, "format", {"type": base.format})
    ET.SubElement(below, "source", {"dev" if block else "file": base.location})
    if base.format == "raw":
        ET.SubElement(below, "backingStore")  # the end: libvirt must not look for more in a raw image
    return below


def _guard(index: int, base: Base, *, cache: Cache) -> ET.Element:
    """A raw base once more, as a medium in a drive that nobody reads.

    A device with ``share-rw`` lets others write all raw images below it, so a VM could start on a raw base while its
    overlay is written. A drive without it takes the lock that keeps writers away and readers not.
    """
    block = base.location.startswith("/dev/")
    node = ET.Element("disk", {"type": "block" if block else "file", "device": "cdrom"})
    ET.SubElement(node, "driver", {"name": "qemu", "type": base.format, "cache": cache})
    ET.SubElement(node, "source", {"dev" if block else "file": base.location})
    ET.SubElement(node, "target", {"dev": f"sd{_letters(index)}", "bus": "scsi"})
    ET.SubElement(node, "readonly")
    return node


def _letters(index: int) -> str:
    """0 -> a, 25 -> z, 26 -> aa: the suffixes of disk names."""
    name = ""
    index += 1
    while index:
        index, rest = divmod(index - 1, 26)
        name = chr(ord("a") + rest) + name
    return name
