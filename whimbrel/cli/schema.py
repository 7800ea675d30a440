"""``whimbrel schema``."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import Annotated

import typer

from whimbrel.cli.option import Json
from whimbrel.config.clouds import clouds_schema
from whimbrel.config.plan_file import plan_schema

NAME = "schema"


class Which(StrEnum):
    """The files that have a schema."""

    PLAN = "plan"
    CLOUDS = "clouds"


WhichFile = Annotated[Which, typer.Argument(help="plan, or clouds for whimbrel.yaml.", show_default=False)]


def command(which: WhichFile, as_json: Json = False) -> None:
    """Print the JSON schema of a file, for editors; it is JSON with and without --json, and never wrapped."""
    del as_json
    sys.stdout.write(plan_schema() if which is Which.PLAN else clouds_schema())
