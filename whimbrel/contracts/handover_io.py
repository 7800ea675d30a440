"""Inputs and results of the activities that hand disks over: one frozen model in, one out."""

from __future__ import annotations

from whimbrel.model.endpoint import Frozen
from whimbrel.model.handover import StoredDisk
from whimbrel.model.progress import VerifyRecord
from whimbrel.model.vm import TargetDisk, TargetVm, VmSpec


class HandoverInput(Frozen):
    """Both clouds, the VM as it was read before anything was touched, and its disks on the storage."""

    source: str
    target: str
    spec: VmSpec
    pools: dict[str, str]
    """Source pool -> target pool, for every pool that an image of the VM may lie in."""
    migration: str
    turn: int = 0
    disks: tuple[StoredDisk, ...] = ()


class StoredResult(Frozen):
    """Disks as the storage has them."""

    disks: tuple[StoredDisk, ...]


class DefineInput(Frozen):
    """The VM to be defined at the target, as long as the source has its disks released in this turn."""

    handover: HandoverInput
    vm: TargetVm


class SameVolumesInput(Frozen):
    """A target VM that must be on the very volumes that the source has given."""

    handover: HandoverInput
    target_ref: str
    disks: tuple[TargetDisk, ...]


class SameVolumesResult(Frozen):
    """One record per disk; what is not so is an error, not a record."""

    records: tuple[VerifyRecord, ...]


class ReclaimedResult(Frozen):
    """A source VM that has its disks again; ``ours`` is False when another migration has them."""

    ours: bool
    note: str = ""


class RemoveMarkersInput(Frozen):
    """A note that a precheck may have left in a pool of the source."""

    cloud: str
    name: str
