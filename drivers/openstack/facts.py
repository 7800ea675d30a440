"""Facts for the prechecks: what the project's credentials can learn of a source VM, and of the project as a target."""

from __future__ import annotations

from typing import Any

from drivers.openstack import access, flavors, groups, inventory, locking, marks, quotas, vms
from drivers.openstack.backing import Backing
from drivers.openstack.connection import Connection
from drivers.openstack.importing import importing
from drivers.openstack.inventory import Inventory
from drivers.openstack.managing import adopted
from drivers.openstack.networks import OpenStackNetworks
from drivers.openstack.pools import read as read_pools
from drivers.openstack.snapshots import Snapshots
from whimbrel.errors import AuthFailed, InvalidPlan, NotFound, PermissionDenied, Unavailable, Unsupported
from whimbrel.model.facts import DiskFacts, SourceFacts, TargetFacts
from whimbrel.model.quota import Limits
from whimbrel.model.vm import Capabilities

REFUSALS = (AuthFailed, PermissionDenied, InvalidPlan, Unsupported)
"""The cloud answers, and lets these credentials in nowhere, or has not the region or service that the entry names."""
QUIET = {"available", "in-use", "reserved"}
NO_STREAMING = "its entry in whimbrel.yaml has no `ceph` section, or no gateway_address"
BUSES = ("virtio", "scsi", "sata", "ide", "usb")


def capabilities(connection: Connection, backing: Backing, *, imports: bool) -> Capabilities:
    """What the driver can do here; points and writing need a way to the storage. Raises Unavailable, AuthFailed.

    What changed is told by the storage itself, so not through a mover server.
    """
    with connection.using("asking for the version of Nova") as conn:
        version = str(conn.compute.get_endpoint_data().max_microversion)
    direct = backing.direct
    reach = direct or backing.movers is not None
    return Capabilities(
        kind=vms.KIND,
        roles=frozenset({"source", "target"}) if reach else frozenset(),
        live_points=reach,
        change_tracking=direct,
        handover=direct,
        fences=True,
        points_outlive_start=reach,
        rests=direct,
        announces=True,
        serve_disks=direct and imports,
        imports=direct and imports,
        no_streaming="" if direct and imports else NO_STREAMING,
        console=True,
        disk_formats=("raw",),
        version=f"Nova {version.strip('()').replace(', ', '.')}",
    )


def source_facts(cloud: str, connection: Connection, backing: Backing, vm: str, *, imports: bool) -> SourceFacts:
    """All about one VM. A cloud that cannot be reached gives ``reachable=False``. Raises NotFound, Conflict."""
    try:
        able = capabilities(connection, backing, imports=imports)
        reach, clock = access.read(connection, backing)
        seen = inventory.read(connection).whole()
        limits = _limits(connection, backing, seen)
    except Unavailable as error:
        return SourceFacts(cloud=cloud, reachable=False, unreachable_why=error.message)
    except REFUSALS as error:
        return SourceFacts(cloud=cloud, reachable=False, unreachable_why=error.message, access=access.refusal(error))
    ref, server, plan = seen.find(vm)
    # a storage that is closed to the mover is a finding, so the rest must be told without it
    spec = vms.spec(seen, ref, backing, sizes={} if reach.storage_unreached else None)
    ports = seen.ports_of(server, plan)
    filters, floating = _filters(connection, ports)
    volumes = [volume for _, volume in seen.disks_of(server, plan)]
    extra = dict((server.flavor.extra_specs or {}) if server is not None else {})
    return SourceFacts(
        cloud=cloud,
        vm=spec,
        disks=tuple(
            DiskFacts(key=key, encrypted=bool(volume.is_encrypted), writable=not backing.served(volume))
            for key, volume in seen.disks_of(server, plan)
        ),
        passthrough=tuple(value for key, value in sorted(extra.items()) if key.startswith("pci_passthrough:")),
        tpm="hw:tpm_version" in extra,
        cpu_pinning=extra.get("hw:cpu_policy") == "dedicated",
        numa="hw:numa_nodes" in extra,
        watchdog="hw:watchdog_action" in extra,
        snapshots=tuple(sorted(str(found.name or found.id) for found in Snapshots(connection).foreign(volumes))),
        running_job=_job(server, volumes),
        locked=locking.stranger(server) if server is not None and access.ADMIN not in reach.roles else "",
        hypervisor_version=able.version,
        clock=clock,
        capabilities=able,
        limits=limits,
        access=reach,
        can_act=access.may_act(reach),
        address_pairs=tuple(
            f"{key}: {pair['ip_address']}" for key, port in ports for pair in port.allowed_address_pairs or ()
        ),
        floating_addresses=floating,
        network_filters=filters,
        bandwidth_limits=tuple(f"{key}: QoS policy {port.qos_policy_id}" for key, port in ports if port.qos_policy_id),
        network_mtus={
            network.name: network.mtu
            for _, port in ports
            if (network := seen.networks.get(port.network_id)) is not None and network.mtu
        },
        rebuild_blockers=_blockers(server, backing, volumes),
    )


