"""What the images behind a VM's disks are: size, format, chain. Asked of libvirt, never of local files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree as ET

import libvirt

from drivers.libvirt import domain_xml, qmp
from drivers.libvirt.domain_xml import XmlDisk
from whimbrel.model.vm import DiskFormat, DiskSpec

MAX_CHAIN = 200


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What a storage pool tells about one volume."""

    path: str
    pool: str
    name: str
    capacity_bytes: int
    allocated_bytes: int
    format: str
    compat: str | None
    backing: str | None
    backing_format: str | None
    encrypted: bool = False
    physical_bytes: int = 0
    changed_at: str = ""
    """Times of the last write and the last change of the inode, as libvirt writes them; "" where it knows none."""


def disk_format(name: str, compat: str | None) -> DiskFormat:
    """The model's word for an image format; ``compat`` is qcow2's (``0.10`` is version 2, which holds no bitmaps)."""
    if name == "raw":
        return "raw"
    if name == "qcow2":
        return "qcow2-v2" if compat == "0.10" else "qcow2"
    return "other"


def volume_facts(volume: Any) -> ImageFacts:
    """A ``virStorageVol`` read into facts. Raises libvirtError."""
    xml = ET.fromstring(volume.XMLDesc())  # noqa: S314 - see the import
    kind = xml.find("target/format")
    backing_format = xml.find("backingStore/format")
    image_format = kind.get("type", "raw") if kind is not None else "raw"
    compat = xml.findtext("target/compat")
    if image_format == "qcow2" and compat is None:
        compat = "0.10"  # libvirt writes <compat> for every other version
    return ImageFacts(
        path=xml.findtext("target/path") or volume.path(),
        pool=volume.storagePoolLookupByVolume().name(),
        name=volume.name(),
        capacity_bytes=domain_xml.size_bytes(xml.find("capacity")),
        allocated_bytes=domain_xml.size_bytes(xml.find("allocation")),
        format=image_format,
        compat=compat,
        backing=xml.findtext("backingStore/path") or None,
        backing_format=backing_format.get("type") if backing_format is not None else None,
        encrypted=xml.find("target/encryption") is not None,
        physical_bytes=domain_xml.size_bytes(xml.find("physical")),
        changed_at="/".join(xml.findtext(f"target/timestamps/{time}") or "" for time in ("mtime", "ctime")),
    )


def find_volume(conn: Any, path: str) -> ImageFacts | None:
    """Facts of the image at ``path`` if it lies in an active pool that has seen it."""
    try:
        return volume_facts(conn.storageVolLookupByPath(path))
    except libvirt.libvirtError as error:
        if error.get_error_code() in {libvirt.VIR_ERR_NO_STORAGE_VOL, libvirt.VIR_ERR_NO_STORAGE_POOL}:
            return None
        raise


def resolve(conn: Any, disk: XmlDisk) -> str:
    """Path of a disk's top image; disks given as pool and volume are looked up. Raises libvirtError."""
    if disk.pool_volume is None:
        return disk.location
    pool, name = disk.pool_volume
    return str(conn.storagePoolLookupByName(pool).storageVolLookupByName(name).path())


def chain_below(conn: Any, top: ImageFacts | None, written: tuple[str, ...]) -> tuple[tuple[str, ...], bool]:
    """Images below the top one and whether the chain is complete as far as pools can tell.

    ``written`` is what the live definition says; it is complete by construction, because QEMU has opened it all.
    """
    if written or top is None:
        return written, True
    found: list[str] = []
    at = top.backing
    while at is not None and at not in found and len(found) < MAX_CHAIN:
        found.append(at)
        below = find_volume(conn, at)
        if below is None:
            # Outside of all pools: it may exist, nobody here can tell. Within one it would have been seen.
            return tuple(found), not _in_a_pool(conn, at)
        at = below.backing
    return tuple(found), True


def _in_a_pool(conn: Any, path: str) -> bool:
    directory = path.rpartition("/")[0]
    for pool in conn.listAllStoragePools(libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE):
        target = ET.fromstring(pool.XMLDesc()).findtext("target/path")  # noqa: S314 - see the import
        if target is not None and target.rstrip("/") == directory:
            return True
    return False


def disk_specs(conn: Any, domain: Any, xml: ET.Element, *, deep: bool) -> tuple[DiskSpec, ...]:
    """The VM's disks (no CD-ROM or floppy drives, no empty ones).

    With ``deep``, a running QEMU is asked for what pools do not know: the qcow2 version of images outside of them.
    """
    specs = []
    nodes: dict[str, qmp.Node] | None = None
    for disk in domain_xml.disks(xml):
        if disk.device not in {"disk", "lun"} or not disk.location:
            continue
        location = resolve(conn, disk)
        facts = find_volume(conn, location)
        compat = facts.compat if facts is not None else None
        if facts is None and disk.format == "qcow2" and deep and domain.isActive():
            nodes = qmp.disk_nodes(domain) if nodes is None else nodes
            compat = next((node.compat for node in nodes.values() if node.filename == location), None)
        size, allocated = _sizes(domain, disk, facts)
        form = disk_format(disk.format, compat)
        specs.append(
            DiskSpec(
                key=disk.key,
                size_bytes=size,
                format=form,
                bus=disk.bus,
                pool=facts.pool if facts is not None else None,
                location=location,
                serial=disk.serial,
                boot_order=disk.boot_order,
                read_only=disk.read_only,
                shareable=disk.shareable,
                backing_chain=chain_below(conn, facts, disk.chain)[0],
                allocated_bytes=allocated,
                trackable=form == "qcow2" and not disk.read_only,
            )
        )
    return tuple(specs)


def _sizes(domain: Any, disk: XmlDisk, facts: ImageFacts | None) -> tuple[int, int | None]:
    """Virtual size and allocation; (0, None) when nobody can tell (an image that is not there)."""
    with suppress(libvirt.libvirtError):
        capacity, allocation, _physical = domain.blockInfo(disk.key)
        return int(capacity), int(allocation)
    if facts is not None:
        return facts.capacity_bytes, facts.allocated_bytes
    return 0, None


def all_volumes(conn: Any) -> Iterator[tuple[str, Any]]:
    """Pool name and volume for all volumes of active pools, looked at anew."""
    for pool in conn.listAllStoragePools(libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE):
        with suppress(libvirt.libvirtError):
            pool.refresh()
        with suppress(libvirt.libvirtError):
            yield from ((pool.name(), volume) for volume in pool.listAllVolumes())
