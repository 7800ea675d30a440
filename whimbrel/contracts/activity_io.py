"""Inputs and results of the activities: one frozen model in, one out."""

from __future__ import annotations

from typing import Literal

from whimbrel.model.endpoint import Frozen
from whimbrel.model.finding import PrecheckResult
from whimbrel.model.ledger import LedgerEntry
from whimbrel.model.plan import HealthPolicy, VmPlan
from whimbrel.model.point import DiskPoint, OpenPoint, WriterSession
from whimbrel.model.progress import VerifyRecord
from whimbrel.model.vm import Capabilities, Power, TargetDisk, TargetVm, VmSpec, VolumeSpec


class Done(Frozen):
    """An effect that has no result but itself."""

    note: str = ""


class VmInput(Frozen):
    """A VM of a cloud; ``ref`` also takes a name where the activity says so."""

    cloud: str
    ref: str
    migration: str = ""


class FenceInput(Frozen):
    """Keep a VM's owner from starting it."""

    cloud: str
    ref: str
    migration: str
    stopping: bool = False
    """It was asked to stop and may still be on; else it must be off."""


class VmResult(Frozen):
    """A VM read back, with what its cloud can do."""

    vm: VmSpec
    capabilities: Capabilities
    console_mark: str = ""
    """End of the console's log when this was read."""


class AnnouncedResult(Frozen):
    """A VM that is announced while its source runs; None where the cloud defines VMs on volumes that are finished."""

    made: VmResult | None = None


class PowerResult(Frozen):
    """A power state, read from the cloud."""

    power: Power
    fences: bool = False
    """The cloud can keep the VM's owner from starting it."""


class StartInput(Frozen):
    """Power a VM on."""

    cloud: str
    ref: str
    paused: bool = False


class AutostartInput(Frozen):
    """Set whether a VM starts with its host."""

    cloud: str
    ref: str
    enabled: bool


class EnsureVmInput(Frozen):
    """Define a VM at the target."""

    cloud: str
    vm: TargetVm


class RestoredResult(Frozen):
    """A source VM after it was given back."""

    power: Power
    same_definition: bool
    note: str = ""


class RestoreSourceInput(Frozen):
    """Give the source VM back as it was: ``spec`` was read before anything was touched."""

    cloud: str
    spec: VmSpec
    migration: str
    points: bool = True
    """Whether points may hold its disks; looking for them on a stopped VM takes a hypervisor process."""


class VolumesResult(Frozen):
    """The volumes, joined to the disks they stand for."""

    disks: tuple[TargetDisk, ...]


class EnsureVolumesInput(Frozen):
    """Volumes to be made for the disks of ``spec``."""

    cloud: str
    migration: str
    spec: VmSpec
    volumes: dict[str, VolumeSpec]


class RemoveVolumesInput(Frozen):
    """Volumes to be removed: (name, pool)."""

    cloud: str
    migration: str
    volumes: tuple[tuple[str, str], ...]


class OpenWriterInput(Frozen):
    """Target volumes to be opened for writing."""

    cloud: str
    migration: str
    key: str
    disks: tuple[TargetDisk, ...]


class OpenDiskWriterInput(Frozen):
    """Disks of a stopped VM to be opened for writing."""

    cloud: str
    migration: str
    key: str
    vm_ref: str
    disks: tuple[str, ...]


class WriterResult(Frozen):
    """An open session."""

    session: WriterSession


class FreezeWriterInput(Frozen):
    """What an open session's volumes hold, to be frozen for reading."""

    cloud: str
    migration: str
    key: str
    point: str


class ThawWriterInput(Frozen):
    """A frozen state of a session, to be given up."""

    cloud: str
    key: str
    point: str


class CloseWriterInput(Frozen):
    """A session to be closed."""

    cloud: str
    key: str


