"""``whimbrel rollback``."""

from __future__ import annotations

from typing import Annotated

import typer

from whimbrel.cli.option import Every, Json, Reason, Target, Vms, operator
from whimbrel.cli.verb import say
from whimbrel.contracts import verbs

NAME = "rollback"


DropWrites = Annotated[
    bool,
    typer.Option("--drop-writes", help="Give up what the target wrote, though the plan says keep_writes."),
]


def command(
    target: Target,
    vm: Vms = None,
    every: Every = False,
    reason: Reason = "",
    drop_writes: DropWrites = False,
    as_json: Json = False,
) -> None:
    """Give the source back as it was and remove what was made at the target."""
    argument = verbs.Verb(by=operator(), reason=reason, drop_writes=drop_writes)
    raise typer.Exit(say(verbs.ROLLBACK, argument, target, vm or (), every=every, as_json=as_json))
