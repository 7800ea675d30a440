"""What the workflows of all modes share: the operator's verbs, the status, and how a migration ends.

A mode's workflow inherits this, and its ``steps`` read as the mode's description.
"""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal, TypeVar

from temporalio import workflow
from temporalio.exceptions import FailureError

from whimbrel.contracts import failure, verbs
from whimbrel.contracts.heartbeat import COPY_MARK_SIGNAL, STREAM_MARK_SIGNAL, CopyMark, StreamMark
from whimbrel.contracts.lending import COPY_RETURNED_SIGNAL, COPY_WANTED_SIGNAL, CopyReturned, CopyWanted
from whimbrel.contracts.migration import MigrationInput
from whimbrel.contracts.names import FINDINGS_QUERY, LEDGER_QUERY, STATUS_QUERY
from whimbrel.contracts.verbs import SetBandwidth, Verb, VerbAnswer
from whimbrel.model.finding import Finding
from whimbrel.model.ledger import Ledger
from whimbrel.model.naming import migration_id
from whimbrel.model.progress import DiskProgress, MigrationReport, MigrationStatus, Phase
from workflows import attributes, telling
from workflows.closing import RollbackWanted, confirm, read_back
from workflows.course import Course
from workflows.journal import Journal
from workflows.keeping_writes import bring_back_writes
from workflows.lending import end_loans, give_back, refuse, want
from workflows.operator import Wishes, drop_refusal, refusal
from workflows.undo import unwind

Ending = Literal["completed", "rollback", "refused", "continue"]
T = TypeVar("T")


async def _to_the_end(task: asyncio.Task[T]) -> T:
    """The task's result, waited for through cancellations: what it undoes must not be left half done."""
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await workflow.wait_condition(task.done)
    return task.result()


