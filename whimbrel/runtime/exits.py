"""The one place where a process of ours runs its event loop and ends.

With SDK 1.35 an interpreter may abort while finalising after a worker ran (exit code 134 or 139 instead of ours).
Leaving without finalisation avoids it: output is flushed first, and the exit code is the one that was meant.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn


def leave(code: int) -> NoReturn:
    """Flush and end the process with ``code``, skipping interpreter finalisation."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            code = code or 1
    os._exit(code)


def run_and_leave(main: Callable[[], Coroutine[Any, Any, int]]) -> NoReturn:
    """Run ``main`` to its end and leave with the code it returns; 130 after Ctrl-C, 1 after an unforeseen error."""
    try:
        code = asyncio.run(main())
    except KeyboardInterrupt:
        code = 130
    except SystemExit as exit_request:
        code = exit_request.code if isinstance(exit_request.code, int) else 1
    except BaseException:  # noqa: BLE001 - the last line of defence: report, then the exit code tells
        sys.excepthook(*sys.exc_info())
        code = 1
    gc.collect()
    leave(code)
