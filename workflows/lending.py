"""The target copy lent to a drill: frozen between rounds, thawed between rounds, taken back before the cutover.

A drill never holds the migration up: a copy that cannot be frozen is refused, and one that cannot be thawed is thawed
after a later round, or ends with the session that writes the volumes.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta

from temporalio import workflow
from temporalio.exceptions import FailureError

from activities.volume import VolumeActivities
from whimbrel.contracts import failure
from whimbrel.contracts.activity_io import FreezeWriterInput, ThawWriterInput
from whimbrel.contracts.lending import (
    COPY_LENT_SIGNAL,
    COPY_RECALLED_SIGNAL,
    CopyLent,
    CopyRecalled,
    CopyReturned,
    CopyWanted,
    Loan,
)
from whimbrel.contracts.timeouts import FREEZE
from whimbrel.model.ledger import Fate
from whimbrel.model.naming import frozen_key, writer_key
from whimbrel.model.progress import Phase
from workflows.calls import call
from workflows.copying import open_writer
from workflows.course import Course

KEPT_RETURNS = 20
TEAR_DOWN_WAIT = timedelta(seconds=60)
"""So long a cutover waits for a drill to be taken down; then it goes on all the same."""


def refusal(course: Course, wanted: CopyWanted) -> str | None:
    """Why the copy cannot be lent now or after the round that runs, or None."""
    journal = course.journal
    if not course.copies_first or course.drill:
        return "the migration makes no rounds, so it has no copy to lend"
    if journal.phase is not Phase.ROUNDS or course.wishes.rollback is not None:
        return f"the migration is not in its rounds (phase {journal.phase})"
    if wanted.target != course.plan.target:
        return f"the migration's copy is on {course.plan.target}, the drill runs on {wanted.target}"
    return None


def want(course: Course, wanted: CopyWanted) -> str | None:
    """Take a request down for the next moment between rounds; or why it is refused."""
    journal = course.journal
    if wanted.drill in journal.returns:
        return None  # it came after its own return
    why = refusal(course, wanted)
    if why is None:
        journal.wanted = wanted
    return why


def give_back(course: Course, returned: CopyReturned) -> None:
    """The drill is over, whether it got the copy or not."""
    journal = course.journal
    journal.returns = (*journal.returns, returned.drill)[-KEPT_RETURNS:]
    if journal.wanted is not None and journal.wanted.drill == returned.drill:
        journal.wanted = None
    if journal.loan is not None and journal.loan.wanted.drill == returned.drill:
        journal.loan = journal.loan.model_copy(update={"returned": True})


def due(course: Course) -> bool:
    """Whether there is something to freeze, to thaw, or to answer between rounds."""
    journal = course.journal
    returned = journal.loan is not None and journal.loan.returned
    return journal.wanted is not None or (returned and not course.thaw_failed)


async def serve_loans(course: Course) -> None:
    """Between rounds: thaw what was returned, freeze what is wanted."""
    journal = course.journal
    wanted = journal.wanted
    if journal.loan is not None and wanted is not None and wanted.drill == journal.loan.wanted.drill:
        # Asked twice.
        journal.wanted = None
        if journal.loan.point is not None:
            await tell(wanted, COPY_LENT_SIGNAL, CopyLent(drill=wanted.drill, point=journal.loan.point))
        return
    # All drills of a VM have one workflow id: when the next one asks, the one before has ended, however it did.
    if journal.loan is not None and not await _thaw(course, journal.loan):
        if wanted is not None and journal.wanted == wanted:
            journal.wanted = None
            await refuse(wanted, "the state that an earlier drill has read could not be given up yet")
        return
    if wanted is not None and journal.wanted == wanted:
        journal.wanted = None
        await _lend(course, wanted)


async def end_loans(course: Course, why: str, *, clear_target: bool = False) -> None:
    """Nobody reads the copy any more: the session that writes it is about to be closed.

    With ``clear_target`` the drill has a moment to take its VM down, which has the MACs that the target is to have.
    The source runs on meanwhile: nothing is stopped yet.
    """
    journal = course.journal
    while journal.wanted is not None or journal.loan is not None:
        wanted, loan = journal.wanted, journal.loan
        if wanted is not None:
            await refuse(wanted, why)
            if journal.wanted == wanted:
                journal.wanted = None
        if loan is not None:
            if not loan.returned:
                await refuse(loan.wanted, why)
            if clear_target and not loan.returned:
                with suppress(TimeoutError):
                    await workflow.wait_condition(
                        lambda: journal.loan is None or journal.loan.returned,
                        timeout=TEAR_DOWN_WAIT,
                        timeout_summary="until the drill is taken down",
                    )
            await _thaw(course, loan)
            _gone(course, loan)
            journal.loan = None


async def refuse(wanted: CopyWanted, why: str) -> None:
    """Tell a drill that it does not get the copy, or does not have it any longer."""
    await tell(wanted, COPY_RECALLED_SIGNAL, CopyRecalled(drill=wanted.drill, why=why))


async def tell(wanted: CopyWanted, signal: str, word: CopyLent | CopyRecalled) -> None:
    """Signal a drill; one that has ended needs to hear nothing."""
    try:
        await workflow.get_external_workflow_handle(wanted.workflow_id).signal(signal, word)
    except FailureError as error:
        if failure.is_cancel(error):
            raise
        workflow.logger.warning("loan.unheard", extra={"drill": wanted.workflow_id, "signal": signal})


async def _lend(course: Course, wanted: CopyWanted) -> None:
    journal, plan = course.journal, course.plan
    key = frozen_key(journal.migration, wanted.drill)
    journal.loan = Loan(wanted=wanted, returned=wanted.drill in journal.returns)
    journal.note(plan.target, "point", key, Fate.INTENDED)
    journal.begin_step("lend the copy to a drill")
    try:
        await open_writer(course, timing=FREEZE)
        asked = FreezeWriterInput(
            cloud=plan.target, migration=journal.migration, key=writer_key(journal.migration), point=key
        )
        made = await call(VolumeActivities.freeze_writer, asked, summary="freeze the copy for a drill")
    except FailureError as error:
        if failure.is_cancel(error):
            raise
        found = failure.read(error)
        journal.end_step("failed", f"{found.code}: {found.message}")
        # It may have been frozen all the same.
        journal.loan = Loan(wanted=wanted, returned=True)
        await refuse(wanted, f"the migration's copy could not be frozen: {found.message}")
        return
    journal.note(plan.target, "point", key, Fate.CREATED)
    journal.end_step("done")
    journal.loan = Loan(wanted=wanted, point=made.point, returned=wanted.drill in journal.returns)
    await tell(wanted, COPY_LENT_SIGNAL, CopyLent(drill=wanted.drill, point=made.point))


async def _thaw(course: Course, loan: Loan) -> bool:
    """Whether the frozen state is gone for certain."""
    journal = course.journal
    asked = ThawWriterInput(
        cloud=course.plan.target,
        key=writer_key(journal.migration),
        point=frozen_key(journal.migration, loan.wanted.drill),
    )
    try:
        await call(VolumeActivities.thaw_writer, asked, summary="thaw the copy")
    except FailureError as error:
        if failure.is_cancel(error):
            raise
        course.thaw_failed = True
        workflow.logger.warning("loan.not_thawed", extra={"code": failure.read(error).code})
        return False
    _gone(course, loan)
    if journal.loan is not None and journal.loan.wanted == loan.wanted:
        journal.loan = None
    return True


def _gone(course: Course, loan: Loan) -> None:
    """Thawed, or about to end with its session."""
    key = frozen_key(course.journal.migration, loan.wanted.drill)
    course.journal.note(course.plan.target, "point", key, Fate.GONE)
