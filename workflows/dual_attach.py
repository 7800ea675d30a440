"""DualAttachMigration: both clouds see one storage, and the VM's disks change hands without being copied."""

from __future__ import annotations

from temporalio import workflow

from whimbrel.contracts.migration import MigrationInput
from whimbrel.contracts.names import DUAL_ATTACH
from whimbrel.model.progress import MigrationReport
from workflows.cutover import Retreated
from workflows.handing_over import commit_handover, find_disks, hand_over, precheck_sharing, verify_handover
from workflows.migration import Ending, Migration


@workflow.defn(name=DUAL_ATTACH)
class DualAttachMigration(Migration):
    """One VM, handed over; its outage is a stop and a boot. A rollback gives the same volumes back, with all writes."""

    @workflow.init
    def __init__(self, start: MigrationInput) -> None:
        super().__init__(start)

    @workflow.run
    async def run(self, start: MigrationInput) -> MigrationReport:
        """Move the VM; the report is the result."""
        del start
        return await self.carry_out()

    async def steps(self) -> Ending:
        """Precheck, find the disks, hand over (stop, release, adopt, rebuild, start), verify, confirm, commit."""
        course = self.course
        if self.refused(await precheck_sharing(course)):
            return "refused"
        await find_disks(course)
        while True:
            try:
                await hand_over(course)
            except Retreated as retreat:
                # The source has its volumes and runs again; only the operator takes it down once more.
                await course.hold("handover", retreat.found)
                continue
            break
        return await self.conclude(verify_handover, commit_handover)
