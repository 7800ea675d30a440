"""``whimbrel status``."""

from __future__ import annotations

from typing import Annotated

import typer
from temporalio.client import Client

from whimbrel.cli.exit_code import ExitCode
from whimbrel.cli.find import find, is_plan_file, list_migrations
from whimbrel.cli.migration_view import MigrationView, read_view
from whimbrel.cli.option import Json, Vms
from whimbrel.cli.output import emit
from whimbrel.cli.page import details, listing
from whimbrel.cli.session import converse
from whimbrel.contracts.names import SA_PLAN

NAME = "status"

Target = Annotated[
    str | None,
    typer.Argument(
        metavar="[TARGET]", help="Plan (file or name), PLAN/VM, VM name or workflow id; all when not given.",
        show_default=False,
    ),
]  # fmt: skip
Check = Annotated[
    bool, typer.Option("--check", help="Exit with 1 (failed, rolled back), 5 (refused) or 6 (waits for you) if so.")
]


def command(target: Target = None, vm: Vms = None, check: Check = False, as_json: Json = False) -> None:
    """List migrations, or show one in detail."""
    views, single = converse(lambda client: _read(client, target, vm or []))
    if single:
        emit(NAME, views[0], details(views[0]), as_json=as_json)
    else:
        emit(NAME, views, listing(views), as_json=as_json)
    raise typer.Exit(worst(views) if check else ExitCode.OK)


async def _read(client: Client, target: str | None, vms: list[str]) -> tuple[list[MigrationView], bool]:
    if target is None:
        return await list_migrations(client, drills=True), False
    if not vms:
        plan = _plan_of(target)
        listed = await list_migrations(client, {SA_PLAN: plan}) if plan is not None else []
        if len(listed) > 1 or (listed and not is_plan_file(target)):
            return listed, False
    (workflow_id, *more) = await find(client, target, vms)
    if more:
        return [await read_view(client, each) for each in (workflow_id, *more)], False
    return [await read_view(client, workflow_id)], True


def _plan_of(target: str) -> str | None:
    """Name of the plan that a target without a VM means; None when it can mean no plan."""
    if is_plan_file(target):
        from pathlib import Path

        from whimbrel.config.plan import load_plan

        return load_plan(Path(target)).name
    return None if "/" in target else target


def worst(views: list[MigrationView]) -> ExitCode:
    """One code for several migrations: failed before refused before waiting."""
    codes = {view.exit_code() for view in views}
    order = (ExitCode.FAILED, ExitCode.BLOCKED, ExitCode.WAITING)
    return next((code for code in order if code in codes), ExitCode.OK)
