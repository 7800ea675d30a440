"""A point in time of a stopped VM: a mover session that holds its disks read-only and serves their bitmaps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from drivers.libvirt import checkpoints, domain_xml, images
from drivers.libvirt.checkpoints import Checkpoint
from drivers.libvirt.mover import Mover, Session
from drivers.libvirt.reach import Reach
from drivers.libvirt.session_xml import SessionDisk
from whimbrel.errors import BaseLost, NotFound, Unsupported
from whimbrel.model.point import DiskPoint, OpenPoint
from whimbrel.model.vm import DiskSpec

QEMU_FORMATS = {"raw": "raw", "qcow2": "qcow2", "qcow2-v2": "qcow2"}


def session_disk(disk: DiskSpec) -> SessionDisk:
    """A VM's disk as a session holds it. Raises Unsupported for formats other than raw and qcow2."""
    form = QEMU_FORMATS.get(disk.format)
    if form is None:
        raise Unsupported(f"disk {disk.key} is neither raw nor qcow2", disk=disk.key)
    return SessionDisk(disk.key, disk.location, form)


class ColdPoints:
    """Opens points of stopped VMs; a start of the VM fails while one is open, by QEMU's image locks."""

    def __init__(self, mover: Mover, reach: Reach) -> None:
        self._mover = mover
        self._reach = reach

    def open(
        self, conn: Any, domain: Any, disks: Sequence[str], *, key: str, since: str | None, migration: str
    ) -> OpenPoint:
        """See ``PointInTimePort.open``; the domain is off. It leaves no token: a stopped VM makes no changes."""
        specs = {
            disk.key: disk for disk in images.disk_specs(conn, domain, domain_xml.parse(domain.XMLDesc()), deep=False)
        }
        missing = [disk for disk in disks if disk not in specs]
        if missing:
            raise NotFound(f"{domain.name()} has no disk {missing[0]}", disk=missing[0])
        held = [session_disk(specs[disk]) for disk in disks]
        later = self._since(domain, since)
        session = self._mover.open(key, held, migration=migration, writable=False, note=since or "")
        try:
            bitmaps = {disk: bitmaps_since(later, disk, session) for disk in disks}
        except BaseLost:
            self._mover.close(key, migration=migration)
            raise
        self._mover.export(session, bitmaps, writable=False)
        return OpenPoint(
            key=key,
            vm_ref=domain.UUIDString(),
            kind="cold",
            taken_at=session.opened_at,
            token=None,
            since=since,
            disks=tuple(self._point(session, disk, bitmaps[disk]) for disk in disks),
        )

    @staticmethod
    def _since(domain: Any, since: str | None) -> list[Checkpoint]:
        if since is None:
            return []
        later = checkpoints.since(checkpoints.read(domain), since)
        if not later:
            raise BaseLost(f"the VM has no checkpoint {since}", since=since, vm=domain.name())
        return later

    def _point(self, session: Session, disk: str, bitmaps: Sequence[str]) -> DiskPoint:
        contexts = tuple(f"qemu:dirty-bitmap:{name}" for name in bitmaps)
        return DiskPoint(
            key=disk,
            size_bytes=session.nodes[disk].size_bytes,
            endpoint=self._reach.endpoint(session.address, disk, dirty_contexts=contexts),
            tracked=bool(contexts),
        )


def bitmaps_since(later: Sequence[Checkpoint], disk: str, session: Session) -> list[str]:
    """Bitmaps of a disk whose union is what changed since the first of ``later``.

    One that still records holds it all; for one that was stopped, the later ones are needed too. Empty if the first
    checkpoint did not track the disk. Raises BaseLost when a needed one is missing or was not closed properly (QEMU
    was killed), because then changes may be missing.
    """
    if not later or disk not in later[0].bitmaps:
        return []
    names: list[str] = []
    for entry in later:
        name = entry.bitmaps.get(disk)
        bitmap = session.nodes[disk].bitmap(name) if name is not None else None
        if bitmap is None or bitmap.inconsistent:
            raise BaseLost(
                f"the bitmap of checkpoint {entry.name} on disk {disk} is "
                + ("missing" if bitmap is None else "inconsistent: QEMU did not close it"),
                since=later[0].name,
                disk=disk,
                checkpoint=entry.name,
            )
        names.append(bitmap.name)
        if bitmap.recording:
            break
    return names
