"""What the in-memory clouds hold: process-wide, found by the cloud's name."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any

from drivers.memory.calls import CallLog
from drivers.memory.disk import Disk
from drivers.memory.export import Budget, withdraw
from whimbrel.errors import Conflict, NotFound
from whimbrel.model.endpoint import NbdEndpoint
from whimbrel.model.facts import NetworkFacts
from whimbrel.model.point import OpenPoint, WriterSession
from whimbrel.model.vm import Capabilities, DiskFormat, DiskSpec, Power, VmSpec

if TYPE_CHECKING:
    from drivers.memory.shadows import Overlay

GIB = 1 << 30
VolumeId = tuple[str, str]
"""Pool and name."""

CAPABILITIES = Capabilities(
    kind="memory",
    roles=frozenset({"source", "target"}),
    live_points=True,
    change_tracking=True,
    start_paused=True,
    serve_disks=True,
    shadows=True,
    handover=True,
    guest_agent=True,
    console=True,
    disk_formats=("raw", "qcow2"),
    version="1",
)


@dataclass
class Volume:
    """A volume; ``migration`` is None for those that no migration made."""

    pool: str
    name: str
    disk: Disk
    migration: str | None = None
    file: Path | None = None
    """What a streaming server fills, once its path was asked for."""

    @property
    def key(self) -> VolumeId:
        """What it is found by."""
        return (self.pool, self.name)


@dataclass
class Pool:
    """A pool in which a volume takes its full size, so that room runs out when the arithmetic says so."""

    name: str
    capacity_bytes: int
    active: bool = True


@dataclass
class StopPlan:
    """How a guest answers when it is asked to stop: after a time, after so many looks at its power, or never."""

    after_s: float | None = 0.0
    after_looks: int = 0


@dataclass
class Guest:
    """What runs inside a VM, as far as the ports can tell."""

    agent: bool = False
    hostname: str | None = None
    os: str | None = None
    addresses: tuple[str, ...] = ()
    console: str = ""
    quiesced: bool = False


@dataclass
class Held:
    """What a released VM had: its disks and volumes, and who has released them, in which turn."""

    migration: str
    turn: int
    disks: tuple[DiskSpec, ...]
    volumes: dict[str, VolumeId]


@dataclass
class Vm:
    """A defined VM: its neutral traits, its volumes by disk key, and what becomes of it."""

    spec: VmSpec
    volumes: dict[str, VolumeId]
    power: Power = Power.OFF
    autostart: bool = False
    made_by: str | None = None
    handed_over: bool = False
    tokens: set[str] = field(default_factory=set)
    guest: Guest = field(default_factory=Guest)
    stop_plan: StopPlan = field(default_factory=StopPlan)
    stop_due: tuple[float, int] | None = None
    """Monotonic time and number of looks left, once a stop was asked for that will be obeyed."""
    foreign_job: str | None = None
    point: OpenPoint | None = None
    point_migration: str = ""
    rest: Callable[[], None] | None = None
    """Shows the point's readers the disks as the VM leaves them."""
    served: dict[str, NbdEndpoint] = field(default_factory=dict)
    """Disk key -> export that the VM runs on in place of the volume."""
    fenced_by: str | None = None
    """The migration that keeps the VM from being started."""
    held: Held | None = None
    """Set while the disks are released: the VM has none then."""

    @property
    def on(self) -> bool:
        """Whether a hypervisor process holds its disks."""
        return self.power in {Power.RUNNING, Power.PAUSED}


@dataclass
class Writer:
    """An open writer session and the volumes it holds."""

    session: WriterSession
    volumes: dict[str, VolumeId]
    migration: str
    shadow: bool = False
    """It writes overlays; the volumes themselves may be read by a point meanwhile."""
    frozen: OpenPoint | None = None
    """What is read of an earlier instant while the session goes on."""


