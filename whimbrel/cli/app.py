"""Puts the commands together and ends each with one line and an exit code, never a stack trace."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer
from typer.main import get_command

from whimbrel.cli import (
    abort,
    confirm,
    cutover,
    dev_server,
    doctor,
    drill,
    migrate,
    mover_image,
    pause,
    plan,
    precheck,
    report,
    resume,
    rollback,
    schema,
    set_bandwidth,
    status,
    sync_now,
    version,
    watch,
)
from whimbrel.cli.exit_code import ExitCode
from whimbrel.cli.fault import Fault, explain
from whimbrel.cli.output import tell

DEBUG = "--debug"
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]

app = typer.Typer(
    name="whimbrel",
    help="Move running virtual machines between clouds. Exit codes and JSON: docs/operator.md",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (
    plan, precheck, drill, migrate, status, watch, cutover, pause, resume, sync_now, set_bandwidth, confirm, rollback,
    abort, report, doctor, schema, mover_image, dev_server, version,
):  # fmt: skip
    app.command(module.NAME)(module.command)


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option(DEBUG, help="Show where an error comes from (anywhere on the line).")] = False,
) -> None:
    """Move running virtual machines between clouds. Exit codes and JSON: docs/operator.md"""


def run(argv: Sequence[str]) -> int:
    """Run one command line (without the program's name) and give its exit code."""
    debug = DEBUG in argv or bool(os.environ.get("WHIMBREL_DEBUG"))
    words = [word for word in argv if word != DEBUG]
    name = next((word for word in words if not word.startswith("-")), "")
    try:
        code = get_command(app).main(list(words), prog_name="whimbrel", standalone_mode=False)
        return code if isinstance(code, int) else ExitCode.OK
    except (KeyboardInterrupt, typer.Abort):
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.OK
    except _UsageError as error:
        hint = f"whimbrel {name} --help".replace("  ", " ")
        words_of_it = getattr(error, "format_message", None)
        message = words_of_it() if words_of_it is not None else str(error)
        if "\n" in message:  # a command line without any command: its help
            sys.stderr.write(f"{message}\n")
            return ExitCode.INVALID
        fault = Fault(ExitCode.INVALID, "Usage", message, hint)
    except Exception as error:  # noqa: BLE001 - the operator gets one line, never a stack trace
        if debug:
            traceback.print_exc()
        fault = explain(error) or Fault(
            ExitCode.FAILED, "Defect", f"{type(error).__name__}: {error}", "report this with the output of --debug"
        )
    tell(fault, name, as_json="--json" in words)
    return fault.exit_code
