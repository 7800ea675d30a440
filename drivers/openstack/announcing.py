"""Announcing a VM and withdrawing it: ports reserved, volumes marked, the plan on the first volume."""

from __future__ import annotations

import json
from typing import Any

from drivers.openstack import flavors, groups, inventory, marks, vms
from drivers.openstack.connection import Connection
from drivers.openstack.inventory import AnnouncedDisk, AnnouncedVm, Inventory
from drivers.openstack.networks import OpenStackNetworks
from whimbrel.errors import Conflict, InvalidPlan, NotFound, Unsupported
from whimbrel.model.vm import TargetVm

VM = "whimbrel_vm"
"""On each volume of an announced VM: its ref."""


class Announcements:
    """VMs that are to be made when they are started."""

    def __init__(self, connection: Connection, networks: OpenStackNetworks) -> None:
        self._connection = connection
        self._networks = networks

    def announce(self, vm: TargetVm) -> str:
        """Its ref; found if it was announced before. Raises Conflict, NotFound, InvalidPlan, QuotaExceeded (ports)."""
        if not vm.disks:
            raise InvalidPlan(f"{vm.name} has no disk to boot from")
        if any(disk.served is not None for disk in vm.disks):
            raise Unsupported(f"{vm.name}: Nova cannot run a server on a disk that is served over NBD")
        seen = inventory.read(self._connection)
        ref = vm.disks[0].volume.location
        self._check(seen, vm, ref)
        written = _written(vm)
        flavor = flavors.wanted(seen.flavors.values(), vm.source, vm.size)
        group = groups.find(self._connection, vm.group) if vm.group is not None else None
        ports = []
        for nic in vm.nics:
            address = nic.addresses[0] if nic.addresses else None
            ports.append((nic.key, self._networks.ensure_port(nic.network, nic.mac, address, migration=vm.migration)))
        plan = AnnouncedVm(
            ref=ref,
            name=vm.name,
            migration=vm.migration,
            flavor=flavor.id,
            ports=tuple(ports),
            disks=tuple(
                AnnouncedDisk(key=disk.spec.key, volume=disk.volume.location, bus=disk.spec.bus) for disk in vm.disks
            ),
            metadata=written.get("metadata", {}),
            availability_zone=vm.zone,
            group=group.id if group is not None else None,
        )
        if seen.announced.get(ref) == plan:
            return ref
        with self._connection.using(f"announcing {vm.name}") as conn:
            self._set_traits(conn, ref, vm)
            for disk in plan.disks:
                conn.block_storage.set_volume_metadata(disk.volume, **{VM: ref})
            self._write(conn, plan)  # last: with it the VM is there
        return ref

    def hand_over(self, plan: AnnouncedVm) -> None:
        """Leave it announced, as nobody's."""
        with self._connection.using(f"handing {plan.name} over") as conn:
            self._write(conn, plan.model_copy(update={"migration": None}))

    def forget(self, seen: Inventory, ref: str) -> None:
        """Remove the marks, also the rest of those that an attempt which died has left; the volumes stay as they are.

        One call removes one mark, so nothing here asks for a whole plan.
        """
        marked = [volume for volume in seen.volumes.values() if (volume.metadata or {}).get(VM) == ref]
        own = seen.volumes.get(ref)
        with self._connection.using(f"removing what announced VM {ref}") as conn:
            for volume in [other for other in marked if other.id != ref] + ([own] if own is not None else []):
                # the plan's own volume comes last
                gone = [key for key in volume.metadata or {} if key == VM or key.startswith(marks.PLAN)]
                if gone:
                    conn.block_storage.delete_volume_metadata(volume.id, keys=gone)

    def _check(self, seen: Inventory, vm: TargetVm, ref: str) -> None:
        for other in seen.refs():
            _, server, plan = seen.find(other)
            name = server.name if server is not None else plan.name if plan is not None else ""
            mine = vms.owner(server, plan) == vm.migration
            if other == ref and not mine:
                raise Conflict(f"the volumes of {vm.name} belong to VM {name}", vm=other)
            if name == vm.name and other != ref:
                raise Conflict(f"there is a VM {name} that migration {vm.migration} did not make", vm=other)
        for disk in vm.disks:
            if disk.volume.location not in seen.volumes:
                raise NotFound(f"there is no volume {disk.volume.name}", volume=disk.volume.location)
        for mac, name in self._networks.mac_owners([nic.mac for nic in vm.nics]).items():
            port = next((port for port in seen.ports if port.mac_address.lower() == mac), None)
            if port is None or marks.migration_of(port.name) != vm.migration:
                raise Conflict(f"MAC {mac} of {vm.name} is in use by {name}", action="remove what has it, or change it")

    @staticmethod
    def _set_traits(conn: Any, boot_volume: str, vm: TargetVm) -> None:
        """What Nova takes from the image that a volume was made of: firmware, machine, buses."""
        traits = {"hw_disk_bus": vm.disks[0].spec.bus}
        if vm.nics:
            traits["hw_vif_model"] = vm.nics[0].model
        if vm.source.firmware != "bios":
            traits["hw_firmware_type"] = "uefi"
        if vm.source.firmware == "uefi-secure":
            traits["os_secure_boot"] = "required"
        written = _written(vm).get("image", {})
        conn.block_storage.set_volume_image_metadata(boot_volume, **{**written, **traits})
        conn.block_storage.set_volume_bootable_status(boot_volume, True)

    @staticmethod
    def _write(conn: Any, plan: AnnouncedVm) -> None:
        volume = conn.block_storage.get_volume(plan.ref)
        wanted = marks.pieces(marks.PLAN, plan.model_dump_json())
        conn.block_storage.set_volume_metadata(plan.ref, **wanted)
        spare = [key for key in volume.metadata or {} if key.startswith(marks.PLAN) and key not in wanted]
        if spare:
            conn.block_storage.delete_volume_metadata(plan.ref, keys=spare)


def _written(vm: TargetVm) -> dict[str, Any]:
    """What the source's own definition says, where it was a VM of this kind."""
    if vm.source.definition_kind != vms.KIND or not vm.source.definition:
        return {}
    return dict(json.loads(vm.source.definition))
