"""Facts for the prechecks, gathered in one go: what libvirt and QEMU can tell of a source VM and of a target host."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from xml.etree import ElementTree as ET

import libvirt

from drivers.libvirt import checkpoints, domain_xml, domains, guest, host, images, qmp, tag, tracking, xen_xml
from drivers.libvirt.backup_xml import SCRATCH_SUFFIX
from drivers.libvirt.connection import Connection
from drivers.libvirt.network import read_network
from drivers.libvirt.points_live import current_job
from drivers.libvirt.points_stream import only_streams
from drivers.libvirt.reach import Reach
from drivers.libvirt.volumes import LibvirtVolumes
from whimbrel.errors import Conflict, Unavailable
from whimbrel.model.facts import DiskFacts, SourceFacts, TargetFacts
from whimbrel.model.naming import PREFIX
from whimbrel.model.vm import Capabilities, DiskFormat, VmSpec
from whimbrel.ports.network import NetworkPort

MADE_BY_US = re.compile(r"-([0-9a-f]{10})$")
"""How ``whimbrel.model.naming.volume_name`` ends names."""


def capabilities(connection: Connection, reach: Reach) -> Capabilities:
    """What this host can do; live points need QEMU and libvirt's backup API. Raises Unavailable, AuthFailed.

    A host that is read through streams is a cold source of raw disks, and nothing else.
    """
    with connection.using("asking for capabilities") as conn:
        qemu = conn.getType() == "QEMU"
        if only_streams(conn, reach):
            return Capabilities(
                kind="libvirt",
                roles=frozenset({"source"}),
                guest_agent=qemu,
                console=qemu,
                disk_formats=("raw",),
                version=host.version(conn),
            )
        backup = host.domain_capabilities(conn).backup
        return Capabilities(
            kind="libvirt",
            roles=frozenset({"source", "target"}),
            live_points=backup,
            change_tracking=backup,
            start_paused=True,
            serve_disks=True,
            shadows=True,
            handover=qemu,
            guest_agent=True,
            console=True,
            disk_formats=("qcow2", "raw"),
            version=host.version(conn),
        )


def source_facts(cloud: str, connection: Connection, reach: Reach, vm: str) -> SourceFacts:
    """All about one VM. A daemon that cannot be reached gives ``reachable=False``. Raises NotFound, Conflict."""
    try:
        able = capabilities(connection, reach)
        with connection.using(f"gathering facts of {vm}", vm=vm) as conn:
            return _source(cloud, conn, domains.get(conn, vm), able, connection)
    except Unavailable as error:
        return SourceFacts(cloud=cloud, reachable=False, unreachable_why=error.message)


def _source(cloud: str, conn: Any, domain: Any, able: Capabilities, connection: Connection) -> SourceFacts:
    live = domain_xml.parse(domain.XMLDesc())
    written = domain_xml.parse(domains.definition(domain))
    spec = domains.spec(conn, domain)
    told = guest.agent_facts(domain) if domain.isActive() and domain_xml.has_agent_channel(live) else None
    cpu = written.find("cpu")
    conversion = xen_xml.for_kvm(written)
    return SourceFacts(
        cloud=cloud,
        vm=spec,
        disks=tuple(_disk_facts(conn, domain, live, spec)),
        passthrough=_passthrough(written),
        tpm=written.find("devices/tpm") is not None,
        cdroms_with_media=tuple(
            disk.location for disk in domain_xml.disks(live) if disk.device in {"cdrom", "floppy"} and disk.location
        ),
        shared_filesystems=tuple(_attribute(node, "target", "dir") for node in written.findall("devices/filesystem")),
        cpu_pinning=_pinned(written),
        cpu_model=(cpu.findtext("model") or cpu.get("mode")) if cpu is not None else None,
        numa=written.find("numatune") is not None or written.find("cpu/numa") is not None,
        watchdog=written.find("devices/watchdog") is not None,
        snapshots=tuple(sorted(_if_known(domain.snapshotListNames, []))),
        running_job=_running_job(domain) if _is_qemu(conn) else None,
        managed_save=bool(_if_known(domain.hasManagedSaveImage, 0)),
        agent_configured=domain_xml.has_agent_channel(written),
        agent_answers=told is not None and told.agent,
        hostname=told.hostname if told is not None else None,
        guest_os=told.os if told is not None else None,
        definition_pending=_definition_pending(domain, live, written),
        hypervisor_version=able.version,
        clock=_clock(connection),
        capabilities=able,
        can_act=not connection.read_only,
        network_mtus=_network_mtus(conn, live),
        bandwidth_limits=tuple(_limits(written)),
        rebuild_changes=conversion.changes,
        rebuild_blockers=conversion.blockers,
        network_filters=tuple(node.get("filter", "") for node in written.findall("devices/interface/filterref")),
    )


def _is_qemu(conn: Any) -> bool:
    return bool(conn.getType() == "QEMU")


def _if_known(ask: Callable[[], Any], otherwise: Any) -> Any:
    """The answer, or ``otherwise`` where this hypervisor's driver has no such thing (Xen has no snapshots)."""
    try:
        return ask()
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:
            raise
        return otherwise


