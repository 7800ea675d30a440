"""``whimbrel version``."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed

from rich.text import Text

from whimbrel.cli.option import Json
from whimbrel.cli.output import emit

NAME = "version"


def command(as_json: Json = False) -> None:
    """Versions of Whimbrel, the Temporal SDK and Python."""
    found = {name: version_of(name) or "not installed" for name in ("whimbrel", "temporalio")}
    found["python"] = platform.python_version()
    emit(NAME, found, Text("  ".join(f"{name} {value}" for name, value in found.items())), as_json=as_json)


def version_of(distribution: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return installed(distribution)
    except PackageNotFoundError:
        return None
