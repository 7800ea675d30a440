"""``whimbrel sync-now``."""

from __future__ import annotations

import typer

from whimbrel.cli.option import Every, Json, Reason, Target, Vms, operator
from whimbrel.cli.verb import say
from whimbrel.contracts import verbs

NAME = "sync-now"


def command(target: Target, vm: Vms = None, every: Every = False, reason: Reason = "", as_json: Json = False) -> None:
    """Run the next round of changed blocks at once."""
    argument = verbs.Verb(by=operator(), reason=reason)
    raise typer.Exit(say(verbs.SYNC_NOW, argument, target, vm or (), every=every, as_json=as_json))
