"""``whimbrel migrate``."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Literal

import typer
from rich.text import Text
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.common import (
    SearchAttributeKey,
    SearchAttributePair,
    TypedSearchAttributes,
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
)
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from whimbrel.cli.exit_code import ExitCode
from whimbrel.cli.migration_view import from_execution
from whimbrel.cli.option import Json, PlanPath, Vms
from whimbrel.cli.output import emit, note
from whimbrel.cli.page import plans as plans_table
from whimbrel.cli.plan_input import read_plan
from whimbrel.cli.session import RPC_TIMEOUT, converse, pollers
from whimbrel.cli.watch import follow
from whimbrel.contracts import names
from whimbrel.contracts.migration import DrillInput, MigrationInput
from whimbrel.model.endpoint import Frozen
from whimbrel.model.naming import drill_id, workflow_id
from whimbrel.model.plan import VmPlan
from whimbrel.model.progress import Phase

NAME = "migrate"
AT_ONCE = 16


class ModeChoice(StrEnum):
    """The modes."""

    INCREMENTAL = "incremental"
    COLD = "cold"
    STREAMING = "streaming"
    DUAL_ATTACH = "dual-attach"


ModeOption = Annotated[ModeChoice | None, typer.Option("--mode", help="Instead of the plan's.", show_default=False)]
Watch = Annotated[bool, typer.Option("--watch", help="Follow until the end; Ctrl-C leaves the migration alone.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only check the plan and show what would be started.")]
Again = Annotated[bool, typer.Option("--again", help="Also VMs whose last migration of this plan was completed.")]


class Start(Frozen):
    """What became of one VM; its JSON."""

    vm: str
    workflow_id: str
    outcome: Literal["started", "already running", "already completed", "dry run"]
    run_id: str = ""


def command(
    plan: PlanPath,
    *,
    vm: Vms = None,
    mode: ModeOption = None,
    watch: Watch = False,
    dry_run: DryRun = False,
    again: Again = False,
    as_json: Json = False,
) -> None:
    """Start the migration of the plan's VMs. What runs already is left as it is."""
    chosen = read_plan(plan).select(vm or [])
    if mode is not None:
        chosen = tuple(each.model_copy(update={"mode": str(mode)}) for each in chosen)
    if dry_run:
        starts = [Start(vm=p.vm, workflow_id=workflow_id(p.plan, p.vm), outcome="dry run") for p in chosen]
        result = [
            {**start.model_dump(), "plan": p.model_dump(mode="json")} for start, p in zip(starts, chosen, strict=True)
        ]
        emit(NAME, result, plans_table(chosen), Text("nothing was started"), as_json=as_json)
        return
    starts = converse(lambda client: start_all(client, chosen, again=again))
    if not (watch and as_json):
        emit(NAME, starts, *[start_line(start) for start in starts], as_json=as_json)
    refused = [start for start in starts if start.outcome == "already completed"]
    if refused:
        note("already completed: nothing was started for these; --again migrates once more")
    code = ExitCode.FAILED if refused else ExitCode.OK
    if watch:
        code = follow_starts(starts, as_json=as_json) or code
    raise typer.Exit(code)


def follow_starts(starts: Sequence[Start], *, as_json: bool) -> ExitCode:
    """Show what was started, to its end."""

    async def ids(_: Client) -> list[str]:
        return [start.workflow_id for start in starts if start.outcome != "already completed"]

    return follow(ids, exit_when_waiting=False, as_json=as_json)


async def start_all(
    client: Client, plans: Sequence[VmPlan], *, again: bool, drill: bool = False, from_copy: bool = False
) -> list[Start]:
    """Start what does not run yet, in order; with ``drill`` rehearsals of it (``from_copy``). Raises RPCError."""
    if not await pollers(client, names.CONTROL_QUEUE, workflows=True):
        note(f"no worker polls the task queue {names.CONTROL_QUEUE!r} yet: migrations begin when one does")
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(plan: VmPlan) -> Start:
        async with gate:
            return await _start(client, plan, again=again, drill=drill, from_copy=from_copy)

    return list(await asyncio.gather(*(one(plan) for plan in plans)))


async def _start(client: Client, plan: VmPlan, *, again: bool, drill: bool, from_copy: bool) -> Start:
    wanted = drill_id(plan.plan, plan.vm) if drill else workflow_id(plan.plan, plan.vm)
    mode = "drill" if drill else plan.mode
    if not again and await _completed(client, wanted):
        return Start(vm=plan.vm, workflow_id=wanted, outcome="already completed")
    pairs = {names.SA_PLAN: plan.plan, names.SA_VM: plan.vm, names.SA_MODE: mode, names.SA_PHASE: Phase.PRECHECK}
    attributes = [SearchAttributePair(SearchAttributeKey.for_keyword(key), str(value)) for key, value in pairs.items()]
    try:
        handle = await client.start_workflow(
            names.DRILL if drill else names.WORKFLOW_OF_MODE[plan.mode],
            DrillInput(plan=plan, from_copy=from_copy) if drill else MigrationInput(plan=plan),
            id=wanted,
            task_queue=names.CONTROL_QUEUE,
            id_conflict_policy=WorkflowIDConflictPolicy.FAIL,
            id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
            search_attributes=TypedSearchAttributes(attributes),
            static_summary=f"{plan.vm}: {mode}, {plan.source} to {plan.target}",
            rpc_timeout=RPC_TIMEOUT,
        )
    except WorkflowAlreadyStartedError:
        return Start(vm=plan.vm, workflow_id=wanted, outcome="already running")
    return Start(vm=plan.vm, workflow_id=wanted, outcome="started", run_id=handle.first_execution_run_id or "")


async def _completed(client: Client, wanted: str) -> bool:
    try:
        description = await client.get_workflow_handle(wanted).describe(rpc_timeout=RPC_TIMEOUT)
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            return False
        raise
    done = description.status is WorkflowExecutionStatus.COMPLETED
    return done and from_execution(description).phase == Phase.COMPLETED


def start_line(start: Start) -> Text:
    """One line about what became of a start."""
    keeps = " (with the plan it was started with)" if start.outcome == "already running" else ""
    return Text(f"{start.workflow_id}: {start.outcome}{keeps}")
