"""Options and arguments that several commands share."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object (docs/operator.md) instead of words.")]
PlanPath = Annotated[Path, typer.Argument(metavar="PLAN", help="Plan file.", show_default=False)]
Vms = Annotated[
    list[str] | None, typer.Option("--vm", help="VM of the plan; may be given several times.", show_default=False)
]
Target = Annotated[
    str,
    typer.Argument(
        metavar="TARGET",
        help="Plan file (with --vm where it has several), PLAN/VM, workflow id, or a VM's name alone if it is unique.",
        show_default=False,
    ),
]
Every = Annotated[bool, typer.Option("--all", help="All VMs of the plan.")]
Reason = Annotated[str, typer.Option("--reason", help="Why, for the record.", show_default=False)]


def operator() -> str:
    """Who is asking, for the record."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # no such user in this container
        return "unknown"
