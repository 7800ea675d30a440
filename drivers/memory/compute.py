"""The VMs of the in-memory cloud."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence

from drivers.memory.calls import CallLog, port_call
from drivers.memory.imports import imports
from drivers.memory.state import CloudState, StopPlan, Vm, VolumeId
from whimbrel.dataplane.devices import open_device
from whimbrel.errors import Conflict, NotFound, Unsupported
from whimbrel.model.vm import DiskSpec, Power, TargetVm, VmSpec

PORT = "compute"


class MemoryCompute:
    """ComputePort on a cloud's state."""

    def __init__(self, state: CloudState) -> None:
        self._state = state

    @property
    def log(self) -> CallLog:
        """The cloud's call log."""
        return self._state.log

    @port_call(PORT)
    def inventory(self) -> Sequence[VmSpec]:
        """All VMs, by name."""
        with self._state.lock:
            return sorted((read_vm(self._state, vm) for vm in self._state.vms.values()), key=lambda vm: vm.name)

    @port_call(PORT)
    def inspect(self, vm: str) -> VmSpec:
        """One VM by ref or name."""
        with self._state.lock:
            return read_vm(self._state, self._state.find(vm))

    @port_call(PORT)
    def power(self, ref: str) -> Power:
        """The power state now; looking is what lets a guest with ``after_looks`` get on with its shutdown."""
        with self._state.lock:
            return self._state.vm(ref).power

    @port_call(PORT)
    def start(self, ref: str, *, paused: bool = False) -> None:
        """Power on. Raises Conflict while the mover holds a volume of the VM."""
        with self._state.lock:
            vm = self._state.vm(ref)
            if vm.on:
                return
            self._refuse_if_held(vm)
            self._connect_served(vm)
            vm.power = Power.PAUSED if paused else Power.RUNNING
            vm.stop_due = None
            self._state.note_openers(vm)
        if not paused:
            self._run_guest(vm)

    @port_call(PORT)
    def resume(self, ref: str) -> None:
        """Let a paused VM run. Raises Conflict when it is off."""
        with self._state.lock:
            vm = self._state.vm(ref)
            if vm.power is Power.RUNNING:
                return
            if vm.power is not Power.PAUSED:
                raise Conflict(f"VM {vm.spec.name} is {vm.power}, not paused: there is nothing to resume", vm=ref)
            vm.power = Power.RUNNING
        self._run_guest(vm)

    @port_call(PORT)
    def request_stop(self, ref: str) -> None:
        """Ask the guest; it obeys as its stop plan says. A paused guest cannot hear."""
        with self._state.lock:
            vm = self._state.vm(ref)
            plan = vm.stop_plan
            if vm.power is not Power.RUNNING or plan.after_s is None or vm.stop_due is not None:
                return
            vm.stop_due = (time.monotonic() + plan.after_s, plan.after_looks)

    @port_call(PORT)
    def force_off(self, ref: str) -> None:
        """Take the power away at once."""
        with self._state.lock:
            vm = self._state.vm(ref)
            if vm.power is not Power.OFF:
                self._state.switch_off(vm)

    @port_call(PORT)
    def ensure_vm(self, vm: TargetVm) -> VmSpec:
        """Define the VM; found again by its uuid, which is the source's ref."""
        with self._state.lock:
            made = self._own_vm(vm)
            if made is None:
                made = self._define(vm)
            return read_vm(self._state, made)

    @port_call(PORT)
    def ensure_absent(self, ref: str, *, migration: str) -> None:
        """Power off and undefine; volumes and the bitmaps on them stay. Ports that were reserved for it go."""
        with self._state.lock:
            vm = self._state.vms.get(ref)
            if vm is None:
                self._drop_ports(migration)
                return
            if vm.made_by != migration or vm.handed_over:
                raise Conflict(
                    f"VM {vm.spec.name} is not tagged as made by migration {migration}: it is left alone", vm=ref
                )
            self._state.switch_off(vm)
            self._state.drop_point(vm)
            self._drop_ports(migration)
            del self._state.vms[ref]

    @port_call(PORT)
    def release_tag(self, ref: str, *, migration: str) -> None:
        """Hand the VM over. Raises NotFound; Conflict for a VM that another migration made."""
        with self._state.lock:
            vm = self._state.vm(ref)
            if vm.made_by not in {None, migration}:
                raise Conflict(f"VM {vm.spec.name} was made by migration {vm.made_by}, not by {migration}", vm=ref)
            vm.handed_over = vm.made_by is not None

    @port_call(PORT)
    def set_autostart(self, ref: str, *, enabled: bool) -> None:
        """Note whether the VM starts by itself."""
        with self._state.lock:
            self._state.vm(ref).autostart = enabled

    @port_call(PORT)
    def fence(self, ref: str, *, migration: str) -> None:
        """Let nobody start it."""
        with self._state.lock:
            vm = self._state.vm(ref)
            vm.fenced_by = vm.fenced_by or migration

    @port_call(PORT)
    def unfence(self, ref: str, *, migration: str) -> None:
        """Take this migration's fence away."""
        with self._state.lock:
            vm = self._state.vms.get(ref)
            if vm is not None and vm.fenced_by == migration:
                vm.fenced_by = None

    @port_call(PORT)
    def fenced(self, ref: str) -> str | None:
        """The migration that keeps it from being started."""
        with self._state.lock:
            return self._state.vm(ref).fenced_by

    @port_call(PORT)
    def owned(self, migration: str) -> Sequence[str]:
        """Names of the migration's VMs that were not handed over."""
        with self._state.lock:
            return sorted(
                vm.spec.name for vm in self._state.vms.values() if vm.made_by == migration and not vm.handed_over
            )

    def _drop_ports(self, migration: str) -> None:
        self._state.ports = {port: kept for port, kept in self._state.ports.items() if kept[2] != migration}

    def _refuse_if_held(self, vm: Vm) -> None:
        if vm.fenced_by is not None:
            raise Conflict(f"VM {vm.spec.name} cannot start: migration {vm.fenced_by} has fenced it")
        if vm.held is not None:
            raise Conflict(f"VM {vm.spec.name} cannot start: migration {vm.held.migration} has taken its disks")
        if not vm.tokens and any(imports(self._state.disk_of(vm, key)) for key in vm.volumes):
            raise Conflict(f"VM {vm.spec.name} cannot start: its disks are imported and no point of them was taken")
        writer = self._state.writer_on(set(vm.volumes.values()))
        if writer is not None:
            raise Conflict(f"VM {vm.spec.name} cannot start: writer session {writer} holds a disk of it", writer=writer)
        lasting = self._state.capabilities.imports or self._state.capabilities.points_outlive_start
        if vm.point is not None and not lasting:
            raise Conflict(f"VM {vm.spec.name} cannot start: point {vm.point.key} reads its disks", point=vm.point.key)
        for volume in vm.volumes.values():
            users = self._state.openers(volume) if self._state.image_locks else []
            if users:
                raise Conflict(f"VM {vm.spec.name} cannot start: VM {users[0].spec.name} runs on {volume[1]}")

    @staticmethod
    def _connect_served(vm: Vm) -> None:
        """A hypervisor opens the disks before it starts. Raises Unavailable when an export does not answer."""
        for endpoint in vm.served.values():
            open_device(endpoint).close()

    def _run_guest(self, vm: Vm) -> None:
        hook = self._state.on_run.get(vm.spec.name)
        if hook is not None:
            hook(vm.spec.ref)

    def _own_vm(self, target: TargetVm) -> Vm | None:
        """The VM if this migration made it before. Raises Conflict when name, uuid or a MAC is somebody else's."""
        macs = {nic.mac.lower() for nic in target.nics}
        own: Vm | None = None
        for vm in self._state.vms.values():
            same_name = vm.spec.name == target.name
            if vm.made_by == target.migration and same_name:
                own = vm
                continue
            what = (
                (f"the name {target.name}" if same_name else "")
                or (f"the uuid {target.source.ref}" if vm.spec.ref == target.source.ref else "")
                or next((f"the MAC {nic.mac}" for nic in vm.spec.nics if nic.mac.lower() in macs), "")
            )
            if what:
                raise Conflict(f"{what} belongs to VM {vm.spec.name}, which migration {target.migration} did not make")
        return own

    def _define(self, target: TargetVm) -> Vm:
        volumes = {disk.spec.key: (disk.volume.pool, disk.volume.name) for disk in target.disks}
        for volume in volumes.values():
            if volume not in self._state.volumes:
                raise NotFound(f"no volume {volume[1]} in pool {volume[0]} on cloud {self._state.name}")
        for nic in target.nics:
            if nic.network not in self._state.networks:
                raise NotFound(f"no network {nic.network} on cloud {self._state.name}", network=nic.network)
        spec = target.source.model_copy(
            update={
                "name": target.name,
                "nics": target.nics,
                "disks": tuple(disk.spec for disk in target.disks),
                "definition_kind": "memory",
            }
        )
        plan = self._state.stop_plans.get(target.name, StopPlan())
        served = {disk.spec.key: disk.served for disk in target.disks if disk.served is not None}
        for disk in target.disks:
            if disk.served is not None and disk.volume.format != "raw":
                raise Unsupported(f"disk {disk.spec.key} cannot be served: volume {disk.volume.name} is not raw")
        vm = Vm(spec=spec, served=served, volumes=volumes, made_by=target.migration, stop_plan=plan)
        vm.guest.hostname = target.name
        self._state.vms[spec.ref] = vm
        return vm


