"""``whimbrel confirm``."""

from __future__ import annotations

import typer

from whimbrel.cli.option import Every, Json, Reason, Target, Vms, operator
from whimbrel.cli.verb import say
from whimbrel.contracts import verbs

NAME = "confirm"


def command(target: Target, vm: Vms = None, every: Every = False, reason: Reason = "", as_json: Json = False) -> None:
    """Accept the migrated VM: the source is given up as the plan says."""
    argument = verbs.Verb(by=operator(), reason=reason)
    raise typer.Exit(say(verbs.CONFIRM, argument, target, vm or (), every=every, as_json=as_json))
