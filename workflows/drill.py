"""Drill: the migration rehearsed on an isolated network, from a point in time of the VM that goes on running.

Everything that it makes is taken down again, whatever happens; what stays is the record and the guest's reads.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

from temporalio import workflow
from temporalio.exceptions import ApplicationError, FailureError

from activities.compute import ComputeActivities
from activities.drill import DrillActivities
from activities.stream import StreamActivities
from whimbrel.contracts import failure
from whimbrel.contracts.activity_io import StartInput
from whimbrel.contracts.lending import (
    COPY_LENT_SIGNAL,
    COPY_RECALLED_SIGNAL,
    COPY_WANTED_SIGNAL,
    CopyLent,
    CopyRecalled,
    CopyWanted,
)
from whimbrel.contracts.migration import DrillInput, UndoStep
from whimbrel.contracts.names import DRILL
from whimbrel.contracts.stream_io import StreamInput
from whimbrel.errors import PreconditionFailed
from whimbrel.model.drill import DrillRecord
from whimbrel.model.naming import point_key, workflow_id
from whimbrel.model.plan import HealthPolicy, VmPlan, Window
from whimbrel.model.point import OpenPoint
from whimbrel.model.progress import MigrationReport, Phase
from workflows.calls import call
from workflows.closing import RollbackWanted, check_health
from workflows.copying import close_point, copy_disks, epoch, open_point, open_writer, run_round
from workflows.defining import rebuild
from workflows.hydrating import hydrate, prove
from workflows.migration import Ending, Migration
from workflows.opening import precheck, prepare
from workflows.taking_over import serve
from workflows.undo import unwind
from workflows.verifying import compare_all

LOAN_WAIT = timedelta(hours=2)
"""So long a drill waits for a round of the migration to end."""


def rehearsed(plan: VmPlan) -> VmPlan:
    """The plan of a drill: streaming, under another name, on the isolated networks, with the drill's checks.

    One that copies instead (``Course.copies_drill``) becomes ``cold``: that is how its volumes are made.
    """
    health = HealthPolicy(
        checks=(*plan.health.checks, *plan.drill.checks), timeout_s=plan.drill.timeout_s, on_failure="rollback"
    )
    return plan.model_copy(
        update={
            "mode": "streaming",
            "target_name": (plan.target_name or plan.vm) + plan.drill.name_suffix,
            "networks": plan.drill.networks,
            "placement": plan.placement.model_copy(update={"group": None}),
            "disk_format": "raw" if plan.disk_format == "raw" else "keep",
            "health": health,
            "window": Window(),
            "keep_writes": False,
            "require_drill_s": None,
            "stream": plan.stream.model_copy(update={"protect": "none", "precopy": False}),
        }
    )


@workflow.defn(name=DRILL)
class Drill(Migration):
    """One VM's rehearsal; its source is read and nothing else."""

    @workflow.init
    def __init__(self, start: DrillInput) -> None:
        super().__init__(start.model_copy(update={"plan": rehearsed(start.plan)}))
        self.course.drill = True
        self.course.from_copy = start.from_copy
        self._lent: OpenPoint | None = None
        self._recalled: str | None = None
        self._reading = False
        self._started_at: datetime | None = None
        self._answered_at: datetime | None = None
        self._frozen_at: datetime | None = None

    @workflow.run
    async def run(self, start: DrillInput) -> MigrationReport:
        """Rehearse, take everything down, report."""
        del start
        return await self.carry_out()

    async def steps(self) -> Ending:
        """Precheck, prepare, freeze, serve, rebuild, boot, check, (hydrate, compare,) take down, record."""
        course = self.course
        try:
            if self.refused(await precheck(course)):
                return "refused"
            if course.from_copy and not await self._borrow():
                return "refused"
            if course.copies_drill:
                course.plan = course.plan.model_copy(update={"mode": "cold"})
            await self._rehearse()
            self._reading = False
        except (FailureError, RollbackWanted) as error:
            if isinstance(error, FailureError) and failure.is_cancel(error):
                raise
            why = str(error) if isinstance(error, RollbackWanted) else failure.read(error).message
            await self._record(why)
            course.wishes.rollback = f"the drill failed: {why}"
            return "rollback"
        await unwind(course)
        await self._record("")
        self._reason = "the drill passed; all that it made was taken down"
        return "completed"

    async def _rehearse(self) -> None:
        course, journal = self.course, self.course.journal
        await prepare(course)
        if course.copies_drill:
            await self._fill()
        else:
            await course.step(*self._state())
            journal.push(UndoStep(kind="stop-stream", detail="keep the trace"))
            await course.step("serve the frozen disks", lambda: serve(course, record=True))
        journal.enter(Phase.REBUILD)
        await course.step("rebuild the VM on the isolated network", lambda: rebuild(course))
        await course.step("start it", self._start)
        journal.enter(Phase.VERIFY)
        await check_health(course)
        self._answered_at = workflow.now()
        if course.copies_drill:
            return
        await course.step("read the figures", self._figures)
        if course.plan.drill.hydrate:
            await hydrate(course)
            await course.step("compare", lambda: prove(course))

    async def _fill(self) -> None:
        """Copy all of one state before the boot, compare it if that is planned, and let the source go."""
        course, journal = self.course, self.course.journal
        journal.enter(Phase.BASELINE)
        if course.from_copy:
            await course.step(*self._state())
            await course.step("copy the copy", self._copy_lent)
        else:
            await course.step("copy the disks", self._copy_source)
        journal.hydrated_at = workflow.now()
        if course.plan.drill.hydrate:
            await course.step("compare", self._compare)
        if not course.from_copy:
            assert journal.source_point is not None
            await close_point(course, journal.source_point)
            journal.source_point = None

    async def _copy_source(self) -> None:
        journal = self.course.journal
        record, point = await run_round(self.course, kind="baseline", since=None, keep_open=True, track=False)
        journal.add_round(record)
        journal.source_point = point
        self._frozen_at = point.taken_at

    async def _copy_lent(self) -> None:
        """What is lent cannot be opened anew: whatever ends this copy ends the drill."""
        course, point = self.course, self.course.journal.source_point
        assert point is not None
        session = await open_writer(course)
        await copy_disks(course, point, session.disks, kind="baseline", by_hash=False, fresh=True)

    async def _compare(self) -> None:
        journal = self.course.journal
        assert journal.source_point is not None
        assert journal.writer is not None
        await compare_all(self.course, journal.source_point.disks, journal.writer.disks)

    def _state(self) -> tuple[str, Callable[[], Awaitable[None]]]:
        if self.course.from_copy:
            return "take the migration's copy", self._take_copy
        return "freeze the source's disks", self._freeze

    async def _borrow(self) -> bool:
        """Ask the running migration for its copy; False when there is none to be had."""
        course, journal, plan = self.course, self.course.journal, self.course.plan
        journal.begin_step("borrow the migration's copy")
        course.show()
        lender = workflow_id(plan.plan, plan.vm)
        journal.push(UndoStep(kind="return-copy"))
        wanted = CopyWanted(drill=journal.migration, workflow_id=workflow.info().workflow_id, target=plan.target)
        try:
            await workflow.get_external_workflow_handle(lender).signal(COPY_WANTED_SIGNAL, wanted)
            await workflow.wait_condition(
                lambda: self._lent is not None or self._recalled is not None,
                timeout=LOAN_WAIT,
                timeout_summary="until a round of the migration ends",
            )
        except TimeoutError:
            self._recalled = f"no round of {lender} has ended within {LOAN_WAIT}"
        except FailureError as error:
            if failure.is_cancel(error):
                raise
            self._recalled = f"no migration {lender} runs"
        if self._recalled is not None:
            self._reason = f"there is no copy to rehearse from: {self._recalled}"
            journal.end_step("failed", self._recalled)
            await unwind(course)
            return False
        journal.end_step("done")
        self._reading = True
        return True

    async def _take_copy(self) -> None:
        journal = self.course.journal
        assert self._lent is not None
        copied = {disk.key: disk.size_bytes for disk in self._lent.disks}
        if copied != {disk.spec.key: disk.spec.size_bytes for disk in journal.disks}:
            raise ApplicationError(
                "the VM's disks are no longer those that the migration copies",
                {"action": "abort the migration, and start it and the drill again"},
                type=PreconditionFailed.__name__,
                non_retryable=True,
            )
        journal.source_point = self._lent
        journal.epoch = epoch(self._lent)
        self._frozen_at = self._lent.taken_at

    @workflow.signal(name=COPY_LENT_SIGNAL)
    def copy_lent(self, word: CopyLent) -> None:
        """The migration's copy can be read."""
        if word.drill == self.course.journal.migration and self._lent is None:
            self._lent = word.point

    @workflow.signal(name=COPY_RECALLED_SIGNAL)
    def copy_recalled(self, word: CopyRecalled) -> None:
        """The migration's copy cannot be read, or not any longer: the migration comes first."""
        if word.drill != self.course.journal.migration or self._recalled is not None:
            return
        self._recalled = word.why
        if self._reading:
            wishes = self.course.wishes
            wishes.rollback = wishes.rollback or f"the drill failed: its copy was taken back: {word.why}"

    async def before_unwinding(self) -> None:
        """A drill whose copy was taken from it leaves a record of that."""
        if self._reading and self._recalled is not None:
            await self._record(f"its copy was taken back: {self._recalled}")

    async def _freeze(self) -> None:
        course, journal = self.course, self.course.journal
        key = point_key(journal.migration, journal.next_serial())
        journal.source_point, _ = await open_point(course, key, None, track=False)
        journal.epoch = epoch(journal.source_point)
        self._frozen_at = journal.source_point.taken_at

    async def _start(self) -> None:
        journal, plan = self.course.journal, self.course.plan
        if journal.target_ref is None:
            raise ApplicationError("the VM was not rebuilt", non_retryable=True)
        await call(
            ComputeActivities.start,
            StartInput(cloud=plan.target, ref=journal.target_ref),
            summary="start the rehearsed VM",
        )
        self._started_at = workflow.now()

    async def _figures(self) -> None:
        journal = self.course.journal
        wanted = StreamInput(migration=journal.migration, disks=tuple(disk.spec.key for disk in journal.disks))
        found = await call(
            StreamActivities.figures, wanted, summary="hit rate and latency of the boot", queue=self.course.data_queue
        )
        journal.stream = found.figures

    async def _record(self, why: str) -> None:
        """Best effort for a drill that failed: the tear-down does not wait for it."""
        course, journal, plan = self.course, self.course.journal, self.course.plan
        if journal.spec is None:
            return
        record = DrillRecord(
            plan=plan.plan,
            vm=plan.vm,
            ref=journal.vm.ref,
            source=plan.source,
            target=plan.target,
            migration=journal.migration,
            passed=not why,
            why=why,
            frozen_at=self._frozen_at,
            started_at=self._started_at,
            answered_at=self._answered_at,
            ended_at=workflow.now(),
            checks=journal.health,
            figures=journal.stream,
            from_copy=course.from_copy,
            copied=course.copies_drill,
            hydrated=journal.hydrated_at is not None,
            compared=bool(journal.verify),
        )
        journal.drill = record
        try:
            await call(
                DrillActivities.record,
                record,
                summary="keep the record of the drill",
                queue=course.data_queue,
                schedule_to_close=timedelta(minutes=2) if why else None,
            )
        except FailureError as error:
            if failure.is_cancel(error) or not why:
                raise
            workflow.logger.warning("drill.not_recorded", extra={"code": failure.read(error).code})
