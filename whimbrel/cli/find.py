"""Which migrations a name on the command line means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from whimbrel.cli.exit_code import ExitCode
from whimbrel.cli.fault import Fault
from whimbrel.cli.migration_view import MigrationView, from_execution
from whimbrel.cli.session import RPC_TIMEOUT
from whimbrel.config.plan import load_plan
from whimbrel.config.problem import nearest
from whimbrel.contracts import names
from whimbrel.model.naming import workflow_id

LIST_LIMIT = 10_000
_TYPES = ", ".join(f"'{name}'" for name in sorted(set(names.WORKFLOW_OF_MODE.values())))
IDS = ("vm/", "drill/")


def is_plan_file(target: str) -> bool:
    """Whether the target names a file, by its ending or by being one."""
    return target.endswith((".yaml", ".yml")) or (not target.startswith(IDS) and Path(target).is_file())


async def list_migrations(
    client: Client, where: Mapping[str, str] | None = None, *, drills: bool = False
) -> list[MigrationView]:
    """The newest run of each migration whose search attributes are these, newest first; with ``drills`` these too."""
    types = f"{_TYPES}, '{names.DRILL}'" if drills else _TYPES
    clauses = [f"WorkflowType IN ({types})", *(f"{key} = {_quoted(value)}" for key, value in (where or {}).items())]
    newest: dict[str, MigrationView] = {}
    async for execution in client.list_workflows(" AND ".join(clauses), limit=LIST_LIMIT, rpc_timeout=RPC_TIMEOUT):
        view = from_execution(execution)
        held = newest.get(view.workflow_id)
        if held is None or (view.started_at, not view.ended) > (held.started_at, not held.ended):
            newest[view.workflow_id] = view
    return sorted(newest.values(), key=lambda view: view.started_at, reverse=True)


async def find(client: Client, target: str, vms: Sequence[str] = (), *, every: bool = False) -> list[str]:
    """Workflow ids that ``target`` means; more than one only for a plan, with several ``vms`` or ``every``.

    Raises Fault (NOT_FOUND, or INVALID when more than one is meant without saying so) and InvalidFile.
    """
    if is_plan_file(target):
        loaded = load_plan(Path(target))
        return _several([(loaded.name, plan.vm) for plan in loaded.select(vms)], every=every or bool(vms))
    if target.startswith(IDS):
        return [target]
    if "/" in target:
        plan, vm = target.split("/", 1)
        return [await _known(client, workflow_id(plan, vm), plan)]
    if not vms:
        by_name = await list_migrations(client, {names.SA_VM: target})
        if by_name:
            return [_only(target, by_name)]
    of_plan = await list_migrations(client, {names.SA_PLAN: target})
    if not of_plan:
        raise await _absent(client, target)
    missing = [vm for vm in vms if vm not in {view.vm for view in of_plan}]
    if missing:
        raise Fault(
            ExitCode.NOT_FOUND, "NotFound", f"plan {target!r} has no migration of VM {missing[0]!r}",
            f"whimbrel status {target} lists those it has",
        )  # fmt: skip
    chosen = [(view.plan, view.vm) for view in of_plan if not vms or view.vm in vms]
    return _several(chosen, every=every or bool(vms))


def _several(pairs: list[tuple[str, str]], *, every: bool) -> list[str]:
    if len(pairs) > 1 and not every:
        raise Fault(
            ExitCode.INVALID, "Ambiguous", f"the plan has {len(pairs)} VMs", "name some with --vm, or say --all"
        )
    return [workflow_id(plan, vm) for plan, vm in pairs]


def _only(name: str, views: list[MigrationView]) -> str:
    live = [view for view in views if not view.ended] or views
    if len(live) > 1:
        places = ", ".join(sorted(f"{view.plan}/{view.vm}" for view in live)[:8])
        raise Fault(ExitCode.INVALID, "Ambiguous", f"{name!r} is in several plans: {places}", "write PLAN/VM")
    return live[0].workflow_id


async def _known(client: Client, wanted: str, plan: str) -> str:
    try:
        await client.get_workflow_handle(wanted).describe(rpc_timeout=RPC_TIMEOUT)
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:
            raise
        raise await _absent(client, wanted.removeprefix("vm/"), plan) from error
    return wanted


async def _absent(client: Client, name: str, plan: str | None = None) -> Fault:
    views = await list_migrations(client)
    words = {f"{view.plan}/{view.vm}" for view in views}
    if plan is None:
        words |= {view.vm for view in views} | {view.plan for view in views}
    near = nearest(name, words)
    hint = f"; did you mean {near}?" if near else ""
    return Fault(ExitCode.NOT_FOUND, "NotFound", f"no migration {name!r}{hint}", "whimbrel status lists all")


def _quoted(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
