"""Where words and JSON go: results to stdout, everything about them to stderr.

With ``--json`` stdout holds exactly one object, ``{"version": 1, "command": ..., "result": ...}`` or, after a failure,
``{"version": 1, "command": ..., "error": {...}}``; ``watch`` writes one such object per line and change.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from pydantic_core import to_jsonable_python
from rich.console import Console, RenderableType
from rich.text import Text

from whimbrel.cli.fault import Fault

JSON_VERSION = 1


def console() -> Console:
    """The console on stdout, made now so that tests may replace the stream; never wraps what goes to a file."""
    return _console(stderr=False)


def emit(command: str, result: Any, *renderables: RenderableType, as_json: bool) -> None:
    """Print ``result`` as JSON, or else the renderables."""
    if as_json:
        _line({"version": JSON_VERSION, "command": command, "result": to_jsonable_python(result)})
        return
    to = console()
    for renderable in renderables:
        to.print(renderable)


def note(text: str) -> None:
    """A remark beside the result."""
    _console(stderr=True).print(Text(text))


def tell(fault: Fault, command: str, *, as_json: bool) -> None:
    """A failure: its line and what to do on stderr, with ``--json`` also the object on stdout."""
    if as_json:
        about = {
            "code": fault.code,
            "message": fault.message,
            "action": fault.action,
            "exit_code": int(fault.exit_code),
        }
        _line({"version": JSON_VERSION, "command": command, "error": about})
    to = _console(stderr=True)
    to.print(Text.assemble((f"whimbrel {command}".strip() + ": ", "bold red"), fault.message))
    if fault.action:
        to.print(Text.assemble(("what to do: ", "bold"), fault.action))


def _line(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def _console(*, stderr: bool) -> Console:
    to = Console(stderr=stderr, highlight=False, soft_wrap=False)
    return to if to.is_terminal else Console(stderr=stderr, highlight=False, width=200, soft_wrap=True)
