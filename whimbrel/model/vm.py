"""A virtual machine as a cloud shows it, and as it is to be rebuilt elsewhere."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from whimbrel.model.endpoint import Frozen, NbdEndpoint


class Power(StrEnum):
    """What a VM is doing, read back from its cloud."""

    RUNNING = "running"
    PAUSED = "paused"
    OFF = "off"
    CRASHED = "crashed"
    SUSPENDED = "suspended"
    UNKNOWN = "unknown"


Firmware = Literal["bios", "uefi", "uefi-secure"]
DiskFormat = Literal["raw", "qcow2", "qcow2-v2", "other"]


class DiskSpec(Frozen):
    """One disk of a VM; ``key`` (``vda``) is unique in its VM and stays the same at the target."""

    key: str
    size_bytes: int
    format: DiskFormat
    bus: str = "virtio"
    pool: str | None = None
    """Storage pool or volume type it lies in; None when it lies in none that the cloud knows."""
    location: str = ""
    """Path or id in its cloud."""
    serial: str | None = None
    boot_order: int | None = None
    read_only: bool = False
    shareable: bool = False
    backing_chain: tuple[str, ...] = ()
    """Images below the top one, nearest first."""
    allocated_bytes: int | None = None
    trackable: bool = False
    """Whether this disk's format can carry change tracking that survives a power cycle."""


class NicSpec(Frozen):
    """One network card. ``network`` is the cloud's own name of what it is plugged into."""

    key: str
    mac: str
    network: str
    model: str = "virtio"
    addresses: tuple[str, ...] = ()
    link_up: bool = True


class VmSpec(Frozen):
    """A VM read from its cloud; ``ref`` is the id that every port takes, ``definition`` the driver's own form of it."""

    ref: str
    name: str
    power: Power
    vcpus: int
    memory_bytes: int
    arch: str = "x86_64"
    machine: str = ""
    firmware: Firmware = "bios"
    disks: tuple[DiskSpec, ...] = ()
    nics: tuple[NicSpec, ...] = ()
    definition: str = ""
    """Opaque to all but drivers of ``definition_kind``; carries what the neutral fields do not."""
    definition_kind: str = ""
    definition_digest: str = ""
    """Digest of the persistent definition; equal before a migration and after its rollback."""
    size_name: str = ""
    """Name of its size (flavor), where the cloud has sizes."""
    autostart: bool = False
    owner_migration: str | None = None
    """Migration id in our tag, if the object is tagged as made by us."""

    def disk(self, key: str) -> DiskSpec:
        """The disk with this key. Raises KeyError."""
        for disk in self.disks:
            if disk.key == key:
                return disk
        raise KeyError(key)


class VolumeSpec(Frozen):
    """A volume to be made: ``name`` is its key and carries the migration's id."""

    name: str
    pool: str
    size_bytes: int
    format: DiskFormat
    migration: str


class VolumeRef(Frozen):
    """A volume that exists."""

    name: str
    pool: str
    size_bytes: int
    format: DiskFormat
    location: str


class TargetDisk(Frozen):
    """A disk of the VM to be rebuilt: the source's traits on a target volume."""

    spec: DiskSpec
    volume: VolumeRef
    served: NbdEndpoint | None = None
    """The VM runs on this export, not on the volume itself: a streaming server that fills the volume."""


class TargetVm(Frozen):
    """The VM to be rebuilt at the target, NICs already mapped; ``source`` gives everything that is kept."""

    migration: str
    name: str
    source: VmSpec
    disks: tuple[TargetDisk, ...]
    nics: tuple[NicSpec, ...]
    size: str | None = None
    """Name of the size (flavor) that it gets; None: the one that fits best."""
    zone: str | None = None
    """Availability zone; None: the cloud's choice."""
    group: str | None = None
    """Name of the server group that it joins."""


class Capabilities(Frozen):
    """What a driver can do on this cloud; checked by the prechecks, never by isinstance."""

    kind: str
    roles: frozenset[Literal["source", "target"]]
    live_points: bool = False
    """A point in time of a running VM can be opened."""
    change_tracking: bool = False
    start_paused: bool = False
    """A VM can be started with its CPUs stopped, so that a point in time is taken before its first write."""
    points_outlive_start: bool = False
    """A point in time of a VM that is off can be read on while the VM runs; it is no fence against a start either."""
    rests: bool = False
    """The disks of a VM that is off are a point in time as they are, which can be opened before it is stopped."""
    announces: bool = False
    """``ComputePort.ensure_vm`` only reserves what the VM is to have, so it may come while its volumes are written."""
    serve_disks: bool = False
    """A VM can run on disks that are fed while it runs, and be put on its own volumes for good (``ServingPort``)."""
    imports: bool = False
    """They are fed by an import of the cloud's storage (``ImportPort``), not by a server that writes the volume."""
    no_streaming: str = ""
    """Why ``serve_disks`` is False, where the cloud could do it if it were set up for it."""
    shadows: bool = False
    """Writes at the target can be kept in overlays over the stopped VM's disks (``ShadowPort``)."""
    fences: bool = False
    """A VM that is off can be kept from being started by its owner (``ComputePort.fence``)."""
    handover: bool = False
    """Volumes can be released and adopted without copying them (``HandoverPort``)."""
    guest_agent: bool = False
    console: bool = False
    disk_formats: tuple[DiskFormat, ...] = ("raw",)
    version: str = ""
