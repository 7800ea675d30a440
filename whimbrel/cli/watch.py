"""``whimbrel watch``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Annotated

import typer
from rich.live import Live
from rich.text import Text
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from whimbrel.cli.exit_code import ExitCode
from whimbrel.cli.find import find, list_migrations
from whimbrel.cli.migration_view import MigrationView, read_views
from whimbrel.cli.option import Json, Vms
from whimbrel.cli.output import console, emit, note
from whimbrel.cli.page import one_line, screen
from whimbrel.cli.session import converse
from whimbrel.cli.status import worst

NAME = "watch"
INTERVAL_S = 1.0
LINE_INTERVAL_S = 10.0
"""Output that is no terminal gets a line at every change of phase, and in between this often."""
FOOTER = "Ctrl-C leaves the migration alone and ends only this view"
LEFT_ALONE = "left: the migration goes on; whimbrel status shows it"

Target = Annotated[
    str | None,
    typer.Argument(metavar="[TARGET]", help="As for status; all that run when not given.", show_default=False),
]
ExitWhenWaiting = Annotated[
    bool, typer.Option("--exit-when-waiting", help="End with code 6 once a migration waits for the operator.")
]


def command(
    target: Target = None, vm: Vms = None, exit_when_waiting: ExitWhenWaiting = False, as_json: Json = False
) -> None:
    """Follow migrations until they end; Ctrl-C touches nothing."""

    async def ids(client: Client) -> list[str]:
        if target is None:
            return [view.workflow_id for view in await list_migrations(client) if not view.ended]
        return await find(client, target, vm or [], every=True)

    raise typer.Exit(follow(ids, exit_when_waiting=exit_when_waiting, as_json=as_json))


def follow(ids: Callable[[Client], object], *, exit_when_waiting: bool, as_json: bool) -> ExitCode:
    """Show the migrations that ``ids(client)`` (a coroutine function) names, to their end; the worst exit code."""

    async def body(client: Client) -> ExitCode:
        workflow_ids: list[str] = await ids(client)  # type: ignore[misc]
        if not workflow_ids:
            emit(NAME, [], Text("nothing runs"), as_json=as_json)
            return ExitCode.OK
        if as_json or not console().is_terminal:
            return await _lines(client, workflow_ids, exit_when_waiting=exit_when_waiting, as_json=as_json)
        return await _live(client, workflow_ids, exit_when_waiting=exit_when_waiting)

    try:
        return converse(body)
    except KeyboardInterrupt:
        note(LEFT_ALONE)
        return ExitCode.INTERRUPTED


class _Reader:
    """Reads views again and again; an answer that does not come leaves the last one standing, marked as old."""

    def __init__(self, client: Client, workflow_ids: Sequence[str]) -> None:
        self._client = client
        self._ids = list(workflow_ids)
        self._last: list[MigrationView] = []
        self._read_at = time.monotonic()

    async def read(self) -> list[MigrationView]:
        try:
            self._last = await read_views(self._client, self._ids)
            self._read_at = time.monotonic()
        except RPCError as error:
            if not self._last or error.status is not RPCStatusCode.UNAVAILABLE:
                raise
            age = f"Temporal does not answer; this was read {time.monotonic() - self._read_at:.0f} s ago"
            return [view.model_copy(update={"note": age}) for view in self._last]
        return self._last


def _over(views: Sequence[MigrationView], exit_when_waiting: bool) -> bool:
    if all(view.ended for view in views):
        return True
    return exit_when_waiting and any(view.waits for view in views)


async def _live(client: Client, workflow_ids: Sequence[str], *, exit_when_waiting: bool) -> ExitCode:
    reader = _Reader(client, workflow_ids)
    with Live(Text("reading"), console=console(), refresh_per_second=4) as live:
        while True:
            views = await reader.read()
            over = _over(views, exit_when_waiting)
            live.update(screen(views, "" if over else FOOTER), refresh=True)
            if over:
                return worst(views)
            await asyncio.sleep(INTERVAL_S)


async def _lines(client: Client, workflow_ids: Sequence[str], *, exit_when_waiting: bool, as_json: bool) -> ExitCode:
    reader = _Reader(client, workflow_ids)
    told: dict[str, tuple[object, float]] = {}
    while True:
        views = await reader.read()
        now = time.monotonic()
        for view in views:
            gist = (view.phase, view.state, view.waits, view.note, view.status is not None and view.status.paused)
            before, at = told.get(view.workflow_id, (None, 0.0))
            if gist != before or (not view.ended and now - at >= (INTERVAL_S if as_json else LINE_INTERVAL_S)):
                told[view.workflow_id] = (gist, now)
                emit(NAME, view, Text(one_line(view)), as_json=as_json)
        if _over(views, exit_when_waiting):
            return worst(views)
        await asyncio.sleep(INTERVAL_S)