def target_facts(
    cloud: str, connection: Connection, backing: Backing, networks: OpenStackNetworks, *, imports: bool
) -> TargetFacts:
    """All about the project as a target. A cloud that cannot be reached gives ``reachable=False``."""
    try:
        able = capabilities(connection, backing, imports=imports)
        reach, clock = access.read(connection, backing)
        seen = inventory.read(connection).whole()
        macs = {port.mac_address.lower(): _owner_name(seen, port) for port in seen.ports}
        return TargetFacts(
            cloud=cloud,
            vm_names={vms.spec(seen, ref, backing, sizes={}).name: ref for ref in seen.refs()},
            macs=macs,
            pools=tuple(read_pools(connection)),
            networks=tuple(networks.networks()),
            vcpus_max=max((flavor.vcpus for flavor in seen.flavors.values()), default=0),
            archs=("x86_64",),
            firmwares=("bios", "uefi", "uefi-secure"),
            disk_buses=BUSES,
            hypervisor_version=able.version,
            clock=clock,
            capabilities=able,
            leftovers=tuple(_leftovers(seen)),
            can_create=able.roles == frozenset({"source", "target"}) and access.may_act(reach),
            limits=_limits(connection, backing, seen),
            sizes=tuple(map(flavors.size_of, seen.flavors.values())),
            zones=_zones(connection),
            groups=groups.read(connection),
            access=reach,
        )
    except Unavailable as error:
        return TargetFacts(cloud=cloud, reachable=False, unreachable_why=error.message)
    except REFUSALS as error:
        return TargetFacts(cloud=cloud, reachable=False, unreachable_why=error.message, access=access.refusal(error))


def _zones(connection: Connection) -> tuple[str, ...]:
    with connection.using("listing availability zones") as conn:
        return tuple(sorted(zone.name for zone in conn.compute.availability_zones() if zone.state.get("available")))


def _limits(connection: Connection, backing: Backing, seen: Inventory) -> Limits:
    limits = quotas.read(connection, seen.volumes.values())
    if backing.movers is None:
        return limits
    return limits.model_copy(update={"mover": backing.movers.cost(backing.pools)})


def _job(server: Any | None, volumes: list[Any]) -> str | None:
    if server is not None and server.task_state:
        return f"server is {server.task_state}"
    busy = [f"volume {volume.name or volume.id} is {volume.status}" for volume in volumes if volume.status not in QUIET]
    return "; ".join(busy) or None


def _blockers(server: Any | None, backing: Backing, volumes: list[Any]) -> tuple[str, ...]:
    found = []
    if server is not None and (server.image or {}).get("id"):
        found.append("its root disk lies on the compute host, not in a volume")
    found += [
        f"volume {volume.name or volume.id} of type {volume.volume_type} cannot be reached from this worker"
        for volume in volumes
        if not backing.reaches(volume) and not backing.served(volume)
    ]
    found += [
        f"volume {volume.name or volume.id} is being imported by migration {by}: nobody may ask it for its blocks"
        for volume in volumes
        if (by := importing(volume)) is not None
    ]
    return tuple(found)


def _filters(connection: Connection, ports: list[tuple[str, Any]]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Security groups by card, and floating addresses that lead to one of these ports."""
    groups = []
    with connection.using("listing security groups and floating addresses") as conn:
        names = {group.id: group.name for group in conn.network.security_groups()} if ports else {}
        for key, port in ports:
            if port.is_port_security_enabled is not False and port.security_group_ids:
                groups.append(f"{key}: {', '.join(sorted(names.get(one, one) for one in port.security_group_ids))}")
    wanted, floating = {port.id for _, port in ports}, []
    try:
        with connection.using("listing floating addresses") as conn:
            floating = [str(ip.floating_ip_address) for ip in conn.network.ips() if ip.port_id in wanted]
    except NotFound:  # a cloud without routers
        pass
    return tuple(groups), tuple(sorted(floating))


def _owner_name(seen: Inventory, port: Any) -> str:
    for ref in seen.refs():
        _, server, plan = seen.find(ref)
        if any(port.id == other.id for _, other in seen.ports_of(server, plan)):
            return str(server.name if server is not None else plan.name if plan is not None else ref)
    return str(port.name or port.id)


def _leftovers(seen: Inventory) -> list[str]:
    """What a migration made and did not hand over: VMs, and volumes that belong to no VM, and reserved ports."""
    found, used, plugged = [], set(), set()
    for ref in seen.refs():
        _, server, plan = seen.find(ref)
        used |= {volume.id for _, volume in seen.disks_of(server, plan)}
        plugged |= {port.id for _, port in seen.ports_of(server, plan)}
        migration = vms.owner(server, plan)
        if migration:
            name = server.name if server is not None else plan.name if plan is not None else ref
            found.append(f"VM {name} of migration {migration}")
    found += [
        f"volume {volume.name} of migration {volume.metadata[marks.MIGRATION]}"
        for volume in seen.volumes.values()
        if marks.MIGRATION in (volume.metadata or {}) and volume.id not in used
    ]
    found += [
        f"volume {volume.name or volume.id} adopted by migration {mark.migration}"
        for volume in seen.volumes.values()
        if (mark := adopted(volume)) is not None and volume.id not in used
    ]
    found += [f"mover server of session {server.metadata[marks.MOVER]}" for server in seen.movers.values()]
    found += [
        f"volume {volume.name} of point {volume.metadata[marks.READS]}"
        for volume in seen.volumes.values()
        if marks.READS in (volume.metadata or {})
    ]
    for port in seen.ports:
        name = port.name or ""
        if name.startswith(marks.MOVER_NAME) and not port.device_id:
            found.append(f"port of mover server {name.removeprefix(marks.MOVER_NAME)}")
        elif name.startswith("whimbrel-") and not port.device_id and port.id not in plugged:
            found.append(f"port {name} of migration {marks.migration_of(name)}")
    return sorted(found)
