"""``whimbrel set-bandwidth``."""

from __future__ import annotations

from typing import Annotated

import typer

from whimbrel.cli.option import Every, Json, Target, Vms, operator
from whimbrel.cli.verb import say
from whimbrel.config.quantity import parse_rate
from whimbrel.contracts import verbs

NAME = "set-bandwidth"
LIFTED = {"none", "unlimited"}

Rate = Annotated[str, typer.Argument(metavar="RATE", help="50MB/s, 400Mbit/s, or none.", show_default=False)]


def command(target: Target, rate: Rate, vm: Vms = None, every: Every = False, as_json: Json = False) -> None:
    """Limit a migration's copies from now on."""
    limit: float | None = None
    if rate not in LIFTED:
        try:
            limit = parse_rate(rate)
        except ValueError as error:
            raise typer.BadParameter(f"RATE {error}") from error
        if limit <= 0:
            raise typer.BadParameter("RATE should be greater than 0; none lifts the limit, pause stops the copy")
    argument = verbs.SetBandwidth(bytes_per_s=limit, by=operator())
    raise typer.Exit(say(verbs.SET_BANDWIDTH, argument, target, vm or (), every=every, as_json=as_json))
