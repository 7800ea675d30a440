"""Servers: ``whimbrel.ports.compute.ComputePort`` over Nova.

Nova works after it has answered. A call here asks, looks for a few seconds whether it is done, and raises NotReady if
not: Temporal asks again, and the same call then finds what goes on already.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from drivers.openstack import held, inventory, locking, marks, vms
from drivers.openstack.announcing import Announcements
from drivers.openstack.backing import Backing
from drivers.openstack.connection import Connection, settled
from drivers.openstack.errors import server_fault
from drivers.openstack.fence import FENCED, Fence
from drivers.openstack.importing import LiveImages, importing
from drivers.openstack.inventory import AnnouncedVm, Inventory
from drivers.openstack.locking import Locks
from drivers.openstack.managing import ADOPTED
from drivers.openstack.networks import OpenStackNetworks
from drivers.openstack.servers import Servers
from drivers.openstack.volumes import WRITER
from whimbrel.errors import Conflict, NotFound, PermissionDenied, Unsupported
from whimbrel.model.vm import Power, TargetVm, VmSpec

FLAVOR_MICROVERSION = "2.47"
LOOK_AT_START_S = 0.6
"""Each look costs the cloud more than it is worth: after it runs, the guest still has to boot."""


class OpenStackCompute:
    """``ComputePort`` over one connection."""

    def __init__(
        self,
        connection: Connection,
        backing: Backing,
        networks: OpenStackNetworks,
        servers: Servers,
        *,
        admin: Connection | None = None,
        live: LiveImages | None = None,
    ) -> None:
        self._connection = connection
        self._backing = backing
        self._live = live
        self._networks = networks
        self._announcements = Announcements(connection, networks)
        self._locks = Locks(admin or connection)
        self._servers = servers
        self._fence = Fence(connection, admin)

    def inventory(self) -> Sequence[VmSpec]:
        """All VMs of the project."""
        seen = inventory.read(self._connection)
        sizes = self._backing.sizes(list(seen.volumes.values()))
        return [vms.spec(seen, ref, self._backing, sizes) for ref in seen.refs()]

    def inspect(self, vm: str) -> VmSpec:
        """One VM. Raises NotFound, Conflict."""
        return vms.spec(inventory.read(self._connection), vm, self._backing)

    def power(self, ref: str) -> Power:
        """The power state now. Raises NotFound."""
        return vms.power_of(self._server(ref))

    def start(self, ref: str, *, paused: bool = False) -> None:
        """Power on; a VM that is announced only is made. Raises Conflict while a disk is written, NotReady."""
        if paused:
            raise Unsupported("Nova cannot start a server with its processors stopped")
        seen = inventory.read(self._connection)
        ref, server, plan = seen.find(ref)
        if vms.power_of(server) in {Power.RUNNING, Power.PAUSED}:
            self._fence.shut(server)
            return
        self._check_free(seen, server, plan)
        if server is None:
            assert plan is not None
            self._check_usable(seen, server, plan)
            self._create(plan, seen)
        elif server.vm_state == "stopped" and not server.task_state:
            self._check_usable(seen, server, plan)
            with self._fence.passed(server), self._connection.using(f"starting {server.name}") as conn:
                conn.compute.start_server(server.id)
        self._fence.shut(self._wait(ref, {Power.RUNNING}, "starts", every_s=LOOK_AT_START_S))

    def resume(self, ref: str) -> None:
        """Let a paused server run. Raises Conflict when it is off, NotReady."""
        server = self._server(ref)
        power = vms.power_of(server)
        if power is Power.RUNNING:
            return
        if server is None or power not in {Power.PAUSED, Power.SUSPENDED}:
            raise Conflict(f"VM {ref} is {power}, so it cannot be resumed", vm=ref)
        with self._fence.passed(server), self._connection.using(f"resuming {server.name}") as conn:
            if power is Power.PAUSED:
                conn.compute.unpause_server(server.id)
            else:
                conn.compute.resume_server(server.id)
        self._wait(ref, {Power.RUNNING}, "resumes")

    def request_stop(self, ref: str) -> None:
        """Ask for a stop. Nova asks the guest, and takes the power away after its ``shutdown_timeout``."""
        known = self._servers.just_seen(ref)
        if known is not None:  # the outage begins: what Nova takes at once needs no further look
            with suppress(Conflict, NotFound, PermissionDenied), self._connection.using(f"stopping {ref}") as conn:
                conn.compute.stop_server(known)
                return
        server = self._server(ref)
        if server is None or vms.power_of(server) in {Power.OFF, Power.CRASHED} or server.task_state == "powering-off":
            return
        # only an administrator stops a locked one
        fenced = locking.owner(server) if FENCED not in server.metadata else None
        if fenced is not None:
            self._locks.unlock(server, fenced)
        with self._fence.passed(server), self._connection.using(f"stopping {server.name}") as conn:
            conn.compute.stop_server(server.id)
        if fenced is not None:
            self.fence(ref, migration=fenced)

    def force_off(self, ref: str) -> None:
        """The same, waited for: Nova's API has no harder way. A paused server is let go first. Raises NotReady."""
        server = self._server(ref)
        if vms.power_of(server) is Power.PAUSED:
            self.resume(ref)
        self.request_stop(ref)
        self._wait(ref, {Power.OFF, Power.CRASHED}, "stops")

    def ensure_vm(self, vm: TargetVm) -> VmSpec:
        """Announce the VM; its server is made when it is started. Raises Conflict, NotFound, InvalidPlan."""
        return self.inspect(self._announcements.announce(vm))

    def ensure_absent(self, ref: str, *, migration: str) -> None:
        """Delete the server with its ports and what announced it; volumes stay. Raises Conflict, NotReady.

        Ports that were reserved for a VM which was never announced go too.
        """
        seen = inventory.read(self._connection)
        try:
            ref, server, plan = seen.find(ref)
        except NotFound:
            self._networks.drop_loose(seen.ports, migration)
            return
        if vms.owner(server, plan) != migration:
            name = server.name if server is not None else ref
            raise Conflict(f"VM {name} was not made by migration {migration}", vm=ref)
        mine = {port.id: port for _, port in seen.ports_of(server, plan)}
        if server is not None:
            self._fence.lift(server)
            self._locks.unlock(server, migration)  # only an administrator deletes a locked one
            with self._connection.using(f"deleting server {server.name}") as conn:
                if server.task_state != "deleting":
                    conn.compute.delete_server(server.id)
                settled(
                    lambda: True if conn.compute.find_server(server.id, ignore_missing=True) is None else None,
                    f"server {server.name} is being deleted",
                )
        for port in mine.values():
            if marks.migration_of(port.name) == migration:
                self._networks.ensure_port_absent(port.id, migration=migration)
        self._networks.drop_loose([port for port in seen.ports if port.id not in mine], migration)
        self._announcements.forget(seen, ref)

    def release_tag(self, ref: str, *, migration: str) -> None:
        """Hand the VM over. Raises NotFound."""
        seen = inventory.read(self._connection)
        ref, server, plan = seen.find(ref)
        if vms.owner(server, plan) != migration:
            return
        self._keep_adopted(seen, server, plan)
        if server is None:
            assert plan is not None
            self._announcements.hand_over(plan)
            return
        self._announcements.forget(seen, ref)
        with self._connection.using(f"handing {server.name} over") as conn:
            conn.compute.delete_server_metadata(server.id, keys=[marks.MIGRATION])

    def set_autostart(self, ref: str, *, enabled: bool) -> None:
        """Nothing to set: a compute host that comes up starts exactly those servers that were not stopped."""
        self._server(ref)

    def fence(self, ref: str, *, migration: str) -> None:
        """Lock the server; a VM that is announced only has none that could be started. Raises NotFound."""
        server = self._server(ref)
        if server is not None:
            self._locks.lock(server, migration)

    def unfence(self, ref: str, *, migration: str) -> None:
        """Unlock it."""
        with suppress(NotFound):
            server = self._server(ref)
            if server is not None:
                self._locks.unlock(server, migration)

    def fenced(self, ref: str) -> str | None:
        """The migration in the reason of its lock. Raises NotFound."""
        server = self._server(ref)
        return locking.owner(server) if server is not None else None

    def owned(self, migration: str) -> Sequence[str]:
        """Names of the migration's VMs."""
        seen = inventory.read(self._connection)
        return sorted(
            server.name if server is not None else plan.name if plan is not None else ref
            for ref, server, plan in map(seen.find, seen.refs())
            if vms.owner(server, plan) == migration
        )

    def _keep_adopted(self, seen: Inventory, server: Any | None, plan: AnnouncedVm | None) -> None:
        """Volumes that another cloud gave are the VM's for good."""
        for _, volume in seen.disks_of(server, plan):
            if ADOPTED in (volume.metadata or {}):
                with self._connection.using(f"handing volume {volume.name or volume.id} over") as conn:
                    conn.block_storage.delete_volume_metadata(volume.id, keys=[ADOPTED])

    def _server(self, ref: str) -> Any | None:
        """The server now; None for a VM that is announced only. Raises NotFound."""
        return self._servers.get(ref)

    def _wait(self, ref: str, wanted: set[Power], doing: str, *, every_s: float | None = None) -> Any:
        """The server, once it is so; a VM that is announced only is waited for."""

        def look() -> Any | None:
            server = self._server(ref)
            if server is not None and server.vm_state == "error":
                raise server_fault(server)
            return server if vms.power_of(server) in wanted else None

        return settled(look, f"VM {ref} {doing}", every_s=every_s)

    def _create(self, plan: AnnouncedVm, seen: Inventory) -> None:
        """Make the server; the caller has seen that there is none."""
        owner = {marks.MIGRATION: plan.migration} if plan.migration else {}
        imported = next((by for _, volume in seen.disks_of(None, plan) if (by := importing(volume))), None)
        fenced = {FENCED: imported} if imported else {}
        disks = [
            {
                "boot_index": 0 if number == 0 else -1,
                "uuid": disk.volume,
                "source_type": "volume",
                "destination_type": "volume",
                "delete_on_termination": False,
                "disk_bus": disk.bus,
            }
            for number, disk in enumerate(plan.disks)
        ]
        where: dict[str, Any] = {"availability_zone": plan.availability_zone} if plan.availability_zone else {}
        if plan.group is not None:
            where["scheduler_hints"] = {"group": plan.group}
        with self._connection.using(f"making server {plan.name}") as conn:
            made = conn.compute.create_server(
                name=plan.name,
                flavor_id=plan.flavor,
                block_device_mapping=disks,
                networks=[{"port": port} for _, port in plan.ports] or "none",
                metadata={**plan.metadata, marks.REF: plan.ref, **owner, **fenced},
                **where,
            )
        self._servers.became(plan.ref, str(made.id))

    def _check_usable(self, seen: Inventory, server: Any | None, plan: AnnouncedVm | None) -> None:
        """Nothing but this keeps a second server from an image that is imported."""
        for key, volume in seen.disks_of(server, plan):
            if importing(volume) is None:
                continue
            if self._live is None:
                raise Unsupported(
                    f"disk {key} ({volume.name}) is being imported, and this worker has no way to look at its image",
                    action="give the cloud its `ceph` section in whimbrel.yaml again, as it was",
                )
            self._live.check_usable(*self._backing.image(volume))

    def _check_free(self, seen: Inventory, server: Any | None, plan: AnnouncedVm | None) -> None:
        if server is not None and (fenced := locking.owner(server)) not in {None, server.metadata.get(FENCED)}:
            raise Conflict(
                f"migration {fenced} keeps server {server.name} from being started",
                action="confirm or roll back that migration; if it is lost, unlock the server",
            )
        for key, volume in seen.disks_of(server, plan):
            writer = (volume.metadata or {}).get(WRITER)
            if writer:
                raise Conflict(
                    f"disk {key} ({volume.name}) is being written by session {writer}",
                    action="confirm or roll back the migration that writes it",
                )
            taken = held.taken(volume)
            if taken is not None:
                raise Conflict(
                    f"disk {key} ({volume.name}) was released to migration {taken.migration}",
                    action="roll back that migration: it gives the VM its disks back",
                )
