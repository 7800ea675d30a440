"""What a test does to an in-memory cloud behind the ports' back: VMs, guests, faults, crashes, and the log of calls."""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from drivers.memory.calls import ANY, Call, Fault, When
from drivers.memory.disk import GRAIN_BYTES, Disk
from drivers.memory.export import Budget
from drivers.memory.state import CloudState, Pool, StopPlan, Vm, cloud_state
from whimbrel.dataplane.devices import open_device
from whimbrel.errors import Conflict, NotFound, QuotaExceeded, WhimbrelError
from whimbrel.model.endpoint import NbdEndpoint
from whimbrel.model.facts import NetworkFacts
from whimbrel.model.naming import owns_point
from whimbrel.model.vm import DiskFormat, DiskSpec, NicSpec, Power, VmSpec

DISK_KEYS = "abcdefghijklmnopqrstuvwxyz"


class Scenario:
    """Controls of the cloud of this name; ``vm`` arguments take a ref or a name."""

    def __init__(self, cloud: str) -> None:
        self._state: CloudState = cloud_state(cloud)

    # --- the cloud's furniture

    def add_pool(self, name: str, capacity_bytes: int, *, active: bool = True) -> None:
        """Add or replace a pool; with a capacity below what lies in it, the pool is full."""
        with self._state.lock:
            self._state.pools[name] = Pool(name, capacity_bytes, active)

    def share_pool(self, name: str, other: str, capacity_bytes: int = 1 << 30) -> None:
        """Put one storage behind a pool of this name on this cloud and another: volumes of one are those of both.

        To be called before either cloud is used: they get one lock.
        """
        there = cloud_state(other)
        there.lock = self._state.lock
        with self._state.lock:
            for state, peer in ((self._state, there), (there, self._state)):
                state.pools[name] = Pool(name, capacity_bytes)
                state.sharers.setdefault(name, []).append(peer)

    def without_image_locks(self) -> None:
        """A storage that cannot lock: two VMs may open one volume, and only good order keeps them from it."""
        with self._state.lock:
            self._state.image_locks = False

    @property
    def double_opens(self) -> list[str]:
        """Every time that a volume was open in two VMs at once."""
        return list(self._state.double_opens)

    def add_network(self, network: NetworkFacts) -> None:
        """Add or replace a network."""
        with self._state.lock:
            self._state.networks[network.name] = network

    def set_capabilities(self, **changes: Any) -> None:
        """Change fields of the cloud's ``Capabilities``."""
        with self._state.lock:
            self._state.capabilities = self._state.capabilities.model_copy(update=changes)

    def patch_source_facts(self, vm_name: str, **changes: Any) -> None:
        """Put these values in place of those that ``source_facts`` finds."""
        with self._state.lock:
            self._state.source_patch.setdefault(vm_name, {}).update(changes)

    def patch_target_facts(self, **changes: Any) -> None:
        """Put these values in place of those that ``target_facts`` finds."""
        with self._state.lock:
            self._state.target_patch.update(changes)

    def add_vm(
        self,
        name: str,
        disks: Sequence[tuple[int, DiskFormat]] = ((1 << 20, "qcow2"),),
        *,
        running: bool = True,
        ref: str | None = None,
        mac: str | None = None,
        network: str = "default",
        pool: str = "default",
        agent: bool = False,
        **traits: Any,
    ) -> VmSpec:
        """A VM that no migration made; disks are ``vda``, ``vdb``... of (size in bytes, format), zeros at first.

        ``traits`` are further fields of VmSpec. Returns the VM without what only its cloud can tell; inspect it there.
        """
        with self._state.lock:
            serial = self._state.next_serial()
            spec = VmSpec.model_validate(
                {
                    "ref": ref or str(uuid.uuid5(uuid.NAMESPACE_OID, f"{self._state.name}/{name}/{serial}")),
                    "name": name,
                    "power": Power.OFF,
                    "vcpus": 1,
                    "memory_bytes": 256 << 20,
                    "machine": "q35",
                    "disks": [
                        DiskSpec(key=f"vd{DISK_KEYS[index]}", size_bytes=size, format=disk_format)
                        for index, (size, disk_format) in enumerate(disks)
                    ],
                    "nics": [
                        NicSpec(
                            key="net0", mac=mac or f"52:54:00:ca:{serial >> 8:02x}:{serial & 255:02x}", network=network
                        )
                    ],
                    **traits,
                }
            )
            volumes = {
                disk.key: self._state.add_volume(pool, f"{name}-{disk.key}", disk.size_bytes, disk.format, None).key
                for disk in spec.disks
            }
            vm = Vm(spec=spec, volumes=volumes, power=Power.RUNNING if running else Power.OFF)
            vm.stop_plan = self._state.stop_plans.get(name, StopPlan())
            vm.guest.agent, vm.guest.hostname, vm.guest.os = agent, name, "Linux"
            self._state.vms[spec.ref] = vm
            return spec.model_copy(update={"power": vm.power})

    def remove_vm(self, vm: str, *, with_disks: bool = False) -> None:
        """Somebody deletes a VM; its volumes stay unless ``with_disks``."""
        with self._state.lock:
            found = self._state.find(vm)
            self._state.switch_off(found)
            self._state.drop_point(found)
            del self._state.vms[found.spec.ref]
            for volume in found.volumes.values() if with_disks else ():
                self._state.remove_volume(volume)

    # --- what the guest does

    def guest_write(self, vm: str, disk: str, offset: int, data: bytes) -> None:
        """The running guest writes. Raises Conflict when it does not run or its file systems are frozen."""
        with self._state.lock:
            found = self._state.find(vm)
            if found.power is not Power.RUNNING or found.guest.quiesced:
                state = "quiesced" if found.guest.quiesced else str(found.power)
                raise Conflict(f"the guest of VM {found.spec.name} cannot write: it is {state}")
            served = found.served.get(disk)
            if served is None:
                self._state.disk_of(found, disk).write(offset, data)
            else:
                _write_served(served, offset, data)

    def guest_trim(self, vm: str, disk: str, offset: int, length: int) -> None:
        """The running guest gives a range back; it reads as zeros then. Raises Conflict when it does not run."""
        with self._state.lock:
            found = self._state.find(vm)
            if found.power is not Power.RUNNING:
                raise Conflict(f"the guest of VM {found.spec.name} cannot trim: it is {found.power}")
            self._state.disk_of(found, disk).discard(offset, length)

    def scribble(
        self, vm: str, disk: str, *, seed: int, writes: int = 16, max_bytes: int = 16384
    ) -> list[tuple[int, int]]:
        """The guest writes random bytes at random places, the same for the same seed; returns (offset, length)s."""
        chance = random.Random(seed)  # noqa: S311 - repeatable test data, no secret
        size = self.disk(vm, disk).size_bytes
        done = []
        for _ in range(writes):
            length = chance.randint(1, min(max_bytes, size))
            offset = chance.randint(0, size - length)
            self.guest_write(vm, disk, offset, chance.randbytes(length))
            done.append((offset, length))
        return done

    @contextmanager
    def scribbling(self, vm: str, disk: str, *, seed: int, pause_s: float = 0.002) -> Iterator[None]:
        """The guest writes from another thread all the while; moments in which it cannot are waited out."""
        stop = threading.Event()

        def work() -> None:
            turn = 0
            while not stop.wait(pause_s):
                try:
                    self.scribble(vm, disk, seed=seed + turn, writes=1)
                except (Conflict, NotFound):
                    continue
                turn += 1

        thread = threading.Thread(target=work, name=f"scribble-{vm}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def when_guest_runs(self, vm_name: str, act: Callable[[str], None] | None) -> None:
        """Call ``act`` with the VM's ref whenever its CPUs begin to run; also for VMs still to come."""
        with self._state.lock:
            if act is None:
                self._state.on_run.pop(vm_name, None)
            else:
                self._state.on_run[vm_name] = act

    def guest_stops(self, vm_name: str, *, after_s: float | None = 0.0, after_looks: int = 0) -> None:
        """How the guest obeys ``request_stop``: after seconds and so many looks at its power; never with None."""
        with self._state.lock:
            plan = StopPlan(after_s, after_looks)
            self._state.stop_plans[vm_name] = plan
            for vm in self._state.vms.values():
                if vm.spec.name == vm_name:
                    vm.stop_plan = plan

    def set_guest(self, vm: str, **changes: Any) -> None:
        """Change fields of ``drivers.memory.state.Guest``: agent, hostname, os, addresses, console."""
        with self._state.lock:
            guest = self._state.find(vm).guest
            for name, value in changes.items():
                if not hasattr(guest, name):
                    raise AttributeError(name)
                setattr(guest, name, value)

    # --- the truth of the host

    def disk(self, vm: str, disk: str) -> Disk:
        """The disk itself. Raises NotFound."""
        with self._state.lock:
            return self._state.disk_of(self._state.find(vm), disk)

    def read_disk(self, vm: str, disk: str) -> bytes:
        """All bytes of a disk now."""
        served = self._served(vm, disk)
        if served is not None:
            return _read_served(served)
        found = self.disk(vm, disk)
        return found.read(0, found.size_bytes)

    def write_disk(self, vm: str, disk: str, offset: int, data: bytes) -> None:
        """Put content on a disk, whatever the VM does."""
        served = self._served(vm, disk)
        if served is None:
            self.disk(vm, disk).write(offset, data)
        else:
            _write_served(served, offset, data)

    def _served(self, vm: str, disk: str) -> NbdEndpoint | None:
        with self._state.lock:
            return self._state.find(vm).served.get(disk)

    def read_volume(self, pool: str, name: str) -> bytes:
        """All bytes of a volume now. Raises NotFound."""
        with self._state.lock:
            volume = self._state.volumes.get((pool, name))
            if volume is None:
                raise NotFound(f"no volume {name} in pool {pool}")
            return volume.disk.read(0, volume.disk.size_bytes)

    def set_power(self, vm: str, power: Power) -> None:
        """Somebody switches the VM, past all locks."""
        with self._state.lock:
            found = self._state.find(vm)
            if power in {Power.RUNNING, Power.PAUSED}:
                found.power = power
                self._state.note_openers(found)
            else:
                self._state.switch_off(found, power)

    # --- misfortune

    def crash_hypervisor(self, vm: str) -> None:
        """The VM's process dies: its live point is gone, and the bitmaps of its disks are damaged."""
        with self._state.lock:
            found = self._state.find(vm)
            self._state.switch_off(found, Power.CRASHED)
            self.damage_tracking(vm)

    def damage_tracking(self, vm: str) -> None:
        """All tokens of the VM answer BaseLost from now on."""
        with self._state.lock:
            found = self._state.find(vm)
            for disk in found.volumes:
                self._state.disk_of(found, disk).damage()

    def lose_token_metadata(self, vm: str) -> None:
        """The VM's metadata forgets its tokens while the bitmaps stay on its disks."""
        with self._state.lock:
            self._state.find(vm).tokens.clear()

    def add_foreign_token(self, vm: str, token: str) -> None:
        """Another tool leaves a checkpoint on the VM."""
        with self._state.lock:
            found = self._state.find(vm)
            found.tokens.add(token)
            for disk in found.volumes:
                if self._state.disk_of(found, disk).trackable:
                    self._state.disk_of(found, disk).add_bitmap(token)

    def tokens(self, vm: str) -> list[str]:
        """Tokens that the VM's metadata names and that all its tracked disks can answer."""
        with self._state.lock:
            found = self._state.find(vm)
            disks = [self._state.disk_of(found, key) for key in found.volumes]
            tracked = [disk for disk in disks if disk.trackable]
            return sorted(token for token in found.tokens if all(disk.answers(token) for disk in tracked))

    def set_foreign_job(self, vm: str, job: str | None) -> None:
        """Another tool's job begins (or, with None, ends): points are refused with Conflict."""
        with self._state.lock:
            self._state.find(vm).foreign_job = job

    def fail_writes(
        self,
        volume: str,
        *,
        after_bytes: int,
        error: Callable[[], WhimbrelError] = lambda: QuotaExceeded("no space left in the pool"),
        times: int | None = None,
    ) -> None:
        """Writer sessions fail once ``after_bytes`` more were written to the volume of this name; also one to come."""
        with self._state.lock:
            budget = self._state.write_budgets.setdefault(volume, Budget())
            budget.left_bytes, budget.error, budget.times = after_bytes, error, times

    def heal_writes(self, volume: str) -> None:
        """Take ``fail_writes`` back."""
        with self._state.lock:
            self._state.write_budgets.setdefault(volume, Budget()).left_bytes = None

    def fail(
        self,
        port: str,
        method: str,
        error: Callable[[], WhimbrelError],
        *,
        times: int | None = 1,
        when: When = "before",
    ) -> Fault:
        """Let the next ``times`` calls (None: all until ``clear``) raise what ``error()`` makes.

        ``port`` is compute, volumes, points, networks, guest or cloud; ``"*"`` fits any port or method. With
        ``when="after"`` the work is done and only its answer is lost.
        """
        fault = Fault(port, method, error, times, when=when)
        self._state.log.faults.append(fault)
        return fault

    def delay(self, port: str, method: str, seconds: float, *, times: int | None = 1) -> Fault:
        """Let the next ``times`` calls take so much longer."""
        fault = Fault(port, method, None, times, delay_s=seconds)
        self._state.log.faults.append(fault)
        return fault

    def clear(self, fault: Fault | None = None) -> None:
        """Take a fault back, or all of them."""
        faults = self._state.log.faults
        for each in list(faults):
            if fault is None or each is fault:
                faults.remove(each)

    # --- what was asked of the cloud

    @property
    def calls(self) -> list[Call]:
        """All calls on the ports so far, in order; those that failed too."""
        return list(self._state.log.calls)

    def calls_of(self, *methods: str) -> list[str]:
        """``port.method`` of the calls so far, only of ``methods`` named like that (all when none is named)."""
        names = (f"{call.port}.{call.method}" for call in self.calls)
        return [name for name in names if not methods or name in methods]

    def leftovers(self, migration: str) -> list[str]:
        """Everything of a migration that the cloud still holds, looked up past the ports."""
        state = self._state
        with state.lock:
            found = [
                f"vm {vm.spec.name}" for vm in state.vms.values() if vm.made_by == migration and not vm.handed_over
            ]
            kept = {key for vm in state.vms.values() if vm.handed_over for key in vm.volumes.values()}
            found += [
                f"volume {each.name}"
                for each in state.volumes.values()
                if each.migration == migration and each.key not in kept
            ]
            found += [f"port {port}" for port, (_, _, owner) in state.ports.items() if owner == migration]
            found += [f"writer {key}" for key, writer in state.writers.items() if writer.migration == migration]
            held = [vm for vm in state.vms.values() if vm.held is not None and vm.held.migration == migration]
            found += [f"release {vm.spec.name}" for vm in held]
            for vm in state.vms.values():
                tokens = {token for key in vm.volumes for token in state.disk_of(vm, key).tokens()} | vm.tokens
                found += [f"token {token}" for token in tokens if owns_point(token, migration)]
                if vm.point is not None and vm.point_migration == migration:
                    found.append(f"point {vm.point.key}")
            found += [f"shadow of {vm} {disk}" for vm, disk, owner in state.shadows if owner == migration]
            return sorted(found)

    def wait_for_call(self, port: str, method: str, *, timeout_s: float = 30.0, any_args: str = ANY) -> Call:
        """The first call of this method, waited for. Raises TimeoutError."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            for call in self.calls:
                if (call.port, call.method) == (port, method) and (any_args == ANY or any_args in str(call.args)):
                    return call
            time.sleep(0.01)
        raise TimeoutError(f"{port}.{method} was not called within {timeout_s} s")


def _write_served(endpoint: NbdEndpoint, offset: int, data: bytes) -> None:
    device = open_device(endpoint.model_copy(update={"writable": True}))
    try:
        lane = device.lane()
        lane.submit_write(offset, memoryview(data))
        lane.reap()
        lane.flush()
    finally:
        device.close()


def _read_served(endpoint: NbdEndpoint) -> bytes:
    device = open_device(endpoint)
    try:
        content = bytearray(device.size_bytes)
        view = memoryview(content)
        lane = device.lane()
        for offset in range(0, len(view), GRAIN_BYTES):
            lane.submit_read(offset, view[offset : offset + GRAIN_BYTES])
            lane.reap()
        return bytes(content)
    finally:
        device.close()
