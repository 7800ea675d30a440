"""``python -m whimbrel.stream --supervise CONFIG.json``: a tiny parent that starts the server again when it dies.

It ends when the server ended in order (status 0) or can never start (status 2). SIGTERM is handed on. The parent may be
killed: the server goes on without it. One parent per configuration: a second one ends at once with status 0.
"""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Final

FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 5.0
STEADY_S: Final = 30.0
"""A server that ran that long was not failing from the start: the pauses begin anew."""

log = logging.getLogger(__name__)


def lock_path(config_path: Path) -> Path:
    """The parent's lock file, which holds its pid while it is locked."""
    return config_path.with_name(config_path.name + ".supervisor")


def supervise(config_path: Path) -> int:
    """Run the server until it ends for good; the exit status."""
    lock = os.open(lock_path(config_path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return 0
    os.ftruncate(lock, 0)
    os.pwrite(lock, str(os.getpid()).encode(), 0)
    ending = threading.Event()
    child: subprocess.Popen[bytes] | None = None

    def end(*_: object) -> None:
        ending.set()
        if child is not None:
            child.terminate()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    pause_s = FIRST_PAUSE_S
    while not ending.is_set():
        began = time.monotonic()
        child = subprocess.Popen([sys.executable, "-m", "whimbrel.stream", str(config_path)])
        if ending.is_set():
            child.terminate()
        status = child.wait()
        if status in {0, 2}:
            return status
        if time.monotonic() - began > STEADY_S:
            pause_s = FIRST_PAUSE_S
        log.warning("server.died status=%s, started again in %.1f s", status, pause_s)
        ending.wait(pause_s)
        pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
    return 0


def detach() -> None:
    """Go on in a process that nobody waits for, in a session of its own."""
    if os.fork():
        os._exit(0)
    os.setsid()
