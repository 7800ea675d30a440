"""StreamingMigration: the target runs before its data has arrived; what it asks for comes first, the rest follows."""

from __future__ import annotations

from temporalio import workflow

from whimbrel.contracts.migration import MigrationInput
from whimbrel.contracts.names import STREAMING
from whimbrel.model.progress import MigrationReport, Phase
from workflows.closing import check_health, confirm
from workflows.course import Course
from workflows.cutover import Retreated
from workflows.hydrating import bring_home, commit_stream, confirm_served, hydrate, prove, stop_target, switch
from workflows.migration import Ending, Migration
from workflows.opening import precheck, prepare
from workflows.rounds import baseline, rounds
from workflows.taking_over import take_over


@workflow.defn(name=STREAMING)
class StreamingMigration(Migration):
    """One VM; its outage is a stop and a boot, whatever its size."""

    @workflow.init
    def __init__(self, start: MigrationInput) -> None:
        super().__init__(start)

    @workflow.run
    async def run(self, start: MigrationInput) -> MigrationReport:
        """Move the VM; the report is the result."""
        del start
        return await self.carry_out()

    async def steps(self) -> Ending:
        """Precheck, prepare, (baseline, rounds,) take over, health, hydrate, prove, switch, confirm, commit."""
        course = self.course
        if not course.journal.resumed:
            if self.refused(await precheck(course)):
                return "refused"
            await prepare(course)
            if course.copies_first:
                await baseline(course)
        while True:
            if course.copies_first and await rounds(course) == "continue":
                return "continue"
            try:
                await take_over(course)
            except Retreated as retreat:
                # The source runs again and what was copied is kept.
                if course.copies_first:
                    course.journal.trouble = course.trouble("cutover", retreat.found, Phase.ROUNDS)
                else:
                    await course.hold("cutover", retreat.found)
                continue
            break
        protected = course.plan.stream.protect != "none"
        return await self.conclude(_arrive, commit_stream, confirm_served if protected else confirm)

    async def before_unwinding(self) -> None:
        """A protected guest is asked to write out what it holds before it is taken down."""
        journal, wishes = self.course.journal, self.course.wishes
        if wishes.drop_writes:
            journal.shadow_kept = False
        if journal.target_ran and journal.shadow_kept:
            # Before as well: a guest whose writes wait for a shadow that has died would not shut down.
            await self.course.step("bring writes to the source", lambda: bring_home(self.course))
            await self.course.step("stop the target", lambda: stop_target(self.course))
            await self.course.step("bring the last writes to the source", lambda: bring_home(self.course))
            if wishes.drop_writes:
                journal.shadow_kept = False


async def _arrive(course: Course) -> None:
    """Health, the rest of the data, the comparison; a guest without protection then goes onto its own disks."""
    course.journal.enter(Phase.VERIFY)
    await check_health(course)
    await hydrate(course)
    await course.step("verify", lambda: prove(course))
    if course.plan.stream.protect == "none":
        await course.step("hot switch", lambda: switch(course))
