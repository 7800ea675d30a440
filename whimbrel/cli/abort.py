"""``whimbrel abort``."""

from __future__ import annotations

import typer

from whimbrel.cli.option import Every, Json, Reason, Target, Vms, operator
from whimbrel.cli.verb import say
from whimbrel.contracts import verbs

NAME = "abort"


def command(target: Target, vm: Vms = None, every: Every = False, reason: Reason = "", as_json: Json = False) -> None:
    """Give up before the source was stopped; what was made at the target is removed."""
    argument = verbs.Verb(by=operator(), reason=reason)
    raise typer.Exit(say(verbs.ABORT, argument, target, vm or (), every=every, as_json=as_json))
