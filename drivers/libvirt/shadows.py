"""Overlays over the disks of stopped VMs, served writable: ``whimbrel.ports.shadow.ShadowPort``.

The session holds each disk itself read-only as its overlay's base. QEMU's image locks let a cold point read the disk
at the same time, and keep the VM, and writers, away from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from drivers.libvirt import domain_xml, domains, images, overlays
from drivers.libvirt.connection import Connection
from drivers.libvirt.mover import Mover
from drivers.libvirt.overlays import Merger
from drivers.libvirt.points_cold import session_disk
from drivers.libvirt.points_stream import only_streams
from drivers.libvirt.reach import Reach
from drivers.libvirt.session_xml import Base, SessionDisk
from whimbrel.errors import Conflict, NotFound, Unsupported
from whimbrel.exclusion import alone
from whimbrel.model import naming
from whimbrel.model.point import DiskPoint, WriterSession
from whimbrel.model.vm import DiskSpec, VmSpec


def overlay_name(vm: VmSpec, disk: str, migration: str) -> str:
    """Name of the overlay over a disk."""
    return naming.volume_name(vm.name, f"{disk}-shadow", migration)


class LibvirtShadows:
    """``ShadowPort`` over one connection."""

    def __init__(self, connection: Connection, mover: Mover, reach: Reach) -> None:
        self._connection = connection
        self._mover = mover
        self._reach = reach
        self._merger = Merger(connection, mover, reach)

    def open(self, key: str, vm: VmSpec, disks: Sequence[str], *, migration: str) -> WriterSession:
        """See the port. Raises Conflict, NotFound, Unsupported, QuotaExceeded."""
        with alone(self._connection.uri, "shadows", vm.ref):
            with self._connection.using(f"shadowing the disks of {vm.name}", vm=vm.ref) as conn:
                if only_streams(conn, self._reach):
                    raise Unsupported("disks of this host can be read through streams only, not shadowed")
                known = self._disks(conn, self._off(conn, vm), disks)
                held = []
                for disk in disks:
                    overlay = self._overlay(conn, vm, known[disk], migration)
                    pool, path = overlays.beside(conn, known[disk].location, overlay_name(vm, disk, migration))
                    overlays.ensure(pool, path.rpartition("/")[2], _base(overlay), known[disk].size_bytes)
                    held.append(overlay)
            session = self._mover.open(key, held, migration=migration, writable=True, note=overlays.NOTE)
            self._mover.export(session, dict.fromkeys(disks, ()), writable=True)
            return WriterSession(
                key=key,
                disks=tuple(
                    DiskPoint(
                        key=disk,
                        size_bytes=session.nodes[disk].size_bytes,
                        endpoint=self._reach.endpoint(session.address, disk, writable=True),
                    )
                    for disk in disks
                ),
            )

    def merge(self, key: str, vm: VmSpec, disks: Sequence[str], *, migration: str) -> int:
        """See the port. Raises Conflict, DataMismatch, NotReady."""
        with alone(self._connection.uri, "shadows", vm.ref):
            self._mover.close(key, migration=migration)
            present: list[SessionDisk] = []
            with self._connection.using(f"merging the shadows of {vm.name}", vm=vm.ref) as conn:
                if not self._names(conn, vm, migration):
                    return 0
                known = self._disks(conn, self._off(conn, vm), disks)
                for disk in disks:
                    pool, _ = overlays.beside(conn, known[disk].location, "")
                    if overlays.find(pool, overlay_name(vm, disk, migration)) is not None:
                        present.append(replace(self._overlay(conn, vm, known[disk], migration), guarded=False))
            brought = self._merger.merge(key, present, migration=migration) if present else 0
            self._remove(vm, known, migration)
            return brought

    def drop(self, key: str, vm: VmSpec, disks: Sequence[str], *, migration: str) -> None:
        """See the port."""
        with alone(self._connection.uri, "shadows", vm.ref):
            self._mover.close(key, migration=migration)
            with self._connection.using(f"dropping the shadows of {vm.name}", vm=vm.ref) as conn:
                wanted = {overlay_name(vm, disk, migration) for disk in disks}
                for volume in self._volumes(conn, vm, migration):
                    if volume.name() in wanted:
                        overlays.remove(volume.storagePoolLookupByVolume(), volume.name())

    def owned(self, vm: VmSpec, migration: str) -> Sequence[str]:
        """Names of the overlays in all active pools."""
        with self._connection.using(f"listing shadows of {vm.name}", vm=vm.ref) as conn:
            return self._names(conn, vm, migration)

    def _names(self, conn: Any, vm: VmSpec, migration: str) -> list[str]:
        return sorted(volume.name() for volume in self._volumes(conn, vm, migration))

    @staticmethod
    def _volumes(conn: Any, vm: VmSpec, migration: str) -> list[Any]:
        first = naming.volume_name(vm.name, "", migration).removesuffix(f"-{migration}")
        return [
            volume
            for _, volume in images.all_volumes(conn)
            if volume.name().startswith(first) and volume.name().endswith(f"-shadow-{migration}")
        ]

    @staticmethod
    def _off(conn: Any, vm: VmSpec) -> Any:
        domain = domains.get(conn, vm.ref)
        if domain.isActive():
            raise Conflict(f"{vm.name} is on: its disks have no shadow while it runs", vm=vm.ref)
        return domain

    @staticmethod
    def _disks(conn: Any, domain: Any, disks: Sequence[str]) -> dict[str, DiskSpec]:
        xml = domain_xml.parse(domain.XMLDesc())
        known = {disk.key: disk for disk in images.disk_specs(conn, domain, xml, deep=False)}
        for disk in disks:
            if disk not in known:
                raise NotFound(f"{domain.name()} has no disk {disk}", disk=disk)
        return {disk: known[disk] for disk in disks}

    @staticmethod
    def _overlay(conn: Any, vm: VmSpec, disk: DiskSpec, migration: str) -> SessionDisk:
        base = session_disk(disk)
        _, path = overlays.beside(conn, disk.location, overlay_name(vm, disk.key, migration))
        return SessionDisk(disk.key, path, "qcow2", Base(base.location, base.format), guarded=True)

    def _remove(self, vm: VmSpec, known: Mapping[str, DiskSpec], migration: str) -> None:
        with self._connection.using(f"removing shadows of {vm.name}", vm=vm.ref) as conn:
            for disk in known.values():
                pool, _ = overlays.beside(conn, disk.location, "")
                overlays.remove(pool, overlay_name(vm, disk.key, migration))


def _base(overlay: SessionDisk) -> Base:
    if overlay.base is None:
        raise ValueError(overlay.location)
    return overlay.base