class OpenPointInput(Frozen):
    """A point in time to be opened."""

    cloud: str
    ref: str
    disks: tuple[str, ...]
    key: str
    migration: str
    since: str | None = None
    track: bool = True
    resting: bool = False
    """Nothing is read before the VM is off, and it is kept off until the point is closed."""


class RestingPointResult(Frozen):
    """The point that the disks are once their VM is off; None where they have to be opened then."""

    point: OpenPoint | None = None


class PointResult(Frozen):
    """The open point."""

    point: OpenPoint


class ClosePointInput(Frozen):
    """A point in time to be closed."""

    cloud: str
    ref: str
    key: str
    migration: str


class ForgetPointsInput(Frozen):
    """Tokens of a migration to be removed, but those in ``keep``."""

    cloud: str
    ref: str
    migration: str
    keep: tuple[str, ...] = ()


CopyKind = Literal["baseline", "delta", "full-compare", "final", "reverse"]


class CopyDiskInput(Frozen):
    """One disk to be copied from an open point to an open writer.

    ``epoch`` names the point: a copy of the same epoch goes on where an earlier attempt ended.
    """

    migration: str
    kind: CopyKind
    epoch: str
    source: DiskPoint
    target: DiskPoint
    fresh_target: bool = False
    by_hash: bool = False
    """Find what changed by comparing block hashes with the manifest, whatever tracking says."""
    limit_bytes_per_s: float | None = None
    lanes: int = 2
    unchanged_sample: float = 0.0
    mark_progress: bool = False


class CopyDiskResult(Frozen):
    """What a copy did. ``digest`` covers all that it wrote, read back from the target."""

    disk: str
    changed_bytes: int
    read_bytes: int
    sent_bytes: int
    zeroed_bytes: int
    skipped_bytes: int
    elapsed_s: float
    digest: str
    lied_blocks: int = 0


class CompareDiskInput(Frozen):
    """Two ends to be compared byte for byte (or a stated sample of them)."""

    migration: str
    disk: str
    source: DiskPoint
    target: DiskPoint
    mode: Literal["full", "sampled"]
    sample_fraction: float
    lanes: int = 2
    limit_bytes_per_s: float | None = None
    frozen_before_delta: bool = False
    """The target's point is older than the last delta: what that brought is held against the digests of its proof."""


class CompareDiskResult(Frozen):
    """Outcome of a comparison; mismatches are in the record, not an error here."""

    record: VerifyRecord


class ManifestInput(Frozen):
    """A migration's manifests on the mover."""

    migration: str


class HealthInput(Frozen):
    """A rebuilt VM and the checks it must pass."""

    cloud: str
    ref: str
    policy: HealthPolicy
    console_mark: str = ""
    """End of the console's log before the start; only what comes after it counts."""


class HealthResult(Frozen):
    """One line per check that passed."""

    passed: tuple[str, ...]


class PrecheckRequest(Frozen):
    """Facts to be gathered and judged."""

    plan: VmPlan
    stage: Literal["plan", "start", "cutover"] = "start"
    probe: bool = True
    migration: str = ""
    link_hint: float | None = None
    """Bytes per second measured by the rounds so far; stands in where nothing is probed."""
    dirty_hint: float | None = None
    drill: bool = False


class PrecheckAnswer(Frozen):
    """The findings."""

    result: PrecheckResult
    copies_drill: bool = False
    """A drill of this plan copies all data before it boots."""


class ReadBackInput(Frozen):
    """Ledger entries whose objects are looked for, and both VMs where points may hang."""

    migration: str
    entries: tuple[LedgerEntry, ...]
    source: str
    target: str
    source_ref: str
    target_ref: str | None = None
    points: bool = True
    """Whether the mode makes points: looking for them on a stopped VM takes a hypervisor process."""
    vm: VmSpec | None = None
    """The source VM whose disks may have had shadows; None: the migration makes none."""


class ReadBackResult(Frozen):
    """What was found: entries with their fate read back, and leftovers that must not be there, one line each."""

    entries: tuple[LedgerEntry, ...]
    leftovers: tuple[str, ...]
