"""``whimbrel cutover``."""

from __future__ import annotations

import typer

from whimbrel.cli.option import Every, Json, Reason, Target, Vms, operator
from whimbrel.cli.verb import say
from whimbrel.contracts import verbs

NAME = "cutover"


def command(target: Target, vm: Vms = None, every: Every = False, reason: Reason = "", as_json: Json = False) -> None:
    """Stop the source in this round, copy the last changes and start the target."""
    argument = verbs.Verb(by=operator(), reason=reason)
    raise typer.Exit(say(verbs.CUTOVER, argument, target, vm or (), every=every, as_json=as_json))
