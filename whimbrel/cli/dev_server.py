"""``whimbrel dev-server``."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.text import Text

from whimbrel.cli.exit_code import ExitCode
from whimbrel.cli.fault import Fault
from whimbrel.cli.option import Json
from whimbrel.cli.output import emit, note
from whimbrel.runtime.devserver import DevServer

NAME = "dev-server"

Directory = Annotated[Path, typer.Option("--directory", help="Where its database and log are kept.")]
Port = Annotated[int, typer.Option("--port", min=1, max=65535, help="Port of the server.")]
UiPort = Annotated[int, typer.Option("--ui-port", min=1, max=65535, help="Port of the Web UI.")]


def command(
    directory: Directory = Path(".state/temporal"), port: Port = 7233, ui_port: UiPort = 8233, as_json: Json = False
) -> None:
    """Run a Temporal development server until Ctrl-C; its state survives in the directory."""
    server = DevServer(directory, port, ui_port)
    for ending in (signal.SIGINT, signal.SIGTERM):  # whoever started us, neither may leave the server behind
        signal.signal(ending, _end)
    server.start()
    assert server.process is not None
    try:
        time.sleep(0.5)
        if server.process.poll() is None:
            emit(
                NAME, {"address": server.address, "ui": server.ui_url, "directory": str(directory)},
                Text(f"Temporal at {server.address}, Web UI at {server.ui_url}; Ctrl-C ends it"), as_json=as_json,
            )  # fmt: skip
        code = server.process.wait()
    except KeyboardInterrupt:
        note("ending; migrations go on when it runs again")
        raise
    finally:
        server.stop()
    raise Fault(
        ExitCode.FAILED, "DevServer", f"the server ended with code {code}", f"read {directory / 'temporal.log'}"
    )


def _end(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
