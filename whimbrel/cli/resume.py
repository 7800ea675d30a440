"""``whimbrel resume``."""

from __future__ import annotations

import typer

from whimbrel.cli.option import Every, Json, Reason, Target, Vms, operator
from whimbrel.cli.verb import say
from whimbrel.contracts import verbs

NAME = "resume"


def command(target: Target, vm: Vms = None, every: Every = False, reason: Reason = "", as_json: Json = False) -> None:
    """Go on after a pause, or try a failed step again."""
    argument = verbs.Verb(by=operator(), reason=reason)
    raise typer.Exit(say(verbs.RESUME, argument, target, vm or (), every=every, as_json=as_json))
