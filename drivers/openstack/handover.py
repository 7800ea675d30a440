"""Handing RBD images from one OpenStack cloud to another over one pool: ``whimbrel.ports.handover.HandoverPort``.

Cinder and Nova open an image by its name, ``volume-<id>``. So a release renames it: whoever starts the server after
that finds nothing. The records in the source, server and volumes, stay as they are until the migration is confirmed;
they keep ids, quotas, ports and addresses, and giving the image its name back gives everything back. The target's
Cinder manages the renamed image as a volume of its own (ADR 0014).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from drivers.openstack import held, inventory, vms
from drivers.openstack.backing import Backing, SharedImage, image_name, volume_named
from drivers.openstack.connection import Connection, settled
from drivers.openstack.held import Deposit, Taken
from drivers.openstack.inventory import AnnouncedVm, Inventory
from drivers.openstack.locking import Locks
from drivers.openstack.managing import Adopted, Managing, adopted
from drivers.openstack.networks import OpenStackNetworks
from drivers.openstack.stored import SourceDisk, Stored, adopted_of
from whimbrel.errors import Conflict, NotFound, NotReady
from whimbrel.exclusion import alone
from whimbrel.model.handover import Hold, StoredDisk
from whimbrel.model.vm import Power, TargetDisk, VmSpec


class OpenStackHandover:
    """``HandoverPort`` over one connection, and an administrator's where there is one.

    A pool is a volume type, a handle is an image's lasting id.
    """

    def __init__(self, connection: Connection, backing: Backing, admin: Connection | None = None) -> None:
        self._connection = connection
        self._backing = backing
        self._stored = Stored(connection, backing)
        self._managing = Managing(connection, admin)
        self._locks = Locks(admin or connection)

    # --- one storage

    def write_marker(self, pool: str, name: str, text: str) -> None:
        """A tiny image with the text in its metadata. Raises NotFound (pool)."""
        self._backing.images.shared.write_note(self._backing.pool(pool), name, text)

    def read_marker(self, pool: str, name: str) -> str | None:
        """The text, if the worker finds the image, and Cinder too: what it does not see it cannot manage.

        Raises NotFound (pool), PermissionDenied (this account may not manage volumes).
        """
        text = self._backing.images.shared.read_note(self._backing.pool(pool), name)
        if text is None or not self._managing.sees(pool, name):
            return None
        return text

    def remove_marker(self, pool: str, name: str) -> None:
        """Remove the image; it may be gone, and its pool too."""
        with suppress(NotFound):
            self._backing.images.shared.remove_note(self._backing.pool(pool), name)

    # --- looking

    def stored(self, vm: VmSpec) -> Sequence[StoredDisk]:
        """Images of the VM's volumes. Raises NotFound; Conflict, Unsupported for disks that cannot change hands."""
        seen = inventory.read(self._connection)
        disks = self._stored.disks(seen, vm.ref)
        self._stored.check_free(vm, [disk for disk in disks if disk.mark is None])
        return self._stored.stored(seen, vm.ref, disks)

    def look(self, disks: Sequence[StoredDisk], pools: Mapping[str, str]) -> Sequence[TargetDisk]:
        """The images in the mapped pools. Raises NotFound, Conflict."""
        seen = inventory.read(self._connection)
        self._managing.check_room([disk.image.size_bytes for disk in disks])
        return [self._stored.look(seen, disk, pools) for disk in disks]

    def openers(
        self, disks: Sequence[StoredDisk], pools: Mapping[str, str], *, migration: str, locks: bool = True
    ) -> Sequence[str]:
        """Servers that are on, sessions; where there is none, clients of Ceph that watch an image."""
        return self._stored.openers(disks, pools, locks=locks)

    def users(self, disks: Sequence[StoredDisk], pools: Mapping[str, str]) -> Sequence[str]:
        """VMs, and volumes without a VM, to whose names an image listens."""
        return self._stored.users(disks, pools)

    # --- the source's part

    def held(self, ref: str) -> Hold | None:
        """By the marks of all its volumes, none of which may lead to an image. Raises NotFound."""
        seen = inventory.read(self._connection)
        found = self._marked(seen, ref)
        if not found:
            seen.find(ref)
            return None
        holds = {Hold(migration=mark.migration, turn=mark.turn) for _, mark in found}
        _, server, plan = self._find(seen, ref)
        whole = {volume.id for _, volume in seen.disks_of(server, plan)} <= {volume.id for volume, _ in found}
        if len(holds) != 1 or not whole or self._named(found):
            return None
        return holds.pop()

    def release(self, vm: VmSpec, *, migration: str, turn: int) -> Sequence[StoredDisk]:
        """Mark volumes and images, then take the images' names. Raises Conflict, NotFound, Unsupported."""
        with alone("openstack", self._connection.cloud, "handover", vm.ref):
            seen = inventory.read(self._connection)
            _, server, _ = seen.find(vm.ref)
            disks = self._stored.disks(seen, vm.ref)
            self._refuse_if_taken(vm, [disk.mark for disk in disks], migration, turn)
            self._refuse_unless_off(vm, server)
            self._stored.check_free(vm, [disk for disk in disks if disk.mark is None])
            for disk in disks:
                self._take(
                    vm, disk, Taken(migration=migration, turn=turn, image=disk.image.id, vm=vm.ref, disk=disk.key)
                )
            self._unless_started_meanwhile(vm, disks)
            if self.held(vm.ref) != Hold(migration=migration, turn=turn):
                raise NotReady(f"{vm.name} still has its disks after they were taken", vm=vm.ref)
            return self._stored.stored(seen, vm.ref, self._stored.disks(seen, vm.ref))

    def _take(self, vm: VmSpec, disk: SourceDisk, mark: Taken) -> None:
        """The record's mark, the image's mark, the image's name: in this order, so that it is found at any moment."""
        shared = self._backing.images.shared
        if held.taken(disk.volume) != mark:
            with self._connection.using(f"marking volume {disk.volume.name or disk.volume.id} as taken") as conn:
                conn.block_storage.set_volume_metadata(disk.volume.id, **held.as_metadata(mark))
            disk.volume.metadata = {**(disk.volume.metadata or {}), **held.as_metadata(mark)}
        kept = held.deposit(disk.image)
        if kept is None or (kept.migration, kept.turn, kept.volume) != (mark.migration, mark.turn, disk.volume.id):
            new = held.describe(disk.volume, mark, vm.name)
            shared.mark(disk.pool, disk.image.id, held.DEPOSIT, new.model_dump_json())
        own, away = image_name(disk.volume.id), held.held_name(disk.volume.id, mark.turn)
        if disk.image.name != own and not held.is_away(disk.image.name, disk.volume.id):
            raise Conflict(
                f"image of disk {disk.key} of {vm.name} is {disk.pool}/{disk.image.name}: another cloud has it",
                action="roll the migration back that has it there",
            )
        shared.rename(disk.pool, disk.image.id, away, never=[own])

    @staticmethod
    def _refuse_if_taken(vm: VmSpec, marks: Sequence[Taken | None], migration: str, turn: int) -> None:
        for mark in marks:
            if mark is not None and (mark.migration != migration or mark.turn > turn):
                raise Conflict(
                    f"the disks of {vm.name} were taken by migration {mark.migration}, turn {mark.turn}",
                    owner=mark.migration,
                )

    @staticmethod
    def _refuse_unless_off(vm: VmSpec, server: Any | None) -> None:
        if vms.power_of(server) is not Power.OFF:
            raise Conflict(f"{vm.name} is on: its disks cannot be taken", action="stop it, or keep it where it is")

    def _unless_started_meanwhile(self, vm: VmSpec, disks: Sequence[SourceDisk]) -> None:
        """Nova notes a start before it begins: one that could have opened an image under its name is seen now."""
        _, server, _ = inventory.read(self._connection).find(vm.ref)
        if vms.power_of(server) is Power.OFF:
            return
        for disk in disks:
            self._give_back(disk.pool, disk.volume, disk.image.id)
        raise Conflict(f"{vm.name} was started at the last moment: it keeps its disks")

    def reclaim(self, vm: VmSpec, *, migration: str, turn: int) -> VmSpec:
        """Give the images their names back. Raises Conflict, NotFound."""
        with alone("openstack", self._connection.cloud, "handover", vm.ref):
            seen = inventory.read(self._connection)
            seen.find(vm.ref)
            disks = self._stored.disks(seen, vm.ref)
            self._refuse_if_taken(vm, [disk.mark for disk in disks], migration, turn)
            taken = [disk for disk in disks if disk.mark is not None]
            for disk in taken:
                own = image_name(disk.volume.id)
                if disk.image.name != own and not held.is_away(disk.image.name, disk.volume.id):
                    raise Conflict(
                        f"disk {disk.key} of {vm.name} is still a volume elsewhere, as {disk.pool}/{disk.image.name}",
                        action="let the other cloud unmanage it, then resume",
                    )
            for disk in taken:
                self._give_back(disk.pool, disk.volume, disk.image.id)
            return vms.spec(inventory.read(self._connection), vm.ref, self._backing)

    def _give_back(self, pool: str, volume: Any, image: str) -> None:
        shared = self._backing.images.shared
        shared.rename(pool, image, image_name(volume.id))
        shared.unmark(pool, image, held.DEPOSIT)
        with self._connection.using(f"removing the mark from volume {volume.name or volume.id}") as conn:
            now = conn.block_storage.get_volume(volume.id)
            if held.HELD in (now.metadata or {}):
                conn.block_storage.delete_volume_metadata(volume.id, keys=[held.HELD])

    def forget_vm(self, ref: str, *, migration: str) -> None:
        """Delete the server, then let Cinder forget its volumes, which have no image. Raises Conflict, NotReady."""
        with alone("openstack", self._connection.cloud, "handover", ref):
            seen = inventory.read(self._connection)
            marked = self._marked(seen, ref)
            try:
                ref, server, plan = seen.find(ref)
            except NotFound:
                if not marked:
                    return
                server, plan = None, None
            if not marked or any(mark.migration != migration for _, mark in marked) or self._named(marked):
                raise Conflict(f"VM {ref} was not released by this migration", vm=ref)
            if server is not None:
                self._locks.unlock(server, migration)  # only an administrator deletes a locked one
                self._delete(server)
            elif plan is not None:
                self._release_ports(plan)
            for volume, mark in marked:
                self._drop_deposit(volume, mark)
                self._managing.unmanage(volume.id)

    def _delete(self, server: Any) -> None:
        """Nova must not delete volumes with it, although there would be nothing behind them."""
        with self._connection.using(f"deleting server {server.name}") as conn:
            for attached in list(conn.compute.volume_attachments(server.id)):
                if attached.delete_on_termination:
                    conn.compute.update_volume_attachment(server.id, attached.volume_id, delete_on_termination=False)
            if server.task_state != "deleting":
                conn.compute.delete_server(server.id)
            settled(
                lambda: True if conn.compute.find_server(server.id, ignore_missing=True) is None else None,
                f"server {server.name} is being deleted",
            )

    def _release_ports(self, plan: AnnouncedVm) -> None:
        """A VM that was announced and never made has ports that no server takes with it."""
        with self._connection.using(f"removing the ports of {plan.name}") as conn:
            for _, port in plan.ports:
                conn.network.delete_port(port, ignore_missing=True)

    def _drop_deposit(self, volume: Any, mark: Taken) -> None:
        """What the image remembers of the volume goes, if it has not changed hands again."""
        pool = self._backing.pool(volume.volume_type)
        with suppress(NotFound):
            kept = held.deposit(self._backing.images.shared.get(pool, mark.image))
            if kept is not None and kept.volume == volume.id:
                self._backing.images.shared.unmark(pool, mark.image, held.DEPOSIT)

    def released(self, migration: str) -> Sequence[str]:
        """VMs of whose volumes one has the migration's mark."""
        seen = inventory.read(self._connection)
        refs = {
            mark.vm for volume in seen.volumes.values() if (mark := held.taken(volume)) and mark.migration == migration
        }
        names = []
        for ref in refs:
            _, server, plan = self._find(seen, ref)
            names.append(str(server.name if server is not None else plan.name if plan is not None else ref))
        return sorted(names)

    @staticmethod
    def _find(seen: Inventory, ref: str) -> tuple[str, Any | None, Any | None]:
        """As ``Inventory.find``; a VM that is gone has neither server nor plan."""
        try:
            return seen.find(ref)
        except NotFound:
            return ref, None, None

    @staticmethod
    def _marked(seen: Inventory, ref: str) -> list[tuple[Any, Taken]]:
        found = [(volume, held.taken(volume)) for volume in seen.volumes.values()]
        return [(volume, mark) for volume, mark in found if mark is not None and mark.vm == ref]

    def _named(self, marked: Sequence[tuple[Any, Taken]]) -> list[str]:
        """Images that are found by the names of these volumes."""
        found: list[str] = []
        for volume, _ in marked:
            pool, name = self._backing.image(volume)
            found += self._backing.images.shared.ids(pool, [name])
        return found

    # --- the target's part

    def adopt(self, disks: Sequence[StoredDisk], pools: Mapping[str, str], *, migration: str) -> Sequence[TargetDisk]:
        """Let Cinder manage the images that are released to this migration. Raises NotFound, Conflict, NotReady,
        PermissionDenied, QuotaExceeded.
        """
        with alone("openstack", self._connection.cloud, "adopt", migration):
            seen = inventory.read(self._connection)
            found = [(disk, *image) for disk, image in zip(disks, self._stored.images(disks, pools), strict=True)]
            deposits = [self._released(disk, image, migration) for disk, _, image in found]
            asked = [
                self._ask(seen, disk, pools, image, kept)
                for (disk, _, image), kept in zip(found, deposits, strict=True)
            ]
            for volume, kept in zip(asked, deposits, strict=True):
                self._finish(volume, kept)
            seen = inventory.read(self._connection)
            for (disk, pool, image), volume in zip(found, asked, strict=True):
                now = self._backing.images.shared.get(pool, image.id)
                if now.name != image_name(volume):
                    raise Conflict(
                        f"disk {disk.spec.key} is {pool}/{now.name}, and not the image of volume {volume}",
                        action="set volume_name_template of this Cinder to volume-%s",
                    )
            return [self._stored.look(seen, disk, pools) for disk in disks]

    def _released(self, disk: StoredDisk, image: SharedImage, migration: str) -> Deposit:
        """What the image was. Raises Conflict when it is another one, or not released to this migration."""
        if image.identity != disk.image.identity:
            raise Conflict(
                f"image {image.name} is not the one that was released", found=image.identity, wanted=disk.image.identity
            )
        kept = held.deposit(image)
        if kept is None or kept.migration != migration:
            raise Conflict(
                f"image {image.name} of disk {disk.spec.key} is not released to this migration",
                owner=kept.migration if kept is not None else "",
            )
        return kept

    def _ask(
        self, seen: Inventory, disk: StoredDisk, pools: Mapping[str, str], image: SharedImage, kept: Deposit
    ) -> str:
        """The volume of the image, asked for if there is none. Raises Conflict."""
        mine = self._adopted_of(seen, image.id)
        named = volume_named(image.name)
        for volume in mine:
            if volume.id == named or (volume.status == "managing" and image.name == kept.held_name):
                self._remove_others([other for other in mine if other.id != volume.id])
                return str(volume.id)
        self._remove_others(mine)
        if image.name != kept.held_name:
            raise Conflict(
                f"disk {disk.spec.key} is image {image.name}, which another volume has",
                action="see which cloud manages that volume, and roll its migration back",
            )
        kind = pools.get(disk.image.pool or "", disk.image.pool or "")
        mark = Adopted(migration=kept.migration, image=image.id)
        return self._managing.manage(
            kind, image.name, mark, name=kept.name, description=kept.description, bootable=kept.bootable
        )

    def _adopted_of(self, seen: Inventory, image: str) -> list[Any]:
        """In the tenant's project, and on the way to it."""
        known = adopted_of(seen.volumes.values(), image)
        ids = {volume.id for volume in known}
        return known + [volume for volume in adopted_of(self._managing.on_their_way(), image) if volume.id not in ids]

    def _remove_others(self, volumes: Sequence[Any]) -> None:
        """Records of attempts that failed, to which no image belongs."""
        for volume in volumes:
            self._managing.unmanage(volume.id)

    def _finish(self, volume: str, kept: Deposit) -> None:
        now = self._managing.managed(volume)
        with self._connection.using(f"describing volume {now.name or volume}") as conn:
            if any((now.metadata or {}).get(key) != text for key, text in kept.metadata.items()):
                conn.block_storage.set_volume_metadata(volume, **kept.metadata)
            image_metadata = now.volume_image_metadata or {}
            if any(image_metadata.get(key) != text for key, text in kept.image_metadata.items()):
                conn.block_storage.set_volume_image_metadata(volume, **kept.image_metadata)

    def abandon(self, disks: Sequence[StoredDisk], pools: Mapping[str, str], *, migration: str) -> None:
        """Take the images' names away again, then let Cinder forget the volumes. Raises Conflict, NotReady."""
        with alone("openstack", self._connection.cloud, "adopt", migration):
            seen = inventory.read(self._connection)
            for disk in disks:
                with suppress(NotFound):
                    (found,) = self._stored.images([disk], pools)
                    self._abandon(seen, *found, migration)
            # those of an attempt to announce the VM that died before it was there to be found
            OpenStackNetworks(self._connection).drop_loose(seen.ports, migration)

    def _abandon(self, seen: Inventory, pool: str, image: SharedImage, migration: str) -> None:
        """The name comes first: a request to manage that waits in a queue somewhere finds nothing after that."""
        mine = [
            volume
            for volume in self._adopted_of(seen, image.id)
            if (mark := adopted(volume)) is not None and mark.migration == migration
        ]
        self._refuse_unless_free(mine, image)
        kept = held.deposit(image)
        if kept is not None and kept.migration == migration:
            names = {kept.held_name, *(image_name(volume.id) for volume in mine)}
            if image.name in names:
                self._backing.images.shared.rename(pool, image.id, kept.back_name, never=sorted(names))
        for volume in mine:
            self._managing.unmanage(volume.id, patient=False)

    @staticmethod
    def _refuse_unless_free(volumes: Sequence[Any], image: SharedImage) -> None:
        for volume in volumes:
            name = volume.name or volume.id
            if volume.status in {"attaching", "detaching"}:
                raise NotReady(f"volume {name} is {volume.status}", volume=volume.id)
            if volume.attachments or volume.status in {"in-use", "reserved"}:
                raise Conflict(f"volume {name} is in use: it cannot be let go", action="take it from its server")
            if image.snapshots and volume.id == volume_named(image.name):
                raise Conflict(
                    f"volume {name} has snapshots: Cinder does not let it go",
                    action="delete its snapshots in the target cloud, then resume",
                )
