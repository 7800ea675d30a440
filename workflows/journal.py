"""What a migration remembers: carried over continue-as-new, shown by the status query and in the Temporal UI."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from temporalio import workflow

from whimbrel.contracts.lending import CopyWanted, Loan
from whimbrel.contracts.migration import MigrationState, UndoStep
from whimbrel.contracts.names import SA_ATTENTION, SA_OUTAGE, SA_PERCENT, SA_PHASE
from whimbrel.model.drill import DrillRecord
from whimbrel.model.forecast import Forecast, RoundRecord
from whimbrel.model.handover import StoredDisk
from whimbrel.model.ledger import Fate, Ledger, LedgerEntry, ObjectKind
from whimbrel.model.point import OpenPoint, WriterSession
from whimbrel.model.progress import DiskProgress, Outage, Phase, StepRecord, Trouble, VerifyRecord
from whimbrel.model.stream import StreamFigures
from whimbrel.model.vm import Capabilities, TargetDisk, VmSpec
from workflows import attributes

MAX_STEPS = 200
MAX_ROUNDS = 100
MAX_FORECASTS = 200


@dataclass
class Journal:
    """Mutable during a run; ``freeze`` and ``thaw`` turn it into contract values and back."""

    migration: str
    started_at: datetime
    phase: Phase = Phase.PRECHECK
    resumed: bool = False
    spec: VmSpec | None = None
    capabilities: Capabilities | None = None
    disks: tuple[TargetDisk, ...] = ()
    writer: WriterSession | None = None
    base_token: str | None = None
    base_taken_at: datetime | None = None
    point_serial: int = 0
    rounds: list[RoundRecord] = field(default_factory=list)
    rounds_done: int = 0
    bytes_read: int = 0
    bytes_sent: int = 0
    steps: list[StepRecord] = field(default_factory=list)
    undo: list[UndoStep] = field(default_factory=list)
    ledger: Ledger = field(default_factory=Ledger)
    forecasts: list[Forecast] = field(default_factory=list)
    findings: tuple[str, ...] = ()
    verify: tuple[VerifyRecord, ...] = ()
    progress: dict[str, DiskProgress] = field(default_factory=dict)
    outage: Outage | None = None
    trouble: Trouble | None = None
    dirty_hint: float | None = None
    link_hint: float | None = None
    target_ref: str | None = None
    target_ran: bool = False
    target_token: str | None = None
    source_point: OpenPoint | None = None
    target_point: OpenPoint | None = None
    frozen_before_delta: bool = False
    """That point was taken before the last delta came."""
    source_stopped: bool = False
    retreated: bool = False
    confirmed: bool = False
    """The commit has begun: there is no way back from here."""
    health: tuple[str, ...] = ()
    console_mark: str = ""
    copying_epoch: str = ""
    """The state that the newest copy was made from."""
    confirm_deadline: datetime | None = None
    restored: bool | None = None
    writes_kept_bytes: int | None = None
    stored: tuple[StoredDisk, ...] = ()
    """Mode dual-attach: the VM's disks on the storage that both clouds see."""
    turn: int = 0
    """Numbers the releases of the source's disks."""
    lost_to_another: bool = False
    """Another migration was quicker to take the source's disks."""
    epoch: str = ""
    """Names the state that is streamed."""
    shadow: WriterSession | None = None
    imports: bool = False
    """The target's volumes are imported by its storage, from the servers."""
    stream: StreamFigures | None = None
    stream_slow: bool = False
    """Misses wait longer than the plan allows; the background yields."""
    hydrated_at: datetime | None = None
    drill: DrillRecord | None = None
    switched_at: datetime | None = None
    shadow_kept: bool = False
    """The target has run protected: a rollback brings what the shadow holds into the source's disks."""
    bringing_back: bool = False
    wanted: CopyWanted | None = None
    """A drill waits for the target copy."""
    loan: Loan | None = None
    """A drill reads the target copy, or has it still."""
    returns: tuple[str, ...] = ()
    """Drills that have given it back, the newest last."""
    source_half_written: bool = False
    """The target's writes are on their way into the source's disks: until all are there, only the target is whole."""

    @property
    def vm(self) -> VmSpec:
        """The source VM as it was read before anything was touched."""
        assert self.spec is not None, "inspected by the first step"
        return self.spec

    def enter(self, phase: Phase) -> None:
        """Move to a phase and publish it."""
        self.phase = phase
        attributes.publish({SA_PHASE: phase.value, SA_ATTENTION: phase is Phase.ATTENTION})

    def next_serial(self) -> int:
        """Number of the next point in time."""
        self.point_serial += 1
        return self.point_serial

    def begin_step(self, name: str) -> None:
        """Record that a step begins."""
        self.steps.append(StepRecord(name=name, started_at=workflow.now()))
        del self.steps[:-MAX_STEPS]

    def end_step(self, outcome: Literal["done", "failed", "undone"], detail: str = "") -> None:
        """Record how the step that runs has ended."""
        running = [index for index, step in enumerate(self.steps) if step.outcome == "running"]
        if running:
            index = running[-1]
            update = {"ended_at": workflow.now(), "outcome": outcome, "detail": detail[:500]}
            self.steps[index] = self.steps[index].model_copy(update=update)

    def note(self, cloud: str, kind: ObjectKind, name: str, fate: Fate, owner: str = "") -> None:
        """Write an object down; INTENDED before the activity that makes it."""
        self.ledger = self.ledger.note(
            LedgerEntry(cloud=cloud, kind=kind, name=name, fate=fate, noted_at=workflow.now(), owner=owner)
        )

    def push(self, step: UndoStep) -> None:
        """Remember how to undo what comes next; the same undo is kept once."""
        if step not in self.undo:
            self.undo.append(step)

    def push_last(self, step: UndoStep) -> None:
        """The same for a step that is to be undone first, also when it was pushed before."""
        self.drop_undo(step)
        self.undo.append(step)

    def drop_undo(self, step: UndoStep) -> None:
        """There is nothing to undo after all."""
        self.undo = [other for other in self.undo if other != step]

    def add_round(self, record: RoundRecord) -> None:
        """Keep a finished round."""
        self.rounds.append(record)
        del self.rounds[:-MAX_ROUNDS]
        self.rounds_done += 1
        self.bytes_read += record.read_bytes
        self.bytes_sent += record.sent_bytes

    def add_forecast(self, forecast: Forecast) -> None:
        """Keep a forecast and publish it."""
        self.forecasts.append(forecast)
        del self.forecasts[:-MAX_FORECASTS]
        attributes.publish({SA_OUTAGE: round(forecast.outage_s, 1)})

    def set_progress(self, progress: DiskProgress) -> None:
        """Keep a disk's progress and publish the percent of all disks together."""
        self.progress[progress.disk] = progress
        total = sum(disk.total_bytes for disk in self.progress.values())
        done = sum(disk.done_bytes for disk in self.progress.values())
        attributes.publish({SA_PERCENT: int(100 * done / total) if total else 100})

    def freeze(self, *, paused: bool, cutover: bool, bandwidth: float | None) -> MigrationState:
        """This journal as a value for continue-as-new; only called between rounds."""
        return MigrationState(
            migration=self.migration,
            started_at=self.started_at,
            phase=self.phase,
            spec=self.vm,
            disks=self.disks,
            writer=self.writer,
            base_token=self.base_token,
            base_taken_at=self.base_taken_at,
            point_serial=self.point_serial,
            rounds=tuple(self.rounds),
            rounds_done=self.rounds_done,
            bytes_read=self.bytes_read,
            bytes_sent=self.bytes_sent,
            steps=tuple(self.steps[-50:]),
            undo=tuple(self.undo),
            ledger=self.ledger,
            forecasts=tuple(self.forecasts),
            findings=self.findings,
            progress=tuple(self.progress.values()),
            trouble=self.trouble,
            paused=paused,
            cutover_asked=cutover,
            bandwidth_bytes_per_s=bandwidth,
            dirty_hint=self.dirty_hint,
            link_hint=self.link_hint,
            retreated=self.retreated,
            wanted=self.wanted,
            loan=self.loan,
            returns=self.returns,
        )

    @classmethod
    def thaw(cls, state: MigrationState) -> Journal:
        """The journal of the run before."""
        return cls(
            migration=state.migration,
            started_at=state.started_at,
            phase=state.phase,
            resumed=True,
            spec=state.spec,
            disks=state.disks,
            writer=state.writer,
            base_token=state.base_token,
            base_taken_at=state.base_taken_at,
            point_serial=state.point_serial,
            rounds=list(state.rounds),
            rounds_done=state.rounds_done,
            bytes_read=state.bytes_read,
            bytes_sent=state.bytes_sent,
            steps=list(state.steps),
            undo=list(state.undo),
            ledger=state.ledger,
            forecasts=list(state.forecasts),
            findings=state.findings,
            progress={disk.disk: disk for disk in state.progress},
            trouble=state.trouble,
            dirty_hint=state.dirty_hint,
            link_hint=state.link_hint,
            retreated=state.retreated,
            wanted=state.wanted,
            loan=state.loan,
            returns=state.returns,
        )
