"""``whimbrel doctor``."""

from __future__ import annotations

from collections import Counter

import typer
from rich.table import Table
from rich.text import Text

from whimbrel.cli.diagnosis import Check, check_machine, check_temporal
from whimbrel.cli.exit_code import ExitCode
from whimbrel.cli.option import Json
from whimbrel.cli.output import emit

NAME = "doctor"
_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red", "skipped": "dim"}


def command(as_json: Json = False) -> None:
    """Look for what is missing on this machine and around it. Exit code 1 when something is broken."""
    checks, config = check_machine()
    checks += check_temporal(config)
    table = Table(box=None, pad_edge=False, show_header=False)
    for check in checks:
        todo = f"\n→ {check.action}" if check.action and check.state in {"warn", "fail"} else ""
        table.add_row(Text(check.state, style=_STYLES[check.state]), check.name, Text(check.found + todo))
    counts = Counter(check.state for check in checks)
    summary = Text(", ".join(f"{count} {state}" for state, count in counts.items()))
    emit(NAME, [check.model_dump() for check in checks], table, summary, as_json=as_json)
    raise typer.Exit(_code(checks))


def _code(checks: list[Check]) -> ExitCode:
    broken = {check.name for check in checks if check.state == "fail"}
    if "temporal" in broken:
        return ExitCode.UNREACHABLE
    return ExitCode.FAILED if broken else ExitCode.OK
