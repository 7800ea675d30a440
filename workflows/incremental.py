"""IncrementalMigration: baseline while the VM runs, rounds of changed blocks, a short cutover."""

from __future__ import annotations

from temporalio import workflow

from whimbrel.contracts.migration import MigrationInput
from whimbrel.contracts.names import INCREMENTAL
from whimbrel.model.progress import MigrationReport, Phase
from workflows.closing import commit, verify
from workflows.cutover import Retreated, cutover
from workflows.migration import Ending, Migration
from workflows.opening import precheck, prepare
from workflows.rounds import baseline, rounds


@workflow.defn(name=INCREMENTAL)
class IncrementalMigration(Migration):
    """One VM, moved while it runs; its outage is a stop, the last delta and a boot."""

    @workflow.init
    def __init__(self, start: MigrationInput) -> None:
        super().__init__(start)

    @workflow.run
    async def run(self, start: MigrationInput) -> MigrationReport:
        """Move the VM; the report is the result."""
        del start
        return await self.carry_out()

    async def steps(self) -> Ending:
        """Precheck, prepare, baseline, rounds, cutover, verify, confirm, commit."""
        course = self.course
        if not course.journal.resumed:
            if self.refused(await precheck(course)):
                return "refused"
            await prepare(course)
            await baseline(course)
        while True:
            if await rounds(course) == "continue":
                return "continue"
            try:
                await cutover(course)
            except Retreated as retreat:
                course.journal.trouble = course.trouble("cutover", retreat.found, Phase.ROUNDS)
                continue
            break
        return await self.conclude(verify, commit)