def _clock(connection: Connection) -> datetime | None:
    """The host's clock: libvirt has no call for it, so it is known only where the host is this one."""
    return datetime.now(UTC) if connection.host is None else None


def _network_mtus(conn: Any, domain: ET.Element) -> dict[str, int]:
    """MTUs of what the VM is plugged into: its card's own where the VM's definition names one, else the network's."""
    found = {}
    for node in domain.findall("devices/interface"):
        name, own = domain_xml.nic_network(node), node.find("mtu")
        if own is not None and own.get("size"):
            found[name] = int(own.get("size", "0"))
            continue
        with suppress(libvirt.libvirtError):  # bridges and user networking are no networks of libvirt
            mtu = read_network(conn.networkLookupByName(name).XMLDesc(), active=True).mtu
            if mtu is not None:
                found[name] = mtu
    return found


def _attribute(node: ET.Element, child: str, name: str) -> str:
    found = node.find(child)
    return found.get(name, "") if found is not None else ""


def _passthrough(domain: ET.Element) -> tuple[str, ...]:
    """Host devices, as "type address": they exist on the source's host only."""
    found = []
    for node in domain.findall("devices/hostdev"):
        address = node.find("source/address")
        where = (
            " ".join(f"{key}={value}" for key, value in sorted(address.attrib.items())) if address is not None else ""
        )
        found.append(f"{node.get('type', 'device')} {where}".strip())
    found += ["sr-iov interface" for node in domain.findall("devices/interface") if node.get("type") == "hostdev"]
    found += [f"vdpa {_attribute(node, 'source', 'dev')}" for node in domain.findall("devices/interface[@type='vdpa']")]
    return tuple(found)


def _pinned(domain: ET.Element) -> bool:
    vcpu = domain.find("vcpu")
    return domain.find("cputune/vcpupin") is not None or (vcpu is not None and vcpu.get("cpuset") is not None)


def _running_job(domain: Any) -> str | None:
    """A backup, block or migration job that is not ours, in words."""
    if not domain.isActive():
        return None
    try:
        job = current_job(domain)
    except Conflict as error:
        return error.message
    if job is not None and not (job.key or "").startswith(f"{PREFIX}-"):
        return "a pull-mode backup of another tool"
    ours = {disk.name for disk in job.disks} if job is not None else set()
    for disk in domain_xml.disks(domain_xml.parse(domain.XMLDesc())):
        if disk.location and disk.key not in ours and domain.blockJobInfo(disk.key, 0):
            return f"a block job on disk {disk.key}"
    return None


def _definition_pending(domain: Any, live: ET.Element, written: ET.Element) -> bool:
    """Whether the next start would give another machine: compared by what a rebuild is made from."""
    if not domain.isActive() or not domain.isPersistent():
        return False
    return _shape(live) != _shape(written)


def _shape(domain: ET.Element) -> tuple[object, ...]:
    kind = domain.find("os/type")
    return (
        domain_xml.vcpus(domain),
        domain_xml.size_bytes(domain.find("memory")),
        kind.get("machine") if kind is not None else None,
        tuple((disk.key, disk.location, disk.bus, disk.serial) for disk in domain_xml.disks(domain)),
        tuple((nic.mac, nic.model) for nic in domain_xml.nics(domain)),
    )


def _limits(domain: ET.Element) -> list[str]:
    found = [
        f"disk {_attribute(node, 'target', 'dev')}"
        for node in domain.findall("devices/disk")
        if node.find("iotune") is not None
    ]
    found += [
        f"interface {_attribute(node, 'mac', 'address')}"
        for node in domain.findall("devices/interface")
        if node.find("bandwidth") is not None
    ]
    return found


