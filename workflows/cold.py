"""ColdMigration: stop, copy, start. The reference that other modes are compared with."""

from __future__ import annotations

from temporalio import workflow

from whimbrel.contracts.migration import MigrationInput
from whimbrel.contracts.names import COLD
from whimbrel.model.progress import MigrationReport
from workflows.closing import commit, verify
from workflows.cutover import Retreated, cutover
from workflows.migration import Ending, Migration
from workflows.opening import precheck, prepare


@workflow.defn(name=COLD)
class ColdMigration(Migration):
    """One VM, moved while it is off; its outage grows with its disks."""

    @workflow.init
    def __init__(self, start: MigrationInput) -> None:
        super().__init__(start)

    @workflow.run
    async def run(self, start: MigrationInput) -> MigrationReport:
        """Move the VM; the report is the result."""
        del start
        return await self.carry_out()

    async def steps(self) -> Ending:
        """Precheck, prepare, cutover (which copies everything), verify, confirm, commit."""
        course = self.course
        if self.refused(await precheck(course)):
            return "refused"
        await prepare(course)
        while True:
            try:
                await cutover(course)
            except Retreated as retreat:
                # The source runs again and what was copied is kept; only the operator takes it down once more.
                await course.hold("cutover", retreat.found)
                continue
            break
        return await self.conclude(verify, commit)
