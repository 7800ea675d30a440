"""Inputs and results of the workflows."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from whimbrel.contracts.lending import CopyWanted, Loan
from whimbrel.model.endpoint import Frozen
from whimbrel.model.finding import Finding
from whimbrel.model.forecast import Forecast, RoundRecord
from whimbrel.model.ledger import Ledger
from whimbrel.model.plan import Mode, VmPlan
from whimbrel.model.point import WriterSession
from whimbrel.model.progress import DiskProgress, Phase, StepRecord, Trouble
from whimbrel.model.vm import TargetDisk, VmSpec

UndoKind = Literal[
    "discard-manifests",
    "remove-volumes",
    "close-writer",
    "forget-points",
    "restore-source",
    "settle-shadow",
    "stop-stream",
    "give-up-imports",
    "remove-target-vm",
    "remove-markers",
    "reclaim-source",
    "abandon-disks",
    "stop-target",
    "return-copy",
]


class UndoStep(Frozen):
    """One step to be undone, pushed before the step runs; ``disk`` or other detail where the kind needs it."""

    kind: UndoKind
    detail: str = ""


class MigrationState(Frozen):
    """Everything that a migration carries over continue-as-new. Bounded: rounds and steps keep their newest entries."""

    migration: str
    started_at: datetime
    phase: Phase
    spec: VmSpec
    disks: tuple[TargetDisk, ...] = ()
    writer: WriterSession | None = None
    base_token: str | None = None
    base_taken_at: datetime | None = None
    point_serial: int = 0
    rounds: tuple[RoundRecord, ...] = ()
    rounds_done: int = 0
    bytes_read: int = 0
    bytes_sent: int = 0
    steps: tuple[StepRecord, ...] = ()
    undo: tuple[UndoStep, ...] = ()
    ledger: Ledger = Ledger()
    forecasts: tuple[Forecast, ...] = ()
    findings: tuple[str, ...] = ()
    progress: tuple[DiskProgress, ...] = ()
    trouble: Trouble | None = None
    paused: bool = False
    cutover_asked: bool = False
    bandwidth_bytes_per_s: float | None = None
    dirty_hint: float | None = None
    link_hint: float | None = None
    retreated: bool = False
    """A cutover was taken back: the next one waits for the operator."""
    wanted: CopyWanted | None = None
    loan: Loan | None = None
    """The drill that waits for the target copy, and the one that has it."""
    returns: tuple[str, ...] = ()


class MigrationInput(Frozen):
    """Input of every mode's workflow; ``state`` only after continue-as-new."""

    plan: VmPlan
    state: MigrationState | None = None


class DrillInput(MigrationInput):
    """Input of the ``Drill`` workflow."""

    from_copy: bool = False
    """Rehearse what the plan's running migration has copied, not the source."""


class PrecheckInput(Frozen):
    """Input of the ``Precheck`` workflow: read-only, whatever it finds."""

    plan: VmPlan
    probe: bool = True
    """Try the data path with real bytes (makes and removes a small volume)."""


class PrecheckReport(Frozen):
    """Result of the ``Precheck`` workflow."""

    vm: str
    findings: tuple[Finding, ...]
    read_bytes_per_s: float | None = None
    write_bytes_per_s: float | None = None

    def blocked(self) -> bool:
        """Whether any finding forbids the migration."""
        return any(finding.blocks for finding in self.findings)


class InventoryInput(Frozen):
    """Input of the ``Inventory`` workflow: one page of a cloud's VMs."""

    cloud: str
    after: str = ""
    """Name of the last VM of the page before."""
    limit: int = 500


class VmSummary(Frozen):
    """A VM as ``whimbrel plan`` lists it."""

    name: str
    ref: str
    power: str
    vcpus: int
    memory_bytes: int
    disk_bytes: int
    disks: int
    pools: tuple[str, ...]
    networks: tuple[str, ...]
    suggested: Mode
    why: str


class InventoryResult(Frozen):
    """One page, ordered by name; ``more`` tells whether another follows."""

    vms: tuple[VmSummary, ...]
    pools: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    more: bool = False


INVENTORY = "Inventory"
