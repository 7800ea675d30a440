"""The course of one migration: its plan, its journal, the operator's wishes, and how a step is run.

A step that fails in a way that retries cannot mend does not end the migration: it is held, everything copied is kept,
and the operator chooses to try again or to roll back.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from temporalio import workflow
from temporalio.exceptions import FailureError

from whimbrel.contracts import failure, verbs
from whimbrel.contracts.names import data_queue
from whimbrel.model.plan import VmPlan
from whimbrel.model.progress import Phase, Trouble
from workflows.journal import Journal
from workflows.operator import Situation, Wishes, refusal

T = TypeVar("T")
_CHOICES = (verbs.RESUME, verbs.CUTOVER, verbs.ROLLBACK, verbs.ABORT)


@dataclass
class Course:
    """Shared by all steps of one migration."""

    plan: VmPlan
    journal: Journal
    wishes: Wishes
    show: Callable[[], None]
    """Renders the page in the Temporal UI anew."""
    drill: bool = False
    """A rehearsal: nobody is asked when a step fails, for everything is taken down again."""

    from_copy: bool = False
    """A rehearsal of what another migration has copied: nothing is opened at the source."""
    copies_drill: bool = False
    """A rehearsal whose data is copied before it boots, as the precheck has found."""
    copy_torn: bool = False
    """A cutover that was taken back may have written half a delta: only the next round makes the copy whole."""

    thaw_failed: bool = False
    """What was lent to a drill could not be given up; it is tried again after the next round."""

    @property
    def kind(self) -> str:
        """What is shown as the mode."""
        return "drill" if self.drill else self.plan.mode

    @property
    def data_queue(self) -> str:
        """Where this migration's bytes are moved."""
        return data_queue(self.plan.site)

    @property
    def brings_writes_back(self) -> bool:
        """Whether a rollback copies the target's writes; other modes have them at the source already, or say so.

        Where the target's storage imports, its first state is kept for that, whatever the plan says.
        """
        if self.plan.mode == "streaming":
            return self.journal.imports and not self.drill
        return self.plan.keep_writes and self.plan.mode in {"incremental", "cold"}

    @property
    def takes_points(self) -> bool:
        """Whether the mode opens points in time, of which something could be left."""
        return self.plan.mode != "dual-attach" and not self.from_copy

    @property
    def copies_first(self) -> bool:
        """Whether rounds run before the cutover, so that the operator may choose when it begins."""
        return self.plan.runs_rounds

    def situation(self) -> Situation:
        """What decides which verbs fit now."""
        closes = self.plan.window.closes_at
        return Situation(
            phase=self.journal.phase,
            held=self.journal.phase is Phase.ATTENTION,
            source_stopped=self.journal.source_stopped,
            paused=self.wishes.paused,
            rollback_asked=self.wishes.rollback is not None,
            window_closed=closes is not None and workflow.now() >= closes,
            cold=not self.copies_first,
            confirmed=self.journal.confirmed,
        )

    async def unpaused(self) -> None:
        """Wait while the operator has paused the migration."""
        await workflow.wait_condition(lambda: not self.wishes.paused)

    async def step(self, name: str, work: Callable[[], Awaitable[T]], *, hold: bool = True) -> T:
        """Run one step; with ``hold`` a failure waits for the operator and is tried again on ``resume``."""
        while True:
            self.journal.begin_step(name)
            self.show()
            try:
                result = await work()
            except FailureError as error:
                found = failure.read(error)
                self.journal.end_step("failed", f"{found.code}: {found.message}")
                if failure.is_cancel(error) or not hold or self.drill:
                    raise
                await self.hold(name, found)
                continue
            self.journal.end_step("done")
            self.show()
            return result

    async def hold(self, step: str, found: failure.Failure) -> None:
        """Ask the operator; returns when the step is to be tried again. A rollback ends it from outside."""
        phase = self.journal.phase
        self.journal.trouble = self.trouble(step, found, Phase.ATTENTION)
        workflow.logger.warning("migration.held", extra={"step": step, "code": found.code})
        self.wishes.retry = False
        self.journal.enter(Phase.ATTENTION)
        self.show()
        await workflow.wait_condition(lambda: self.wishes.retry, timeout_summary=f"waiting for the operator: {step}")
        self.wishes.retry = False
        self.journal.trouble = None
        self.journal.enter(phase)

    def trouble(self, step: str, found: failure.Failure, phase: Phase) -> Trouble:
        """What went wrong, with what the operator can do about it in ``phase``."""
        now = replace(self.situation(), phase=phase, held=phase is Phase.ATTENTION)
        return Trouble(
            step=step,
            code=found.code,
            message=found.message,
            action=found.action,
            since=workflow.now(),
            choices=tuple(verb for verb in _CHOICES if refusal(verb, now) is None),
        )