class CloudState:
    """All objects of one in-memory cloud; hold ``lock`` to look at or change several at once."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lock = RLock()
        self.log = CallLog()
        self.serial = 0
        self._empty()

    def clear(self) -> None:
        """Forget all objects, faults and calls; endpoints stop answering. Objects made for the cloud stay usable."""
        with self.lock:
            for vm in self.vms.values():
                self.drop_point(vm)
            for key in list(self.writers):
                self.drop_writer(key)
            self.log.clear()
            if self._files is not None:
                self._files.cleanup()
            self._empty()

    def _empty(self) -> None:
        self.vms: dict[str, Vm] = {}
        self.volumes: dict[VolumeId, Volume] = {}
        self.pools: dict[str, Pool] = {"default": Pool("default", GIB)}
        self.networks: dict[str, NetworkFacts] = {"default": NetworkFacts(name="default", mtu=1500)}
        self.ports: dict[str, tuple[str, str, str]] = {}
        """Port id -> network, MAC, migration."""
        self.writers: dict[str, Writer] = {}
        self.shadows: dict[tuple[str, str, str], Overlay] = {}
        """VM ref, disk key and migration -> overlay."""
        self._files: tempfile.TemporaryDirectory[str] | None = None
        self.capabilities = CAPABILITIES
        self.on_run: dict[str, Callable[[str], None]] = {}
        """VM name -> what its guest does when its CPUs begin to run; called with the VM's ref."""
        self.stop_plans: dict[str, StopPlan] = {}
        """VM name -> plan of a VM that is not defined yet."""
        self.write_budgets: dict[str, Budget] = {}
        """Volume name -> bytes that may be written before writes fail."""
        self.sharers: dict[str, list[CloudState]] = {}
        """Pool -> the other clouds that have the same storage behind a pool of this name."""
        self.image_locks = True
        """Whether a VM is kept from opening a volume that a VM of any cloud has open, as QEMU's locks do."""
        self.double_opens: list[str] = []
        """Every time that a volume was open in two VMs at once: must stay empty."""
        self.source_patch: dict[str, dict[str, Any]] = {}
        self.target_patch: dict[str, Any] = {}

    def vm(self, ref: str) -> Vm:
        """The VM, its power brought up to date. Raises NotFound."""
        found = self.vms.get(ref)
        if found is None:
            raise NotFound(f"no VM {ref} on cloud {self.name}", cloud=self.name, vm=ref)
        self.settle(found)
        return found

    def find(self, name_or_ref: str) -> Vm:
        """The VM by ref or name. Raises NotFound, Conflict."""
        if name_or_ref in self.vms:
            return self.vm(name_or_ref)
        fitting = [vm for vm in self.vms.values() if vm.spec.name == name_or_ref]
        if len(fitting) > 1:
            refs = ", ".join(sorted(vm.spec.ref for vm in fitting))
            raise Conflict(f"{len(fitting)} VMs on cloud {self.name} are named {name_or_ref}", vms=refs)
        return self.vm(fitting[0].spec.ref if fitting else name_or_ref)

    def disk_of(self, vm: Vm, key: str) -> Disk:
        """The disk of a VM. Raises NotFound."""
        if key not in vm.volumes:
            raise NotFound(f"VM {vm.spec.name} has no disk {key}", vm=vm.spec.ref, disk=key)
        return self.volumes[vm.volumes[key]].disk

    def settle(self, vm: Vm) -> None:
        """Let a stop that was asked for happen if its time has come."""
        if vm.stop_due is None or vm.power is not Power.RUNNING:
            return
        due, looks = vm.stop_due
        if looks > 0:
            vm.stop_due = (due, looks - 1)
        elif time.monotonic() >= due:
            self.switch_off(vm)

    def switch_off(self, vm: Vm, power: Power = Power.OFF) -> None:
        """End the VM's process; a live point is served by it and goes with it."""
        vm.stop_due = None
        vm.guest.quiesced = False
        if vm.point is not None and vm.point.kind == "live":
            self.drop_point(vm)
        vm.power = power
        if vm.rest is not None:
            vm.rest()

    def drop_point(self, vm: Vm) -> None:
        """Stop serving the VM's point."""
        if vm.point is not None:
            for disk in vm.point.disks:
                withdraw(disk.endpoint)
            vm.point, vm.point_migration, vm.rest = None, "", None

    def drop_writer(self, key: str) -> None:
        """Stop serving a writer session; one that is not there is fine."""
        writer = self.writers.pop(key, None)
        if writer is not None:
            self.thaw(writer)
            for disk in writer.session.disks:
                withdraw(disk.endpoint)

    @staticmethod
    def thaw(writer: Writer) -> None:
        """Stop serving the frozen point of a session, if it has one."""
        if writer.frozen is not None:
            for disk in writer.frozen.disks:
                withdraw(disk.endpoint)
            writer.frozen = None

    def writer_on(self, volumes: set[VolumeId], *, shadows: bool = True) -> str | None:
        """Key of a writer session (shadow sessions too, unless told otherwise) that holds one of ``volumes``."""
        for key, held in self.writers.items():
            if volumes & set(held.volumes.values()) and (shadows or not held.shadow):
                return key
        return None

    def user_of(self, volume: VolumeId, *, running: bool) -> Vm | None:
        """A VM that has the volume: any defined one, or only one that is on."""
        for vm in self.vms.values():
            self.settle(vm)
            if volume in vm.volumes.values() and (vm.on or not running):
                return vm
        return None

    def used_bytes(self, pool: str) -> int:
        """Room taken in a pool."""
        return sum(volume.disk.size_bytes for volume in self.volumes.values() if volume.pool == pool)

    def add_volume(
        self, pool: str, name: str, size_bytes: int, disk_format: DiskFormat, migration: str | None
    ) -> Volume:
        """Put a zeroed volume into a pool, without looking at the room there."""
        volume = Volume(pool, name, Disk(size_bytes, disk_format), migration)
        for cloud in (self, *self.sharers.get(pool, ())):
            cloud.volumes[volume.key] = volume
        return volume

    def remove_volume(self, volume: VolumeId) -> None:
        """Take a volume and its file away, for every cloud that sees its storage."""
        file = self.volumes[volume].file
        for cloud in (self, *self.sharers.get(volume[0], ())):
            del cloud.volumes[volume]
        if file is not None:
            file.unlink(missing_ok=True)

    def new_file(self) -> Path:
        """An empty file that lives as long as the cloud's content."""
        if self._files is None:
            self._files = tempfile.TemporaryDirectory(prefix="whimbrel-memory-")
        path = Path(self._files.name) / f"{self.next_serial()}.raw"
        path.touch()
        return path

    def openers(self, volume: VolumeId) -> list[Vm]:
        """The VMs, on any cloud that sees the storage, that have the volume open now."""
        clouds = (self, *self.sharers.get(volume[0], ()))
        found = []
        for cloud in clouds:
            for vm in cloud.vms.values():
                cloud.settle(vm)
                if vm.on and volume in vm.volumes.values() and cloud.volumes[volume] is self.volumes[volume]:
                    found.append(vm)
        return found

    def note_openers(self, vm: Vm) -> None:
        """Write down whatever is open twice, now that ``vm`` was switched on."""
        for volume in vm.volumes.values():
            names = [other.spec.name for other in self.openers(volume)]
            if len(names) > 1:
                self.double_opens.append(f"{volume[1]} is open in {' and '.join(names)}")

    def location(self, volume: VolumeId) -> str:
        """The id that ``DiskSpec.location`` and ``VolumeRef.location`` show."""
        return f"{self.name}:{volume[0]}/{volume[1]}"

    def next_serial(self) -> int:
        """A number not given before on this cloud."""
        with self.lock:
            self.serial += 1
            return self.serial

    def now(self) -> datetime:
        """The cloud's clock."""
        return datetime.now(UTC)


_CLOUDS: dict[str, CloudState] = {}
_CLOUDS_LOCK = RLock()


def cloud_state(name: str) -> CloudState:
    """The state of the cloud of this name, made when first asked for."""
    with _CLOUDS_LOCK:
        if name not in _CLOUDS:
            _CLOUDS[name] = CloudState(name)
        return _CLOUDS[name]
