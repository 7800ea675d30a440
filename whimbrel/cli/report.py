"""``whimbrel report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text
from temporalio.client import Client

from whimbrel.cli.exit_code import ExitCode
from whimbrel.cli.fault import Fault
from whimbrel.cli.find import find
from whimbrel.cli.migration_view import read_view
from whimbrel.cli.option import Json, Target, Vms
from whimbrel.cli.output import emit
from whimbrel.cli.session import converse
from whimbrel.model.progress import MigrationReport
from whimbrel.report.html import render as render_html
from whimbrel.report.terminal import render_terminal

NAME = "report"

Html = Annotated[Path | None, typer.Option("--html", help="Also write one self-contained page.", show_default=False)]


def command(target: Target, vm: Vms = None, html_file: Html = None, as_json: Json = False) -> None:
    """Show the lasting record of a migration that has ended."""
    report = converse(lambda client: _read(client, target, vm or []))
    if html_file is not None:
        try:
            html_file.write_text(render_html(report), encoding="utf-8")
        except OSError as error:
            raise Fault(
                ExitCode.INVALID,
                "Unwritable",
                f"{html_file} cannot be written: {error.strerror}",
                "choose another file",
            ) from error
    written = [Text(f"written: {html_file}")] if html_file is not None else []
    emit(NAME, report, render_terminal(report), *written, as_json=as_json)


async def _read(client: Client, target: str, vms: list[str]) -> MigrationReport:
    (workflow_id,) = await find(client, target, vms[:1])
    view = await read_view(client, workflow_id)
    if view.report is not None:
        return view.report
    if not view.ended:
        raise Fault(
            ExitCode.FAILED, "Running", f"{workflow_id} has not ended (phase {view.phase or 'unknown'})",
            f"whimbrel status {view.plan}/{view.vm} shows where it stands",
        )  # fmt: skip
    raise Fault(
        ExitCode.FAILED, "NoReport", f"{workflow_id} ended without a report ({view.state}): {view.note}",
        "look at its history in the Temporal UI",
    )  # fmt: skip
