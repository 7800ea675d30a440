"""``whimbrel precheck``."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Annotated

import typer
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text
from temporalio.client import Client
from temporalio.common import WorkflowIDConflictPolicy

from whimbrel.cli.exit_code import ExitCode
from whimbrel.cli.option import Json, PlanPath, Vms
from whimbrel.cli.output import emit
from whimbrel.cli.plan_input import read_plan
from whimbrel.cli.session import converse, need_worker
from whimbrel.contracts import names
from whimbrel.contracts.migration import PrecheckInput, PrecheckReport
from whimbrel.model.figures import rate_text
from whimbrel.model.finding import Finding
from whimbrel.model.plan import VmPlan

NAME = "precheck"
AT_ONCE = 8

Probe = Annotated[bool, typer.Option(help="Measure the data path with real bytes in a small volume that is removed.")]
Everything = Annotated[bool, typer.Option("--all", help="Show also what is in order and what could not be judged.")]
TimeoutMinutes = Annotated[float, typer.Option("--timeout-minutes", min=0.1, help="Give up after this for one VM.")]

_STYLES = {"block": "bold red", "warn": "yellow", "info": ""}


def command(
    plan: PlanPath,
    *,
    vm: Vms = None,
    probe: Probe = True,
    everything: Everything = False,
    timeout_minutes: TimeoutMinutes = 30,
    as_json: Json = False,
) -> None:
    """Ask whether the plan's VMs can be migrated; changes nothing. Exit code 5 when something forbids it."""
    chosen = read_plan(plan).select(vm or [])
    give_up = timedelta(minutes=timeout_minutes)
    reports = converse(lambda client: run_prechecks(client, chosen, probe=probe, give_up=give_up))
    emit(
        NAME,
        [_as_json(report) for report in reports],
        *[page(r, everything=everything) for r in reports],
        as_json=as_json,
    )
    raise typer.Exit(ExitCode.BLOCKED if any(report.blocked() for report in reports) else ExitCode.OK)


async def run_prechecks(
    client: Client, plans: Sequence[VmPlan], *, probe: bool, give_up: timedelta
) -> list[PrecheckReport]:
    """A report per VM, in order. A precheck that runs already is joined. Raises Fault, WorkflowFailureError."""
    await need_worker(client, names.CONTROL_QUEUE)
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(plan: VmPlan) -> PrecheckReport:
        async with gate:
            report: PrecheckReport = await client.execute_workflow(
                names.PRECHECK,
                PrecheckInput(plan=plan, probe=probe),
                id=f"precheck/{plan.plan}/{plan.vm}",
                task_queue=names.CONTROL_QUEUE,
                id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                execution_timeout=give_up,
                result_type=PrecheckReport,
                static_summary=f"precheck of {plan.vm}, {plan.source} to {plan.target}",
            )
            return report

    return list(await asyncio.gather(*(one(plan) for plan in plans)))


def page(report: PrecheckReport, *, everything: bool) -> RenderableType:
    """Findings that matter, worst first, under a headline."""
    found = [f for f in report.findings if everything or f.outcome in {"found", "accepted"}]
    unknown = [f for f in report.findings if f.outcome == "unknown"]
    in_order = len([f for f in report.findings if f.outcome == "ok"])
    verdict = "blocked" if report.blocked() else "can be migrated"
    headline = f": {verdict}; {in_order} of {len(report.findings)} in order"
    if report.read_bytes_per_s and report.write_bytes_per_s:
        headline += f"; reads {rate_text(report.read_bytes_per_s)}, writes {rate_text(report.write_bytes_per_s)}"
    table = Table(
        box=None, pad_edge=False, show_header=False, title_justify="left", title_style="",
        title=Text.assemble((report.vm, "bold"), headline),
    )  # fmt: skip
    for finding in found:
        what = finding.found + (f"\n→ {finding.action}" if finding.action and finding.outcome != "ok" else "")
        table.add_row(Text("  " + _word(finding), style=_STYLES[finding.severity]), finding.rule, Text(what))
    if unknown and not everything:
        table.add_row("  unknown", "", f"{len(unknown)} more could not be judged; --all shows them")
    return table


def _word(finding: Finding) -> str:
    return str(finding.severity) if finding.outcome == "found" else finding.outcome


def _as_json(report: PrecheckReport) -> dict[str, object]:
    return {**report.model_dump(mode="json"), "blocked": report.blocked()}