def _disk_facts(conn: Any, domain: Any, live: ET.Element, spec: VmSpec) -> list[DiskFacts]:
    others = _images_of_others(conn, spec.ref)
    written = {disk.key: disk for disk in domain_xml.disks(live)}
    known = checkpoints.read(domain) if domain.isPersistent() and _is_qemu(conn) else []
    nodes = tracking.running_nodes(domain) if domain.isActive() and _is_qemu(conn) else {}
    damaged = tracking.damage(known, nodes)
    internal = int(_if_known(lambda: domain.snapshotNum(libvirt.VIR_DOMAIN_SNAPSHOT_LIST_INTERNAL), 0))
    found = []
    for disk in spec.disks:
        below = set(disk.backing_chain)
        top = images.find_volume(conn, disk.location)
        names = {name for entry in known for key, name in entry.bitmaps.items() if key == disk.key}
        if disk.key in nodes:
            names |= {bitmap.name for bitmap in nodes[disk.key].bitmaps}
        found.append(
            DiskFacts(
                key=disk.key,
                chain_complete=disk.size_bytes > 0 and images.chain_below(conn, top, written[disk.key].chain)[1],
                chain_shared_with=tuple(sorted(name for name, used in others.items() if used & below)),
                image_shared_with=tuple(sorted(name for name, used in others.items() if disk.location in used)),
                stale_tracking=tuple(sorted(f"{name}: {damaged[name]}" for name in names if name in damaged)),
                foreign_tracking=tuple(sorted(name for name in names if not name.startswith(f"{PREFIX}-"))),
                sector_bytes=_sector_bytes(live, disk.key),
                internal_snapshots=_internal_snapshots(disk.format, internal, nodes.get(disk.key)),
                encrypted=written[disk.key].encrypted or (top is not None and top.encrypted),
            )
        )
    return found


def _internal_snapshots(form: DiskFormat, known: int, node: qmp.Node | None) -> int:
    """What libvirt has recorded; of a running VM's image also those that others made (qemu-img snapshot)."""
    if not form.startswith("qcow2"):
        return 0
    return max(known, node.internal_snapshots if node is not None else 0)


def _images_of_others(conn: Any, ref: str) -> dict[str, set[str]]:
    """VM name -> images of its disks, for all VMs but one."""
    used: dict[str, set[str]] = {}
    for domain, xml in domains.all_vms(conn):
        if domain.UUIDString() == ref:
            continue
        with suppress(libvirt.libvirtError):
            disks = images.disk_specs(conn, domain, xml, deep=False)
            used[domain.name()] = {path for disk in disks for path in (disk.location, *disk.backing_chain)}
    return used


def _sector_bytes(domain: ET.Element, key: str) -> int:
    for node in domain.findall("devices/disk"):
        blockio = node.find("blockio")
        if blockio is not None and _attribute(node, "target", "dev") == key:
            return int(blockio.get("logical_block_size", "512"))
    return 512


def target_facts(
    cloud: str, connection: Connection, reach: Reach, volumes: LibvirtVolumes, networks: NetworkPort
) -> TargetFacts:
    """All about a host as a target. A daemon that cannot be reached gives ``reachable=False``."""
    try:
        able = capabilities(connection, reach)
        with connection.using("gathering facts of the host") as conn:
            caps = host.domain_capabilities(conn)
            archs, machines = host.read_machines(conn.getCapabilities())
            free, total = host.memory(conn)
            vms = list(domains.all_vms(conn))
            return TargetFacts(
                cloud=cloud,
                vm_names={domain.name(): domain.UUIDString() for domain, _ in vms},
                macs={nic.mac: domain.name() for domain, xml in vms for nic in domain_xml.nics(xml)},
                pools=tuple(volumes.pools()),
                networks=tuple(networks.networks()),
                vcpus_max=caps.vcpus_max,
                memory_free_bytes=free,
                memory_total_bytes=total,
                archs=archs,
                machines=machines,
                firmwares=caps.firmwares,
                cpu_models=caps.cpu_models,
                disk_buses=caps.disk_buses,
                hypervisor_version=able.version,
                clock=_clock(connection),
                capabilities=able,
                leftovers=tuple(_leftovers(conn, vms)),
                can_create=not connection.read_only,
            )
    except Unavailable as error:
        return TargetFacts(cloud=cloud, reachable=False, unreachable_why=error.message)


def _leftovers(conn: Any, vms: Sequence[tuple[Any, ET.Element]]) -> list[str]:
    """VMs that bear our mark, mover sessions, volumes of migrations that no VM uses, and scratch files in pools."""
    found = []
    for domain, xml in vms:
        owner = tag.migration_of(xml, "vm")
        if owner is not None:
            found.append(f"VM {domain.name()} (migration {owner})")
    used = {disk.location for _, xml in vms for disk in domain_xml.disks(xml)}
    for domain in conn.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
        with suppress(libvirt.libvirtError):
            mark = tag.find(domain_xml.parse(domain.XMLDesc()))
            if mark is not None and mark.get("role") == "session":
                found.append(f"mover session {domain.name()} (migration {mark.get('migration')})")
    for pool, volume in images.all_volumes(conn):
        name = volume.name()
        if name.startswith(f"{PREFIX}-") and name.endswith(SCRATCH_SUFFIX):
            found.append(f"scratch file {pool}/{name}")
        elif (made := MADE_BY_US.search(name)) is not None and volume.path() not in used:
            found.append(f"volume {pool}/{name} (migration {made.group(1)})")
    return sorted(found)
