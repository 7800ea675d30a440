"""VMs on disks that another process serves: ``whimbrel.ports.serving.ServingPort``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import libvirt

from drivers.libvirt import domain_xml, domains, served_xml, tag
from drivers.libvirt.connection import Connection
from drivers.libvirt.mover import Mover
from drivers.libvirt.overlays import Merger
from drivers.libvirt.reach import Reach
from drivers.libvirt.switching import Switch
from whimbrel.errors import Conflict, NotFound, Unsupported
from whimbrel.exclusion import alone
from whimbrel.model.vm import TargetDisk, VolumeRef


class LibvirtServing:
    """``ServingPort`` over one connection."""

    def __init__(self, connection: Connection, mover: Mover, reach: Reach) -> None:
        self._connection = connection
        self._merger = Merger(connection, mover, reach)
        self.at: Callable[[str], None] = lambda _stage: None
        """Called at each boundary of ``switch_disks``; tests kill the caller there."""

    def local_path(self, volume: VolumeRef) -> str:
        """The volume's file. Raises Unsupported, NotFound."""
        if volume.format != "raw" or volume.location.startswith("/dev/"):
            raise Unsupported(
                f"volume {volume.name} is no raw file", action="choose raw target volumes in a directory pool"
            )
        with self._connection.using(f"looking for volume {volume.name}", volume=volume.name) as conn:
            try:
                pool = conn.storagePoolLookupByName(volume.pool)
                pool.refresh()
                return str(pool.storageVolLookupByName(volume.name).path())
            except libvirt.libvirtError as error:
                if error.get_error_code() in {libvirt.VIR_ERR_NO_STORAGE_POOL, libvirt.VIR_ERR_NO_STORAGE_VOL}:
                    raise NotFound(f"there is no volume {volume.name} in pool {volume.pool}") from error
                raise

    def client(self) -> tuple[int, int] | None:
        """QEMU's user and group, by the host's capabilities (``user`` and ``group`` of qemu.conf).

        https://libvirt.org/formatcaps.html (secmodel, baselabel)
        """
        with self._connection.using("reading who runs QEMU") as conn:
            return served_xml.qemu_user(conn.getCapabilities())

    def switch_disks(self, ref: str, disks: Sequence[TargetDisk], *, migration: str) -> None:
        """See the port and ``drivers.libvirt.switching``. Raises NotFound, Conflict, NotReady."""
        with (
            alone(self._connection.uri, "points", ref),
            self._connection.using(f"switching disks of {ref}", vm=ref) as conn,
        ):
            domain = domains.get(conn, ref)
            definition = domain_xml.parse(domains.definition(domain))
            owner = tag.migration_of(definition, "vm")
            if owner != migration:
                raise Conflict(f"VM {domain.name()} was not made by this migration", owner=owner or "nobody")
            known = served_xml.disk_states(definition)
            for disk in disks:
                if disk.spec.key not in known:
                    raise NotFound(f"{domain.name()} has no disk {disk.spec.key}", vm=ref, disk=disk.spec.key)
            for disk in disks:
                Switch(conn, domain, disk, migration=migration, merger=self._merger, at=self.at).run()

    def stalled(self, ref: str) -> bool:
        """Whether QEMU has paused the VM on an I/O error while a disk is on an export. Raises NotFound."""
        with self._connection.using(f"reading why {ref} is paused", vm=ref) as conn:
            domain = domains.get(conn, ref)
            state, reason = domain.state()
            if (state, reason) != (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR):
                return False
            return bool(served_xml.served_keys(domain_xml.parse(domain.XMLDesc())))

    def served_disks(self, ref: str) -> Sequence[str]:
        """Keys of disks that are on an export, live or in the persistent definition. Raises NotFound."""
        with self._connection.using(f"reading the disks of {ref}", vm=ref) as conn:
            domain = domains.get(conn, ref)
            live = served_xml.served_keys(domain_xml.parse(domain.XMLDesc()))
            return sorted(live | served_xml.served_keys(domain_xml.parse(domains.definition(domain))))
