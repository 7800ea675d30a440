"""One migration as the operator sees it: what Temporal knows, what the workflow tells, what its copies report."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from pydantic import ValidationError
from temporalio.api.enums.v1 import PendingActivityState
from temporalio.client import Client, WorkflowExecution, WorkflowExecutionStatus, WorkflowFailureError
from temporalio.client import WorkflowQueryFailedError as QueryFailed
from temporalio.common import SearchAttributeKey
from temporalio.service import RPCError, RPCStatusCode

from whimbrel.cli.exit_code import ExitCode
from whimbrel.cli.session import RPC_TIMEOUT
from whimbrel.contracts import failure, names
from whimbrel.contracts.heartbeat import CopyBeat
from whimbrel.model.endpoint import Frozen
from whimbrel.model.progress import MigrationReport, MigrationStatus, Phase

State = Literal["running", "completed", "failed", "canceled", "terminated", "timed_out"]

_KEYS: dict[str, Any] = {
    name: {
        "Keyword": SearchAttributeKey.for_keyword,
        "Int": SearchAttributeKey.for_int,
        "Double": SearchAttributeKey.for_float,
        "Bool": SearchAttributeKey.for_bool,
    }[kind](name)
    for name, kind in names.SEARCH_ATTRIBUTES.items()
}


class Retry(Frozen):
    """A step that failed and is tried again."""

    step: str
    attempt: int
    message: str
    worker: str = ""


class MigrationView(Frozen):
    """What ``status`` and ``watch`` show; also their JSON."""

    workflow_id: str
    run_id: str
    plan: str
    vm: str
    mode: str
    state: State
    phase: str
    percent: int | None = None
    outage_s: float | None = None
    attention: bool = False
    started_at: datetime
    closed_at: datetime | None = None
    status: MigrationStatus | None = None
    copies: tuple[CopyBeat, ...] = ()
    retries: tuple[Retry, ...] = ()
    report: MigrationReport | None = None
    note: str = ""
    """Why something above is missing or old."""

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.state != "running"

    @property
    def waits(self) -> bool:
        """Whether the operator has to say something."""
        asks = self.status is not None and self.status.trouble is not None
        return not self.ended and (asks or self.attention or self.phase in {Phase.ATTENTION, Phase.CONFIRM})

    def exit_code(self) -> ExitCode:
        """How a script should take it."""
        if self.phase == Phase.REFUSED:
            return ExitCode.BLOCKED
        if self.phase == Phase.ROLLED_BACK or self.state not in {"running", "completed"}:
            return ExitCode.FAILED
        return ExitCode.WAITING if self.waits else ExitCode.OK


def from_execution(execution: WorkflowExecution) -> MigrationView:
    """What a list or a describe of Temporal alone tells."""
    found = {name: execution.typed_search_attributes.get(key) for name, key in _KEYS.items()}
    _, plan, vm = (*execution.id.split("/", 2), "", "")[:3]
    return MigrationView(
        workflow_id=execution.id,
        run_id=execution.run_id,
        plan=found[names.SA_PLAN] or plan,
        vm=found[names.SA_VM] or vm,
        mode=found[names.SA_MODE] or _mode(execution.workflow_type, names.WORKFLOW_OF_MODE),
        state=_state(execution.status),
        phase=found[names.SA_PHASE] or "",
        percent=found[names.SA_PERCENT],
        outage_s=found[names.SA_OUTAGE],
        attention=bool(found[names.SA_ATTENTION]),
        started_at=execution.start_time,
        closed_at=execution.close_time,
    )


async def read_view(client: Client, workflow_id: str) -> MigrationView:
    """The whole view, read now. A missing worker only leaves parts out. Raises RPCError."""
    handle = client.get_workflow_handle(workflow_id)
    description = await handle.describe(rpc_timeout=RPC_TIMEOUT)
    view = from_execution(description)
    if view.ended:
        return await _with_result(client, view)
    copies, retries = await _pending(client, description.raw_description.pending_activities)
    view = view.model_copy(update={"copies": copies, "retries": retries})
    try:
        status = await handle.query(names.STATUS_QUERY, result_type=MigrationStatus, rpc_timeout=RPC_TIMEOUT)
    except (RPCError, QueryFailed) as error:
        if isinstance(error, RPCError) and error.status is RPCStatusCode.UNAVAILABLE:
            raise
        return view.model_copy(update={"note": "no worker answers: what is shown is what Temporal keeps"})
    changed = {"status": status, "phase": str(status.phase), "mode": status.mode}
    if status.forecast is not None:
        changed["outage_s"] = status.forecast.outage_s
    return view.model_copy(update=changed)


async def _with_result(client: Client, view: MigrationView) -> MigrationView:
    handle = client.get_workflow_handle(view.workflow_id, run_id=view.run_id, result_type=MigrationReport)
    try:
        report: MigrationReport = await handle.result(rpc_timeout=RPC_TIMEOUT)
    except WorkflowFailureError as error:
        return view.model_copy(update={"note": failure.read(error.cause).message})
    except (ValidationError, ValueError) as error:
        return view.model_copy(update={"note": f"its result cannot be read: {type(error).__name__}"})
    return view.model_copy(update={"report": report, "status": report.status, "phase": str(report.status.phase)})


async def _pending(client: Client, pending: Any) -> tuple[tuple[CopyBeat, ...], tuple[Retry, ...]]:
    copies, retries = [], []
    for activity in pending:
        if activity.attempt > 1 and activity.HasField("last_failure"):
            waiting = activity.state == PendingActivityState.PENDING_ACTIVITY_STATE_SCHEDULED
            retries.append(
                Retry(
                    step=activity.activity_type.name,
                    attempt=activity.attempt,
                    message=activity.last_failure.message.split("\n", 1)[0][:300],
                    worker="" if waiting else activity.last_worker_identity,
                )
            )
        if activity.heartbeat_details.payloads:
            try:
                (beat,) = await client.data_converter.decode(activity.heartbeat_details.payloads, [CopyBeat])
            except (ValueError, RuntimeError, TypeError):
                continue  # another activity's own details
            if isinstance(beat, CopyBeat):
                copies.append(beat)
    return tuple(sorted(copies, key=lambda beat: beat.disk)), tuple(retries)


def _state(status: WorkflowExecutionStatus | None) -> State:
    match status:
        case WorkflowExecutionStatus.COMPLETED:
            return "completed"
        case WorkflowExecutionStatus.FAILED:
            return "failed"
        case WorkflowExecutionStatus.CANCELED:
            return "canceled"
        case WorkflowExecutionStatus.TERMINATED:
            return "terminated"
        case WorkflowExecutionStatus.TIMED_OUT:
            return "timed_out"
    return "running"


def _mode(workflow_type: str, of_mode: Mapping[str, str]) -> str:
    return next((mode for mode, name in of_mode.items() if name == workflow_type), "")


async def read_views(client: Client, workflow_ids: list[str]) -> list[MigrationView]:
    """Several views, in the given order, few at once."""
    gate = asyncio.Semaphore(8)

    async def one(workflow_id: str) -> MigrationView:
        async with gate:
            return await read_view(client, workflow_id)

    return list(await asyncio.gather(*(one(workflow_id) for workflow_id in workflow_ids)))
