"""``whimbrel plan``."""

from __future__ import annotations

import asyncio
import fnmatch
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Annotated
from uuid import uuid4

import typer
from rich.text import Text
from temporalio.client import Client

from whimbrel.cli.exit_code import ExitCode
from whimbrel.cli.fault import Fault
from whimbrel.cli.option import Json
from whimbrel.cli.output import emit, note
from whimbrel.cli.plan_input import read_config
from whimbrel.cli.session import converse, need_worker
from whimbrel.config.plan_text import dump_plan, suggest
from whimbrel.contracts import names
from whimbrel.contracts.migration import INVENTORY, InventoryInput, InventoryResult, VmSummary

NAME = "plan"
TIMEOUT = timedelta(minutes=15)

Source = Annotated[str, typer.Option("--source", help="Cloud that the VMs are in.", show_default=False)]
Destination = Annotated[str, typer.Option("--target", help="Cloud that they move to.", show_default=False)]
Patterns = Annotated[
    list[str] | None,
    typer.Option("--vm-pattern", help="VMs by name, * and ? allowed; may be given several times.", show_default="all"),
]
PlanName = Annotated[str | None, typer.Option("--name", help="Name of the plan.", show_default="SOURCE-to-TARGET")]
Out = Annotated[Path | None, typer.Option("--out", help="File to write.", show_default="stdout")]
Force = Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")]


def command(
    *,
    source: Source,
    target: Destination,
    vm_pattern: Patterns = None,
    name: PlanName = None,
    out: Out = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write a plan file from a cloud's inventory, with a mode suggested for each VM and why."""
    config = read_config()
    if config is not None:
        config.cloud(source)
        config.cloud(target)
    if out is not None and out.exists() and not force:
        raise Fault(ExitCode.INVALID, "Exists", f"{out} exists", "choose another --out, or --force to replace it")
    vms, there = converse(lambda client: _inventories(client, source, target))
    chosen = [vm for vm in vms if any(fnmatch.fnmatchcase(vm.name, pattern) for pattern in vm_pattern or ["*"])]
    if not chosen:
        what = f"none of the {len(vms)} VMs of {source!r} fits" if vms else f"cloud {source!r} has no VM"
        raise Fault(ExitCode.NOT_FOUND, "NotFound", what, "check --vm-pattern" if vms else "check --source")
    text = dump_plan(
        name=name or f"{source}-to-{target}", source=source, target=target, vms=chosen,
        target_networks=there.networks, target_pools=there.pools,
    )  # fmt: skip
    _write(text, chosen, there, out, as_json=as_json)


def _write(text: str, chosen: list[VmSummary], there: InventoryResult, out: Path | None, *, as_json: bool) -> None:
    if out is not None:
        _replace(out, text)
    elif not as_json:
        sys.stdout.write(text)
    gaps = [
        *(key for key, to in suggest((n for vm in chosen for n in vm.networks), there.networks).items() if to is None),
        *(key for key, to in suggest((p for vm in chosen for p in vm.pools), there.pools).items() if to is None),
    ]
    if as_json:
        result = {"out": None if out is None else str(out), "vms": chosen, "unmapped": gaps, "text": text}
        emit(NAME, result, as_json=True)
    elif out is not None:
        emit(NAME, None, Text(f"{out}: {len(chosen)} VMs; next: whimbrel precheck {out}"), as_json=False)
    if gaps:
        note(f"no target was guessed for {', '.join(gaps)}: choose one for each in the plan")


def _replace(path: Path, text: str) -> None:
    """Whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise Fault(
            ExitCode.INVALID, "Unwritable", f"{path} cannot be written: {error.strerror}", "choose another --out"
        ) from error


async def _inventories(client: Client, source: str, target: str) -> tuple[list[VmSummary], InventoryResult]:
    await need_worker(client, names.CONTROL_QUEUE)
    vms, there = await asyncio.gather(_every_vm(client, source), inventory(client, target, limit=1))
    return vms, there


async def _every_vm(client: Client, cloud: str) -> list[VmSummary]:
    found: list[VmSummary] = []
    while True:
        page = await inventory(client, cloud, after=found[-1].name if found else "")
        found += page.vms
        if not page.more or not page.vms:
            return found


async def inventory(
    client: Client, cloud: str, *, after: str = "", limit: int = 500, give_up: timedelta = TIMEOUT
) -> InventoryResult:
    """One page of a cloud's inventory, by its worker. Raises WorkflowFailureError."""
    result: InventoryResult = await client.execute_workflow(
        INVENTORY,
        InventoryInput(cloud=cloud, after=after, limit=limit),
        id=f"inventory/{cloud}/{uuid4().hex[:12]}",
        task_queue=names.CONTROL_QUEUE,
        execution_timeout=give_up,
        result_type=InventoryResult,
        static_summary=f"inventory of {cloud}",
    )
    return result