def read_vm(state: CloudState, vm: Vm) -> VmSpec:
    """The VM as the ports show it."""
    state.settle(vm)
    definition = persistent_definition(vm)
    return vm.spec.model_copy(
        update={
            "power": vm.power,
            "disks": tuple(read_disk(state, vm.volumes[disk.key], disk) for disk in vm.spec.disks),
            "definition": definition,
            "definition_kind": "memory",
            "definition_digest": hashlib.sha256(definition.encode()).hexdigest(),
            "autostart": vm.autostart,
            "owner_migration": None if vm.handed_over else vm.made_by,
        }
    )


def persistent_definition(vm: Vm) -> str:
    """What the next start would use, as JSON: neither power nor tokens nor tags are part of it."""
    spec = vm.spec
    return json.dumps(
        {
            "uuid": spec.ref,
            "name": spec.name,
            "vcpus": spec.vcpus,
            "memory_bytes": spec.memory_bytes,
            "arch": spec.arch,
            "machine": spec.machine,
            "firmware": spec.firmware,
            "disks": [[disk.key, disk.bus, disk.serial, *vm.volumes[disk.key]] for disk in spec.disks],
            "nics": [nic.model_dump(mode="json") for nic in spec.nics],
            **({"served": sorted(vm.served)} if vm.served else {}),
        },
        sort_keys=True,
    )


def read_disk(state: CloudState, key: VolumeId, spec: DiskSpec) -> DiskSpec:
    """A disk as the ports show it on the volume of this key."""
    volume = state.volumes[key]
    return spec.model_copy(
        update={
            "size_bytes": volume.disk.size_bytes,
            "format": volume.disk.format,
            "pool": volume.pool,
            "location": state.location(volume.key),
            "trackable": volume.disk.trackable,
        }
    )
