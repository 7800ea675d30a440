"""A point in time of a stopped VM on a host that serves no NBD (Xen), or whose ports cannot be reached: streams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import libvirt

from drivers.libvirt import domain_xml, images, point_mark
from drivers.libvirt.reach import Reach
from whimbrel.errors import BaseLost, Conflict, NotFound, Unsupported
from whimbrel.model import naming
from whimbrel.model.endpoint import LibvirtVolumeEndpoint
from whimbrel.model.point import DiskPoint, OpenPoint
from whimbrel.model.vm import DiskSpec


def only_streams(conn: Any, reach: Reach) -> bool:
    """Whether disks of this host are read through libvirt's streams. Raises libvirtError."""
    return reach.transport == "stream" or conn.getType() != "QEMU"


class StreamPoints:
    """Opens points of stopped VMs. Nothing locks the images meanwhile: the reader sees when the VM is started."""

    def __init__(self, cloud: str) -> None:
        self._cloud = cloud

    def open(
        self, conn: Any, domain: Any, disks: Sequence[str], *, key: str, since: str | None, migration: str
    ) -> OpenPoint:
        """See ``PointInTimePort.open``. Raises Unsupported for a VM that is on and for disks that are not raw."""
        specs = {
            disk.key: disk for disk in images.disk_specs(conn, domain, domain_xml.parse(domain.XMLDesc()), deep=False)
        }
        missing = [disk for disk in disks if disk not in specs]
        if missing:
            raise NotFound(f"{domain.name()} has no disk {missing[0]}", disk=missing[0])
        if since is not None:
            raise BaseLost("streams tell no changes", since=since, vm=domain.name())
        if domain.isActive():
            raise Unsupported(
                f"{domain.name()} is on, and this host gives disks of stopped VMs only",
                action="set mode: cold for this VM: it is stopped, then copied",
                vm=domain.name(),
            )
        for disk in disks:
            _check_readable(conn, specs[disk])
        _check_unused(conn, {specs[disk].location for disk in disks})
        mark = point_mark.put(domain, key, migration)
        return OpenPoint(
            key=key,
            vm_ref=domain.UUIDString(),
            kind="cold",
            taken_at=mark.opened_at,
            token=None,
            disks=tuple(
                DiskPoint(
                    key=disk,
                    size_bytes=specs[disk].size_bytes,
                    endpoint=LibvirtVolumeEndpoint(
                        cloud=self._cloud, path=specs[disk].location, vm=domain.UUIDString(), point=key
                    ),
                )
                for disk in disks
            ),
        )

    @staticmethod
    def close(domain: Any, key: str, *, migration: str) -> None:
        """Take the point's mark off; a point that is not open is fine."""
        point_mark.remove(domain, key, migration)

    @staticmethod
    def owned(domain: Any, migration: str) -> list[str]:
        """The open point of this migration, if there is one."""
        mark = point_mark.read(domain)
        return [mark.key] if mark is not None and naming.owns_point(mark.key, migration) else []


def _check_readable(conn: Any, disk: DiskSpec) -> None:
    if disk.format != "raw":
        raise Unsupported(
            f"disk {disk.key} is not raw, and this host cannot tell what its image means",
            action="convert it at the source (qemu-img convert -O raw) and point the VM at the raw image",
            disk=disk.key,
            format=disk.format,
        )
    if images.find_volume(conn, disk.location) is None:
        raise Unsupported(
            f"the image of disk {disk.key} lies in no active storage pool, and only volumes of pools can be read",
            action="define and start a pool over its directory or volume group (virsh pool-define-as), "
            "or refresh the pool that it is in",
            disk=disk.key,
            location=disk.location,
        )


def _check_unused(conn: Any, locations: set[str]) -> None:
    """No domain that runs (mover sessions too) has one of the images. Raises Conflict."""
    for domain in conn.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
        held = {images.resolve(conn, disk) for disk in domain_xml.disks(domain_xml.parse(domain.XMLDesc()))}
        if held & locations:
            raise Conflict(f"{min(held & locations)} is in use by {domain.name()}", user=domain.name())
