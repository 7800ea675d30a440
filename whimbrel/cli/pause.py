"""``whimbrel pause``."""

from __future__ import annotations

import typer

from whimbrel.cli.option import Every, Json, Reason, Target, Vms, operator
from whimbrel.cli.verb import say
from whimbrel.contracts import verbs

NAME = "pause"


def command(target: Target, vm: Vms = None, every: Every = False, reason: Reason = "", as_json: Json = False) -> None:
    """Stop copying; what was copied is kept."""
    argument = verbs.Verb(by=operator(), reason=reason)
    raise typer.Exit(say(verbs.PAUSE, argument, target, vm or (), every=every, as_json=as_json))
