"""Handing images in storage pools from one libvirt host to another: ``whimbrel.ports.handover.HandoverPort``.

Storage that the one shares with the other: directories and network file systems (pool types dir, fs, netfs), and
whatever else libvirt shows as volumes with a path. A handle is a volume's name in its pool.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import libvirt

from drivers.libvirt import domain_xml, domains, held, images, tag
from drivers.libvirt.compute import UNDEFINE_ALL
from drivers.libvirt.connection import Connection
from drivers.libvirt.image_lock import is_open_somewhere
from drivers.libvirt.images import ImageFacts
from drivers.libvirt.mover import Mover
from drivers.libvirt.points_stream import only_streams
from drivers.libvirt.reach import Reach
from drivers.libvirt.session_xml import SessionDisk
from drivers.libvirt.stored import identity, open_images, resolved, stored_disk, volume_of, when_idle
from drivers.libvirt.volumes import QEMU_FORMATS
from whimbrel.errors import Conflict, NotFound, NotReady, Unsupported
from whimbrel.exclusion import alone
from whimbrel.model.handover import Hold, StoredDisk
from whimbrel.model.vm import TargetDisk, VmSpec, VolumeRef

MARKER_BYTES = 4096
WITH_SECRETS = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE
"""What is defined anew must be the whole definition, or a graphics password would be lost."""


class LibvirtHandover:
    """``HandoverPort`` over one connection.

    ``local_locks``: whether images are files that this process sees itself, so that their locks are simply looked at;
    otherwise a QEMU of the host tries to open them. None: known by the connection.
    """

    def __init__(self, connection: Connection, mover: Mover, reach: Reach, *, local_locks: bool | None = None) -> None:
        self._connection = connection
        self._mover = mover
        self._reach = reach
        self._local = connection.host is None if local_locks is None else local_locks

    # --- one storage

    def write_marker(self, pool: str, name: str, text: str) -> None:
        """A small raw volume that holds the text."""
        data = text.encode().ljust(MARKER_BYTES, b"\0")
        with self._connection.using(f"writing the note {name}", pool=pool) as conn:
            holder = self._pool(conn, pool)
            volume = volume_of(holder, name)
            if volume is None:
                xml = (
                    f"<volume><name>{name}</name><capacity>{MARKER_BYTES}</capacity>"
                    f"<target><format type='raw'/></target></volume>"
                )
                volume = when_idle(lambda: holder.createXML(xml))
            stream = conn.newStream(0)
            volume.upload(stream, 0, MARKER_BYTES)
            stream.send(data)
            stream.finish()

    def read_marker(self, pool: str, name: str) -> str | None:
        """The text, looked for on the storage now."""
        with self._connection.using(f"reading the note {name}", pool=pool) as conn:
            volume = volume_of(self._pool(conn, pool), name)
            if volume is None:
                return None
            stream = conn.newStream(0)
            try:
                volume.download(stream, 0, MARKER_BYTES)
                data = bytes(stream.recv(MARKER_BYTES))
                stream.finish()
            except libvirt.libvirtError:
                if volume_of(self._pool(conn, pool), name, again=True) is not None:
                    raise
                return None  # what libvirt remembered of it is not there any more
            return data.rstrip(b"\0").decode(errors="replace")

    def remove_marker(self, pool: str, name: str) -> None:
        """Remove the volume; it may be gone, and its pool too."""
        with self._connection.using(f"removing the note {name}", pool=pool) as conn:
            try:
                holder = self._pool(conn, pool)
            except NotFound:
                return
            volume = volume_of(holder, name)
            if volume is not None:
                with suppress(libvirt.libvirtError):
                    when_idle(volume.delete)
                if volume_of(holder, name, again=True) is not None:
                    raise NotReady(f"the note {name} is still there after it was removed", pool=pool)

    # --- looking

    def stored(self, vm: VmSpec) -> Sequence[StoredDisk]:
        """Images of the VM's definition, or of the one that it had before its disks were taken."""
        with self._connection.using(f"looking for the disks of {vm.name}", vm=vm.ref) as conn:
            return self._stored(conn, domains.get(conn, vm.ref))

    @staticmethod
    def _stored(conn: Any, domain: Any) -> list[StoredDisk]:
        written = held.before(domain_xml.parse(domains.definition(domain)))
        # A running domain tells the sizes of its own images; those that were taken are asked of their pools.
        return [stored_disk(conn, spec) for spec in images.disk_specs(conn, domain, written, deep=False)]

    def look(self, disks: Sequence[StoredDisk], pools: Mapping[str, str]) -> Sequence[TargetDisk]:
        """The volumes of the mapped pools. Raises NotFound, Conflict."""
        with self._connection.using("looking for the disks of a handover") as conn:
            return [self._look(conn, disk, pools) for disk in disks]

    def _look(self, conn: Any, disk: StoredDisk, pools: Mapping[str, str]) -> TargetDisk:
        facts = resolved(conn, disk.image, pools)
        form = images.disk_format(facts.format, facts.compat)
        if (facts.capacity_bytes, form) != (disk.image.size_bytes, disk.image.format):
            raise Conflict(
                f"volume {facts.name} is another one here",
                found=f"{facts.capacity_bytes} {form}",
                wanted=f"{disk.image.size_bytes} {disk.image.format}",
            )
        below, _complete = images.chain_below(conn, facts, ())
        wanted = tuple(resolved(conn, image, pools).path for image in disk.chain)
        if below != wanted:
            raise Conflict(
                f"the chain below {facts.name} is another one here",
                action="backing images must have the same paths on both clouds, or relative ones",
                found=", ".join(below),
                wanted=", ".join(wanted),
            )
        return TargetDisk(
            spec=disk.spec,
            volume=VolumeRef(
                name=facts.name,
                pool=facts.pool,
                size_bytes=facts.capacity_bytes,
                format=form,
                location=facts.path,
            ),
        )

    def openers(
        self, disks: Sequence[StoredDisk], pools: Mapping[str, str], *, migration: str, locks: bool = True
    ) -> Sequence[str]:
        """Domains that are on (mover sessions too); where none is, the locks on the images."""
        if not disks:
            return []
        with self._connection.using("asking who has disks open") as conn:
            mine = [[resolved(conn, image, pools) for image in disk.images] for disk in disks]
            found = []
            for domain in conn.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
                with suppress(libvirt.libvirtError):
                    if open_images(conn, domain, mine):
                        found.append(self._named(domain))
            tops = [chain[0] for chain in mine]
        if found or not locks:
            return sorted(found)
        if self._local and all(Path(top.path).exists() for top in tops):
            locked = [top.name for top in tops if is_open_somewhere(top.path)]
            return [f"a process outside of this cloud, which has {name} locked" for name in locked]
        return self._try_to_open(disks, [top.path for top in tops], migration=migration)

    def _try_to_open(self, disks: Sequence[StoredDisk], paths: Sequence[str], *, migration: str) -> list[str]:
        """Let a QEMU of this host open the images, only reading: its locks do not bear a writer beside it."""
        with self._connection.using("asking who has disks open") as conn:
            if only_streams(conn, self._reach):
                return []
        key = f"whimbrel-{migration}-look"
        images_ = [
            SessionDisk(disk.spec.key, path, QEMU_FORMATS.get(disk.image.format, "raw"))
            for disk, path in zip(disks, paths, strict=True)
        ]
        try:
            self._mover.open(key, images_, migration=migration, writable=False)
        except Conflict as error:
            return [f"somebody whom QEMU gives way to ({error.message})"]
        finally:
            self._mover.close(key)
        return []

    @staticmethod
    def _named(domain: Any) -> str:
        session = tag.is_session(domain_xml.parse(domain.XMLDesc()))
        return f"{'mover session' if session else 'VM'} {domain.name()}"

    def users(self, disks: Sequence[StoredDisk], pools: Mapping[str, str]) -> Sequence[str]:
        """VMs whose written or running definition has one of the images."""
        with self._connection.using("asking which VMs have disks") as conn:
            mine = [[resolved(conn, image, pools) for image in disk.images] for disk in disks]
            found = set()
            for domain, _xml in domains.all_vms(conn):
                with suppress(libvirt.libvirtError):
                    if open_images(conn, domain, mine) or open_images(conn, domain, mine, written=True):
                        found.add(str(domain.name()))
            return sorted(found)

    # --- the source's part

    def held(self, ref: str) -> Hold | None:
        """What the VM's metadata says, and that its disks really name nothing. Raises NotFound."""
        with self._connection.using(f"reading who has the disks of {ref}", vm=ref) as conn:
            return self._hold(domains.get(conn, ref))

    @staticmethod
    def _hold(domain: Any) -> Hold | None:
        written = domain_xml.parse(domains.definition(domain))
        hold = held.hold_of(written)
        return hold if hold is not None and held.is_taken(written) else None

    def release(self, vm: VmSpec, *, migration: str, turn: int) -> Sequence[StoredDisk]:
        """One write of the definition takes the disks; it is read back. Raises Conflict, NotFound, Unsupported."""
        with (
            alone(self._connection.uri, "handover", vm.ref),
            self._connection.using(f"taking the disks from {vm.name}", vm=vm.ref) as conn,
        ):
            domain = domains.get(conn, vm.ref)
            hold = self._hold(domain)
            if hold is not None and (hold.migration != migration or hold.turn > turn):
                raise Conflict(f"the disks of {vm.name} were taken by migration {hold.migration}", owner=hold.migration)
            self._refuse_unless_off(domain)
            disks = self._stored(conn, domain)
            outside = [disk.spec.key for disk in disks if any(image.pool is None for image in disk.images)]
            if outside:
                raise Unsupported(f"disk {outside[0]} of {vm.name} is not in a storage pool", vm=vm.ref)
            definition = domain_xml.parse(domain.XMLDesc(WITH_SECRETS))
            held.take(definition, migration=migration, turn=turn)
            domain = conn.defineXML(ET.tostring(definition, encoding="unicode"))
            self._unless_started_meanwhile(conn, domain)
            if self._hold(domain) != Hold(migration=migration, turn=turn):
                raise NotReady(f"{vm.name} still has its disks after they were taken", vm=vm.ref)
            return self._stored(conn, domain)

    @staticmethod
    def _refuse_unless_off(domain: Any) -> None:
        """Raises Conflict, Unsupported."""
        if domain.isActive():
            raise Conflict(
                f"{domain.name()} is on: its disks cannot be taken", action="stop it, or keep it where it is"
            )
        if not domain.isPersistent():
            raise Unsupported(f"{domain.name()} has no stored definition", action="define it before it is moved")
        if domain.hasManagedSaveImage():
            raise Conflict(
                f"{domain.name()} has a saved memory image, which would open its disks again",
                action="start it from its image, or remove the image (virsh managedsave-remove)",
            )

    @staticmethod
    def _unless_started_meanwhile(conn: Any, domain: Any) -> None:
        """A start that came in between has opened the disks: it keeps them."""
        if domain.isActive():
            definition = domain_xml.parse(domain.XMLDesc(WITH_SECRETS))
            held.give_back(definition)
            conn.defineXML(ET.tostring(definition, encoding="unicode"))
            raise Conflict(f"{domain.name()} was started at the last moment: it keeps its disks")

    def reclaim(self, vm: VmSpec, *, migration: str, turn: int) -> VmSpec:
        """One write of the definition gives the disks back. Raises Conflict, NotFound."""
        with (
            alone(self._connection.uri, "handover", vm.ref),
            self._connection.using(f"giving {vm.name} its disks back", vm=vm.ref) as conn,
        ):
            domain = domains.get(conn, vm.ref)
            definition = domain_xml.parse(domain.XMLDesc(WITH_SECRETS))
            hold = held.hold_of(definition)
            if hold is not None and (hold.migration != migration or hold.turn > turn):
                raise Conflict(
                    f"the disks of {vm.name} were taken by migration {hold.migration}, turn {hold.turn}",
                    owner=hold.migration,
                )
            if hold is None and not held.is_taken(definition):
                return domains.spec(conn, domain)
            held.give_back(definition, domain_xml.parse(vm.definition) if vm.definition else None)
            domain = conn.defineXML(ET.tostring(definition, encoding="unicode"))
            if held.is_taken(domain_xml.parse(domains.definition(domain))):
                raise NotReady(f"{vm.name} does not have its disks again", vm=vm.ref)
            return domains.spec(conn, domain)

    def forget_vm(self, ref: str, *, migration: str) -> None:
        """Undefine what is left of the VM; images stay. Raises Conflict."""
        with alone(self._connection.uri, "handover", ref), self._connection.using(f"forgetting {ref}", vm=ref) as conn:
            domain = domains.find(conn, ref)
            if domain is None:
                return
            hold = self._hold(domain)
            if hold is None or hold.migration != migration:
                raise Conflict(f"VM {domain.name()} was not released by this migration", vm=ref)
            try:
                domain.undefineFlags(UNDEFINE_ALL)
            except libvirt.libvirtError as error:
                if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                    raise
            if domains.find(conn, ref) is not None:
                raise NotReady(f"VM {ref} is still there after it was forgotten", vm=ref)

    def released(self, migration: str) -> Sequence[str]:
        """VMs whose metadata holds disks for the migration."""
        with self._connection.using("listing released VMs") as conn:
            found = []
            for domain in conn.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_PERSISTENT):
                with suppress(libvirt.libvirtError):
                    hold = self._hold(domain)
                    if hold is not None and hold.migration == migration:
                        found.append(str(domain.name()))
            return sorted(found)

    # --- the target's part

    def adopt(self, disks: Sequence[StoredDisk], pools: Mapping[str, str], *, migration: str) -> Sequence[TargetDisk]:
        """Look, compare identities, and refuse images that a VM here has already. Raises NotFound, Conflict."""
        with self._connection.using("adopting disks") as conn:
            for disk in disks:
                for image in disk.images:
                    facts = resolved(conn, image, pools)
                    if identity(facts) != image.identity:
                        raise Conflict(
                            f"volume {facts.name} is not the one that was released, or somebody has written it since",
                            found=identity(facts),
                            wanted=image.identity,
                        )
            mine = [[resolved(conn, image, pools) for image in disk.images] for disk in disks]
            for domain, _live, written in domains.all_defined(conn):
                if tag.migration_of(written, "vm") != migration and self._has(conn, domain, mine):
                    raise Conflict(f"VM {domain.name()} has one of the disks already", vm=domain.UUIDString())
            return [self._look(conn, disk, pools) for disk in disks]

    @staticmethod
    def _has(conn: Any, domain: Any, mine: Sequence[Sequence[ImageFacts]]) -> bool:
        """Whether the VM's written definition has one of the disks; not, if it has just been removed."""
        with suppress(libvirt.libvirtError):
            return open_images(conn, domain, mine, written=True)
        return False

    def abandon(self, disks: Sequence[StoredDisk], pools: Mapping[str, str], *, migration: str) -> None:
        """Nothing is left by an adoption here: a pool shows what its directory holds."""

    @staticmethod
    def _pool(conn: Any, name: str) -> Any:
        """An active pool. Raises NotFound."""
        try:
            pool = conn.storagePoolLookupByName(name)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_STORAGE_POOL:
                raise NotFound(f"there is no storage pool {name}", pool=name, cause=error) from error
            raise
        if not pool.isActive():
            raise NotFound(f"storage pool {name} is not active", action="start the pool", pool=name)
        return pool
