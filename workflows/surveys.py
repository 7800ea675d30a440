"""Read-only workflows: the precheck of one VM, and the inventory of a cloud."""

from __future__ import annotations

from temporalio import workflow

from activities.inventory import InventoryActivities
from activities.precheck import PrecheckActivities
from whimbrel.contracts.activity_io import PrecheckRequest
from whimbrel.contracts.migration import (
    INVENTORY,
    InventoryInput,
    InventoryResult,
    PrecheckInput,
    PrecheckReport,
)
from whimbrel.contracts.names import PRECHECK, data_queue
from whimbrel.model.naming import migration_id
from workflows.calls import call


@workflow.defn(name=PRECHECK)
class Precheck:
    """Judge one VM's plan days before the window; what the probe makes, it removes."""

    @workflow.run
    async def run(self, start: PrecheckInput) -> PrecheckReport:
        """All findings, worst first."""
        info = workflow.info()
        request = PrecheckRequest(
            plan=start.plan,
            stage="plan",
            probe=start.probe,
            migration=migration_id(info.workflow_id, info.first_execution_run_id),
        )
        answer = await call(
            PrecheckActivities.run, request, summary=f"precheck {start.plan.vm}", queue=data_queue(start.plan.site)
        )
        path = answer.result.path
        return PrecheckReport(
            vm=start.plan.vm,
            findings=answer.result.findings,
            read_bytes_per_s=path.read_bytes_per_s,
            write_bytes_per_s=path.write_bytes_per_s,
        )


@workflow.defn(name=INVENTORY)
class Inventory:
    """One page of a cloud's VMs."""

    @workflow.run
    async def run(self, start: InventoryInput) -> InventoryResult:
        """The page."""
        return await call(InventoryActivities.list, start, summary=f"list VMs of {start.cloud}")
