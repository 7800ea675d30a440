"""``whimbrel rollback``."""

from __future__ import annotations

import typer

from whimbrel.cli.option import Every, Json, Reason, Target, Vms, operator
from whimbrel.cli.verb import say
from whimbrel.contracts import verbs

NAME = "rollback"


def command(target: Target, vm: Vms = None, every: Every = False, reason: Reason = "", as_json: Json = False) -> None:
    """Give the source back as it was and remove what was made at the target."""
    argument = verbs.Verb(by=operator(), reason=reason)
    raise typer.Exit(say(verbs.ROLLBACK, argument, target, vm or (), every=every, as_json=as_json))
