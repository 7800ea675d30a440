"""``whimbrel drill``."""

from __future__ import annotations

from typing import Annotated

import typer

from whimbrel.cli.exit_code import ExitCode
from whimbrel.cli.migrate import Watch, follow_starts, start_all, start_line
from whimbrel.cli.option import Json, PlanPath, Vms
from whimbrel.cli.output import emit
from whimbrel.cli.plan_input import read_plan
from whimbrel.cli.session import converse

NAME = "drill"


FromCopy = Annotated[
    bool, typer.Option("--from-copy", help="From what the plan's running migration has copied, not from the source.")
]


def command(
    plan: PlanPath, *, vm: Vms = None, from_copy: FromCopy = False, watch: Watch = False, as_json: Json = False
) -> None:
    """Rehearse the plan's migrations on isolated networks; the VMs go on running, everything made is taken down."""
    chosen = read_plan(plan).select(vm or [])
    starts = converse(lambda client: start_all(client, chosen, again=True, drill=True, from_copy=from_copy))
    if not (watch and as_json):
        emit(NAME, starts, *[start_line(start) for start in starts], as_json=as_json)
    raise typer.Exit(follow_starts(starts, as_json=as_json) if watch else ExitCode.OK)