class Migration(ABC):
    """Base of every mode; not a workflow by itself."""

    @workflow.init
    def __init__(self, start: MigrationInput) -> None:
        state = start.state
        if state is None:
            info = workflow.info()
            journal = Journal(
                migration=migration_id(info.workflow_id, info.first_execution_run_id), started_at=workflow.now()
            )
            wishes = Wishes(bandwidth_bytes_per_s=start.plan.bandwidth_bytes_per_s)
        else:
            journal = Journal.thaw(state)
            wishes = Wishes(
                paused=state.paused,
                cutover=state.cutover_asked,
                bandwidth_bytes_per_s=state.bandwidth_bytes_per_s,
            )
        self.course = Course(plan=start.plan, journal=journal, wishes=wishes, show=self._show)
        self._reason = ""

    @abstractmethod
    async def steps(self) -> Ending:
        """The mode's steps, in order; what they raise leads to a rollback."""

    async def conclude(
        self,
        check: Callable[[Course], Awaitable[None]],
        commit: Callable[[Course], Awaitable[None]],
        gate: Callable[[Course], Awaitable[Literal["commit", "rollback"]]] = confirm,
    ) -> Ending:
        """The target runs: check it, wait at the gate for the operator or the plan's timer, then commit or go back."""
        course = self.course
        try:
            await check(course)
        except RollbackWanted as wanted:
            course.wishes.rollback = str(wanted)
            return "rollback"
        if await gate(course) == "rollback":
            return "rollback"
        await commit(course)
        return "completed"

    # -- the run ------------------------------------------------------------------------------------------------

    async def carry_out(self) -> MigrationReport:
        """Run the steps, roll back if anyone wants it, and report."""
        course = self.course
        attributes.publish(telling.first_attributes(course))
        ending = await self._go_through(asyncio.create_task(self.steps()))
        if ending == "continue":
            await workflow.wait_condition(workflow.all_handlers_finished)
            wishes = course.wishes
            if wishes.rollback is None:
                state = course.journal.freeze(
                    paused=wishes.paused, cutover=wishes.cutover, bandwidth=wishes.bandwidth_bytes_per_s
                )
                workflow.continue_as_new(MigrationInput(plan=course.plan, state=state))
            ending = "rollback"
        return await _to_the_end(asyncio.create_task(self._finish(ending)))

    async def _go_through(self, work: asyncio.Task[Ending]) -> Ending:
        """Let the steps run until they end, or until a rollback or a cancellation in Temporal ends them."""
        course, wishes = self.course, self.course.wishes
        while not work.done() and wishes.rollback is None:
            try:
                await workflow.wait_condition(lambda: work.done() or wishes.rollback is not None)
            except asyncio.CancelledError:
                if course.journal.confirmed:
                    workflow.logger.warning("cancel.too_late", extra={"phase": course.journal.phase.value})
                    continue
                wishes.rollback = wishes.rollback or "cancelled in Temporal"
        if not work.done():
            wishes.paused = False
            work.cancel()
        try:
            return await _to_the_end(work)
        except asyncio.CancelledError:
            return "rollback"
        except FailureError as error:
            wishes.rollback = wishes.rollback or failure.read(error).message
            return "rollback"

    def refused(self, blocking: Sequence[Finding]) -> bool:
        """Whether findings of the precheck forbid the migration; they are its reason then."""
        self._reason = "; ".join(finding.line for finding in blocking)
        return bool(blocking)

    async def _finish(self, ending: Ending) -> MigrationReport:
        """Undo if need be, and report. Runs in a task of its own, which no cancellation reaches."""
        if ending == "rollback":
            await self._roll_back()
        return await self._end(ending)

    async def _roll_back(self) -> None:
        course, journal = self.course, self.course.journal
        self._reason = course.wishes.rollback or "the plan asks for it"
        journal.trouble = None
        journal.enter(Phase.ROLLING_BACK)
        await end_loans(course, "the migration is rolled back")
        if journal.target_ran and course.brings_writes_back and not course.wishes.drop_writes:
            await self._bring_back()
        await self.before_unwinding()
        await unwind(course)

    async def before_unwinding(self) -> None:  # noqa: B027 - most modes have nothing to do here
        """What a mode does first of all when it rolls back."""

    async def _bring_back(self) -> None:
        """The target's writes go to the source, unless the operator gives them up before the first is there."""
        course, journal = self.course, self.course.journal
        journal.bringing_back = True
        work = asyncio.create_task(course.step("bring the target's writes back", lambda: bring_back_writes(course)))
        await workflow.wait_condition(lambda: work.done() or course.wishes.drop_writes)
        if not work.done():
            work.cancel()
        try:
            await _to_the_end(work)
        except (asyncio.CancelledError, FailureError):
            if not course.wishes.drop_writes:
                raise
            self._reason += "; the target's writes were given up"
            journal.trouble = None
            journal.enter(Phase.ROLLING_BACK)
        journal.bringing_back = False

    async def _end(self, ending: Ending) -> MigrationReport:
        course, journal = self.course, self.course.journal
        leftovers = await course.step("look for leftovers", lambda: read_back(course))
        ends: dict[Ending, tuple[Phase, Literal["completed", "rolled_back", "refused"]]] = {
            "completed": (Phase.COMPLETED, "completed"),
            "rollback": (Phase.ROLLED_BACK, "rolled_back"),
            "refused": (Phase.REFUSED, "refused"),
        }
        phase, outcome = ends[ending]
        journal.trouble = None
        journal.enter(phase)
        await workflow.wait_condition(workflow.all_handlers_finished)
        self._show()
        return telling.report(course, outcome=outcome, reason=self._reason, leftovers=leftovers)

    # -- queries and signals ------------------------------------------------------------

    @workflow.query(name=STATUS_QUERY)
    def status(self) -> MigrationStatus:
        """Everything an operator wants to see."""
        return telling.status(self.course)

    @workflow.query(name=LEDGER_QUERY)
    def ledger(self) -> Ledger:
        """Every object made so far, and what became of it."""
        return self.course.journal.ledger

    @workflow.query(name=FINDINGS_QUERY)
    def findings(self) -> tuple[str, ...]:
        """Precheck findings that were not ``ok``."""
        return self.course.journal.findings

    @workflow.signal(name=COPY_MARK_SIGNAL)
    def copy_marked(self, mark: CopyMark) -> None:
        """A long copy got another tenth further."""
        vm = self.course.journal.spec
        if vm is None:
            return
        size = next((disk.size_bytes for disk in vm.disks if disk.key == mark.disk), 0)
        self.course.journal.set_progress(
            DiskProgress(
                disk=mark.disk,
                percent=float(mark.percent),
                done_bytes=size * mark.percent // 100,
                total_bytes=size,
                rate_bytes_per_s=mark.rate_bytes_per_s,
                eta_s=mark.eta_s,
            )
        )

    @workflow.signal(name=COPY_WANTED_SIGNAL)
    async def copy_wanted(self, wanted: CopyWanted) -> None:
        """A drill asks for the target copy; it gets it between rounds."""
        why = want(self.course, wanted)
        if why is not None:
            await refuse(wanted, why)

    @workflow.signal(name=COPY_RETURNED_SIGNAL)
    def copy_returned(self, returned: CopyReturned) -> None:
        """A drill reads the target copy no more."""
        give_back(self.course, returned)

    @workflow.signal(name=STREAM_MARK_SIGNAL)
    def stream_marked(self, mark: StreamMark) -> None:
        """Something about the stream changed that an operator should see."""
        self.course.journal.stream = mark.figures
        self.course.journal.stream_slow = mark.slow
        self._show()

    # -- the operator's verbs ------------------------------------------------------------

    def _check(self, verb: str) -> None:
        why = refusal(verb, self.course.situation())
        if why is not None:
            raise ValueError(f"{verb}: {why}")

    def _show(self) -> None:
        workflow.set_current_details(telling.details(self.course))

    def _shown(self, message: str) -> VerbAnswer:
        self._show()
        return VerbAnswer(message=message)

    @workflow.update(name=verbs.CUTOVER)
    def cutover(self, ask: Verb) -> VerbAnswer:
        """Cut over as soon as the running copy is done."""
        del ask
        self.course.wishes.cutover = True
        if self.course.journal.phase is Phase.ATTENTION:
            self.course.wishes.retry = True
        return self._shown("the cutover begins as soon as the running copy is done")

    @cutover.validator
    def _may_cutover(self, ask: Verb) -> None:
        del ask
        self._check(verbs.CUTOVER)

    @workflow.update(name=verbs.PAUSE)
    def pause(self, ask: Verb) -> VerbAnswer:
        """Stop copying; what was copied is kept."""
        del ask
        self.course.wishes.paused = True
        self.course.wishes.copy_generation += 1
        return self._shown("paused; what was copied is kept")

    @pause.validator
    def _may_pause(self, ask: Verb) -> None:
        del ask
        self._check(verbs.PAUSE)

    @workflow.update(name=verbs.RESUME)
    def resume(self, ask: Verb) -> VerbAnswer:
        """Go on after a pause, or try the failed step again."""
        del ask
        wishes = self.course.wishes
        held = self.course.journal.phase is Phase.ATTENTION
        wishes.paused = False
        wishes.retry = held
        return self._shown("the failed step is tried again" if held else "resumed")

    @resume.validator
    def _may_resume(self, ask: Verb) -> None:
        del ask
        self._check(verbs.RESUME)

    @workflow.update(name=verbs.SYNC_NOW)
    def sync_now(self, ask: Verb) -> VerbAnswer:
        """Begin the next round at once."""
        del ask
        self.course.wishes.sync_now = True
        return self._shown("the next round begins now")

    @sync_now.validator
    def _may_sync_now(self, ask: Verb) -> None:
        del ask
        self._check(verbs.SYNC_NOW)

    @workflow.update(name=verbs.SET_BANDWIDTH)
    def set_bandwidth(self, ask: SetBandwidth) -> VerbAnswer:
        """Limit this migration's copies, the running ones too."""
        self.course.wishes.bandwidth_bytes_per_s = ask.bytes_per_s
        self.course.wishes.copy_generation += 1
        limit = f"{ask.bytes_per_s / 1e6:.1f} MB/s" if ask.bytes_per_s else "none"
        return self._shown(f"bandwidth limit: {limit}")

    @set_bandwidth.validator
    def _may_set_bandwidth(self, ask: SetBandwidth) -> None:
        del ask
        self._check(verbs.SET_BANDWIDTH)

    @workflow.update(name=verbs.CONFIRM)
    def confirm(self, ask: Verb) -> VerbAnswer:
        """Accept the target: the source stays off, and our traces are removed."""
        del ask
        self.course.wishes.confirm = True
        return self._shown("confirmed")

    @confirm.validator
    def _may_confirm(self, ask: Verb) -> None:
        del ask
        self._check(verbs.CONFIRM)

    @workflow.update(name=verbs.ROLLBACK)
    def rollback(self, ask: Verb) -> VerbAnswer:
        """Give the source back as it was and remove everything made at the target."""
        course = self.course
        course.wishes.drop_writes = ask.drop_writes
        if course.wishes.rollback is not None:
            return self._shown("rolling back without the target's writes")
        self._ask_back(ask, "asked by the operator")
        kept = " after its writes are brought back" if course.brings_writes_back and not ask.drop_writes else ""
        return self._shown(f"rolling back{kept if course.journal.target_ran else ''}")

    @rollback.validator
    def _may_rollback(self, ask: Verb) -> None:
        journal = self.course.journal
        if self.course.wishes.rollback is not None and ask.drop_writes:
            why = drop_refusal(
                keep_writes=self.course.brings_writes_back,
                bringing_back=journal.bringing_back,
                source_half_written=journal.source_half_written,
            )
            if why is not None:
                raise ValueError(f"{verbs.ROLLBACK}: {why}")
            return
        self._check(verbs.ROLLBACK)

    @workflow.update(name=verbs.ABORT)
    def abort(self, ask: Verb) -> VerbAnswer:
        """Give up before the cutover: the source was never touched, what was made at the target is removed."""
        self._ask_back(ask, "aborted by the operator")
        return self._shown("aborting; the source keeps running")

    @abort.validator
    def _may_abort(self, ask: Verb) -> None:
        del ask
        self._check(verbs.ABORT)

    def _ask_back(self, ask: Verb, default: str) -> None:
        wishes = self.course.wishes
        who = f" ({ask.by})" if ask.by else ""
        wishes.rollback = (ask.reason or default) + who
        wishes.paused = False
