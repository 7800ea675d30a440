"""The VMs of one libvirt host: ``whimbrel.ports.compute.ComputePort``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree as ET

import libvirt

from drivers.libvirt import domain_xml, domains, patience, rebuild_xml, served_xml, tag
from drivers.libvirt.connection import Connection
from whimbrel.errors import Conflict, NotFound, NotReady, Unsupported
from whimbrel.model.vm import Power, TargetVm, VmSpec

FORCE_OFF_TIMEOUT_S = 45.0
"""How long QEMU may take to write out what it holds; a disk that hangs must not keep a VM alive for ever."""

RESUME_TIMEOUT_S = 20.0
RESUME_SETTLE_S = 1.0

UNDEFINE_ALL = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
)


class LibvirtCompute:
    """``ComputePort`` over one connection."""

    def __init__(self, connection: Connection, *, console_dir: str | None = None, virt_type: str | None = None) -> None:
        self._connection = connection
        self._console_dir = console_dir
        self._virt_type = virt_type

    def inventory(self) -> Sequence[VmSpec]:
        """All VMs, without mover sessions; one that vanishes meanwhile is left out."""
        found = []
        with self._connection.using("listing VMs") as conn:
            for domain, _xml in domains.all_vms(conn):
                try:
                    found.append(domains.spec(conn, domain, deep=False))
                except libvirt.libvirtError as error:
                    if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                        raise
        return found

    def inspect(self, vm: str) -> VmSpec:
        """One VM by UUID or name. Raises NotFound, Conflict."""
        with self._connection.using(f"inspecting {vm}", vm=vm) as conn:
            domain = domains.get(conn, vm)
            if tag.is_session(domain_xml.parse(domain.XMLDesc())):
                raise NotFound(f"{vm} is a mover session, not a VM", vm=vm)
            return domains.spec(conn, domain)

    def power(self, ref: str) -> Power:
        """The power state now. Raises NotFound."""
        with self._connection.using(f"reading the power state of {ref}", vm=ref) as conn:
            return domains.power(domains.get(conn, ref))

    def start(self, ref: str, *, paused: bool = False) -> None:
        """Power on; a VM that is on already stays as it is."""
        flags = libvirt.VIR_DOMAIN_START_PAUSED if paused else 0
        with self._connection.using(f"starting {ref}", vm=ref) as conn:
            domain = domains.get(conn, ref)
            served = served_xml.served_keys(domain_xml.parse(domains.definition(domain)))
            if not domain.isActive():
                try:
                    domain.createWithFlags(flags)
                except libvirt.libvirtError:
                    if not domain.isActive():  # an orphaned attempt may have been faster
                        raise
            if served:
                patience.ensure(domain)

    def resume(self, ref: str) -> None:
        """Let a paused VM run. Raises Conflict when it is off."""
        with self._connection.using(f"resuming {ref}", vm=ref) as conn:
            domain = domains.get(conn, ref)
            state = domains.power(domain)
            if state == Power.RUNNING:
                return
            if state in {Power.OFF, Power.CRASHED}:
                raise Conflict(f"{domain.name()} is off and cannot be resumed", action="start it", power=state)
            if state == Power.SUSPENDED:
                domain.pMWakeup()
                return
            if served_xml.served_keys(domain_xml.parse(domain.XMLDesc())):
                patience.ensure(domain)
                self._resume_served(domain)
            else:
                domain.resume()

    @staticmethod
    def _resume_served(domain: Any) -> None:
        """QEMU finds a lost server again at a request or two; those fail and pause the VM once more."""
        deadline = time.monotonic() + RESUME_TIMEOUT_S
        while True:
            domain.resume()
            settled = time.monotonic() + RESUME_SETTLE_S
            while time.monotonic() < settled:
                time.sleep(0.1)
                if domain.state() == [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR]:
                    break
            else:
                return
            if time.monotonic() > deadline:
                raise NotReady(
                    f"{domain.name()} was paused again: its disk is served by nobody",
                    action="look whether its streaming server runs",
                    vm=domain.name(),
                )

    def request_stop(self, ref: str) -> None:
        """Press the ACPI power button and return; a VM that is off stays as it is."""
        with self._connection.using(f"asking {ref} to shut down", vm=ref) as conn:
            domain = domains.get(conn, ref)
            if not domain.isActive():
                return
            try:
                domain.shutdown()
            except libvirt.libvirtError:
                if domain.isActive():
                    raise

    def force_off(self, ref: str) -> None:
        """Take the power away. QEMU is first asked to leave by itself, so that bitmaps and metadata are written."""
        with self._connection.using(f"powering {ref} off", vm=ref) as conn:
            self._off(domains.get(conn, ref))

    def _off(self, domain: Any) -> None:
        deadline = time.monotonic() + FORCE_OFF_TIMEOUT_S
        while domain.isActive():
            graceful = time.monotonic() < deadline
            try:
                domain.destroyFlags(libvirt.VIR_DOMAIN_DESTROY_GRACEFUL if graceful else 0)
            except libvirt.libvirtError as error:
                if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                    return  # a transient VM is gone with its power
                if not graceful and domain.isActive():
                    raise
                time.sleep(0.5)
            if not domain.isPersistent():
                return

    def ensure_vm(self, vm: TargetVm) -> VmSpec:
        """Define the VM with our mark; see the port. Raises Conflict, InvalidPlan."""
        with self._connection.using(f"defining {vm.name}", vm=vm.name) as conn:
            offered = "kvm" if "domain type='kvm'" in str(conn.getCapabilities()) else "qemu"
            default_type = self._virt_type or offered
            xml = rebuild_xml.rebuild(vm, console_dir=self._console_dir, default_type=default_type)
            identity = rebuild_xml.target_uuid(xml)
            existing = self._existing(conn, vm, identity)
            if existing is not None and existing.isActive():
                # It has been started already by a later step: its definition is not touched any more.
                return domains.spec(conn, existing)
            return domains.spec(conn, conn.defineXML(xml))

    def _existing(self, conn: Any, vm: TargetVm, identity: str) -> Any | None:
        """The VM that this migration made before, if any. Raises Conflict for names, uuids and MACs of others."""
        mine = None
        macs = {nic.mac.lower() for nic in vm.nics}
        for domain, xml, written in domains.all_defined(conn):
            owner = tag.migration_of(written, "vm")
            same_uuid = domain.UUIDString() == identity
            same_name = domain.name() == vm.name
            if owner == vm.migration and (same_uuid or same_name):
                if not (same_uuid and same_name):
                    raise Conflict(
                        f"this migration has made {domain.name()} ({domain.UUIDString()}) already, not {vm.name}",
                        uuid=identity,
                    )
                mine = domain
                continue
            if same_name:
                raise Conflict(f"a VM named {vm.name} exists and is not ours", uuid=domain.UUIDString())
            if same_uuid:
                raise Conflict(f"the uuid {identity} belongs to VM {domain.name()}", uuid=identity)
            taken = macs & {nic.mac for nic in domain_xml.nics(xml)}
            if taken:
                raise Conflict(f"MAC {min(taken)} belongs to VM {domain.name()}", mac=min(taken))
        return mine

    def ensure_absent(self, ref: str, *, migration: str) -> None:
        """Power off and undefine a VM that ``migration`` made; its disks stay. Raises Conflict for one of others."""
        with self._connection.using(f"removing {ref}", vm=ref) as conn:
            domain = domains.find(conn, ref)
            if domain is None:
                return
            owner = tag.migration_of(domain_xml.parse(domains.definition(domain)), "vm")
            if owner != migration:
                raise Conflict(f"VM {domain.name()} was not made by this migration", owner=owner or "nobody")
            self._off(domain)
            try:
                domain.undefineFlags(UNDEFINE_ALL)
            except libvirt.libvirtError as error:
                if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                    raise
            if domains.find(conn, ref) is not None:
                raise NotReady(f"VM {ref} is still there after it was removed", vm=ref)

    def release_tag(self, ref: str, *, migration: str) -> None:
        """Take our mark off the VM. One that bears none stays as it is; raises Conflict for another migration's."""
        with self._connection.using(f"handing {ref} over", vm=ref) as conn:
            domain = domains.get(conn, ref)
            owner = tag.migration_of(domain_xml.parse(domains.definition(domain)), "vm")
            if owner is None:
                return
            if owner != migration:
                raise Conflict(f"VM {domain.name()} belongs to migration {owner}", owner=owner)
            flags = libvirt.VIR_DOMAIN_AFFECT_CONFIG
            if domain.isActive():
                flags |= libvirt.VIR_DOMAIN_AFFECT_LIVE
            domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, None, tag.PREFIX, tag.NAMESPACE, flags)

    def set_autostart(self, ref: str, *, enabled: bool) -> None:
        """Whether libvirtd starts the VM when it comes up itself."""
        with self._connection.using(f"setting autostart of {ref}", vm=ref) as conn:
            domain = domains.get(conn, ref)
            if bool(domain.autostart()) != enabled:
                domain.setAutostart(int(enabled))

    def fence(self, ref: str, *, migration: str) -> None:
        """Raises Unsupported: a domain's owner is who may redefine it. An open point holds its disks instead."""
        raise Unsupported("libvirt has nothing that keeps a domain's owner from starting it", vm=ref)

    def unfence(self, ref: str, *, migration: str) -> None:
        """Nothing to take away."""

    def fenced(self, ref: str) -> str | None:
        """None is."""
        return None

    def owned(self, migration: str) -> Sequence[str]:
        """Names of VMs that bear this migration's mark."""
        with self._connection.using("listing VMs of a migration") as conn:
            return sorted(domain.name() for domain, *xml in domains.all_defined(conn) if _owner(*xml) == migration)


def _owner(live: ET.Element, written: ET.Element) -> str | None:
    return tag.migration_of(live, "vm") or tag.migration_of(written, "vm")
