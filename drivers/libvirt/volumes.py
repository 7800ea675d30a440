"""Storage pools and volumes: ``whimbrel.ports.volume.VolumePort``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any
from xml.etree import ElementTree as ET

import libvirt

from drivers.libvirt import domain_xml, domains, images
from drivers.libvirt.connection import Connection
from drivers.libvirt.frozen import FrozenWriters
from drivers.libvirt.mover import Mover, Session
from drivers.libvirt.points_stream import only_streams
from drivers.libvirt.reach import Reach
from drivers.libvirt.session_xml import SessionDisk
from whimbrel.errors import Conflict, InvalidPlan, NotFound, QuotaExceeded, Unsupported
from whimbrel.model.facts import PoolFacts
from whimbrel.model.point import DiskPoint, OpenPoint, WriterSession
from whimbrel.model.vm import VmSpec, VolumeRef, VolumeSpec

QEMU_FORMATS = {"raw": "raw", "qcow2": "qcow2", "qcow2-v2": "qcow2"}
QCOW2_HEADROOM_BYTES = 1 << 20
"""Room that an empty qcow2 takes for its own tables, generously."""


class LibvirtVolumes:
    """``VolumePort`` over one connection."""

    def __init__(self, connection: Connection, mover: Mover, reach: Reach) -> None:
        self._connection = connection
        self._mover = mover
        self._reach = reach
        self._frozen = FrozenWriters(connection, mover, reach)

    def pools(self) -> Sequence[PoolFacts]:
        """All pools; active ones are measured anew."""
        found = []
        with self._connection.using("listing storage pools") as conn:
            for pool in conn.listAllStoragePools():
                active = bool(pool.isActive())
                if active and not self._connection.read_only:
                    # Without it libvirt tells the sizes of its last look.
                    with suppress(libvirt.libvirtError):
                        pool.refresh()
                _state, capacity, _allocation, available = pool.info()
                found.append(
                    PoolFacts(
                        name=pool.name(),
                        free_bytes=int(available) if active else 0,
                        capacity_bytes=int(capacity) if active else 0,
                        active=active,
                    )
                )
        return found

    def ensure_volume(self, spec: VolumeSpec) -> VolumeRef:
        """Make an empty thin volume or find the one made before. Raises NotFound, QuotaExceeded, Conflict."""
        if not spec.name.endswith(f"-{spec.migration}"):
            raise InvalidPlan(f"volume name {spec.name} does not carry migration {spec.migration}")
        if spec.format not in QEMU_FORMATS:
            raise Unsupported(f"libvirt pools cannot make a volume of format {spec.format}")
        with self._connection.using(f"making volume {spec.name}", volume=spec.name, pool=spec.pool) as conn:
            pool = self._pool(conn, spec.pool)
            found = self._find(pool, spec.name)
            if found is None:
                self._check_room(pool, spec)
                try:
                    found = pool.createXML(volume_xml(spec), 0)
                except libvirt.libvirtError:
                    found = self._find(pool, spec.name)  # an orphaned attempt may have been faster
                    if found is None:
                        raise
            return self._checked(found, spec)

    @staticmethod
    def _check_room(pool: Any, spec: VolumeSpec) -> None:
        """Thin volumes may promise more than is free now, but none can ever hold more than its pool."""
        _state, capacity, _allocation, available = (int(value) for value in pool.info())
        if spec.size_bytes > capacity:
            raise QuotaExceeded(
                f"volume {spec.name} would be larger than pool {spec.pool}",
                size_bytes=spec.size_bytes,
                capacity_bytes=capacity,
            )
        if available < QCOW2_HEADROOM_BYTES:
            raise QuotaExceeded(f"pool {spec.pool} is full", pool=spec.pool, free_bytes=available)

    @staticmethod
    def _checked(volume: Any, spec: VolumeSpec) -> VolumeRef:
        facts = images.volume_facts(volume)
        form = images.disk_format(facts.format, facts.compat)
        if facts.capacity_bytes != spec.size_bytes or form != spec.format:
            raise Conflict(
                f"volume {spec.name} exists with another size or format",
                found=f"{facts.capacity_bytes} {form}",
                wanted=f"{spec.size_bytes} {spec.format}",
            )
        return VolumeRef(
            name=spec.name, pool=spec.pool, size_bytes=facts.capacity_bytes, format=form, location=facts.path
        )

    def ensure_absent(self, name: str, pool: str, *, migration: str) -> None:
        """Remove a volume that ``migration`` made. Raises Conflict for one of others or one in use."""
        with self._connection.using(f"removing volume {name}", volume=name, pool=pool) as conn:
            if pool not in {known.name() for known in conn.listAllStoragePools()}:
                return
            holder = self._pool(conn, pool)
            volume = self._find(holder, name)
            if volume is None:
                return
            if not name.endswith(f"-{migration}"):
                raise Conflict(f"volume {name} was not made by this migration", volume=name)
            user = self._user_of(conn, volume.path())
            if user is not None:
                raise Conflict(f"volume {name} is in use by {user}", volume=name, user=user)
            try:
                volume.delete(0)
            except libvirt.libvirtError:
                if self._find(holder, name) is not None:
                    raise

    @staticmethod
    def _user_of(conn: Any, path: str) -> str | None:
        """Name of the running domain (mover sessions too) or defined VM that has the image at ``path``."""
        for domain in conn.listAllDomains():
            with suppress(libvirt.libvirtError):
                for disk in domain_xml.disks(domain_xml.parse(domain.XMLDesc())):
                    if path in {images.resolve(conn, disk), *disk.chain}:
                        return str(domain.name())
        return None

    def owned(self, migration: str) -> Sequence[str]:
        """Names of volumes whose name ends with the migration's id, in all active pools, looked at anew."""
        with self._connection.using("listing volumes of a migration") as conn:
            return sorted(
                volume.name() for _pool, volume in images.all_volumes(conn) if volume.name().endswith(f"-{migration}")
            )

    def open_writer(self, key: str, volumes: Mapping[str, VolumeRef], *, migration: str) -> WriterSession:
        """Serve volumes writable from a mover session. Raises NotFound, Conflict."""
        held = []
        with self._connection.using(f"opening writer {key}") as conn:
            for disk_key, volume in volumes.items():
                if self._find(self._pool(conn, volume.pool), volume.name) is None:
                    raise NotFound(f"there is no volume {volume.name} in pool {volume.pool}", volume=volume.name)
                held.append(SessionDisk(disk_key, volume.location, QEMU_FORMATS.get(volume.format, "raw")))
        return self._writer(key, held, migration)

    def open_disk_writer(self, key: str, vm: VmSpec, disks: Sequence[str], *, migration: str) -> WriterSession:
        """Serve disks of a VM that is off, writable. Raises Conflict if it runs, NotFound for an unknown disk."""
        with self._connection.using(f"opening writer {key}", vm=vm.ref) as conn:
            domain = domains.get(conn, vm.ref)
            if domain.isActive():
                raise Conflict(f"{vm.name} is on: its disks cannot be written from outside", vm=vm.ref)
            known = {
                disk.key: disk
                for disk in images.disk_specs(conn, domain, domain_xml.parse(domain.XMLDesc()), deep=False)
            }
        missing = [disk for disk in disks if disk not in known]
        if missing:
            raise NotFound(f"{vm.name} has no disk {missing[0]}", vm=vm.ref, disk=missing[0])
        held = [SessionDisk(disk, known[disk].location, QEMU_FORMATS.get(known[disk].format, "raw")) for disk in disks]
        return self._writer(key, held, migration)

    def close_writer(self, key: str) -> None:
        """End the session so that all it wrote is in the images; one that is not there is fine."""
        self._frozen.close(key)

    def freeze_writer(self, key: str, point: str, *, migration: str) -> OpenPoint:
        """Freeze what all volumes of a session hold. Raises NotFound, Conflict, NotReady, Unsupported."""
        return self._frozen.freeze(key, point, migration=migration)

    def thaw_writer(self, key: str, point: str) -> None:
        """End a frozen point and remove its scratch volumes."""
        self._frozen.thaw(key, point)

    def _writer(self, key: str, held: Sequence[SessionDisk], migration: str) -> WriterSession:
        with self._connection.using(f"opening writer {key}") as conn:
            if only_streams(conn, self._reach):
                raise Unsupported(
                    "disks of this host can be read through streams only, not written",
                    action="choose another target, or transport unix, tcp or tls if it is a QEMU host",
                )
        session = self._mover.open(key, held, migration=migration, writable=True)
        self._mover.export(session, {disk.key: () for disk in held}, writable=True)
        return WriterSession(key=key, disks=tuple(self._point(session, disk.key) for disk in held))

    def _point(self, session: Session, key: str) -> DiskPoint:
        endpoint = self._reach.endpoint(session.address, key, writable=True)
        return DiskPoint(key=key, size_bytes=session.nodes[key].size_bytes, endpoint=endpoint)

    @staticmethod
    def _pool(conn: Any, name: str) -> Any:
        """An active pool by its name. Raises NotFound."""
        try:
            pool = conn.storagePoolLookupByName(name)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_STORAGE_POOL:
                raise NotFound(f"there is no storage pool {name}", pool=name, cause=error) from error
            raise
        if not pool.isActive():
            raise NotFound(f"storage pool {name} is not active", action="start the pool", pool=name)
        return pool

    @staticmethod
    def _find(pool: Any, name: str) -> Any | None:
        """The volume, looked for anew when libvirt's last look at the pool did not see it."""
        for again in (True, False):
            try:
                return pool.storageVolLookupByName(name)
            except libvirt.libvirtError as error:
                if error.get_error_code() != libvirt.VIR_ERR_NO_STORAGE_VOL:
                    raise
            if again:
                pool.refresh()
        return None


def volume_xml(spec: VolumeSpec) -> str:
    """XML of an empty thin volume; ``<compat>`` is given because libvirt makes qcow2 version 2 without it."""
    volume = ET.Element("volume")
    ET.SubElement(volume, "name").text = spec.name
    ET.SubElement(volume, "capacity", {"unit": "bytes"}).text = str(spec.size_bytes)
    ET.SubElement(volume, "allocation", {"unit": "bytes"}).text = "0"
    target = ET.SubElement(volume, "target")
    ET.SubElement(target, "format", {"type": QEMU_FORMATS[spec.format]})
    if spec.format in {"qcow2", "qcow2-v2"}:
        ET.SubElement(target, "compat").text = "0.10" if spec.format == "qcow2-v2" else "1.1"
    return ET.tostring(volume, encoding="unicode")
