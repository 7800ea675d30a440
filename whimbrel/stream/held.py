"""The listening socket of a stream's HTTP side, kept by a holder (``hold``) so that no death of a server closes it.

Three processes have it: holder, supervisor, server. A new supervisor takes it from the holder; a supervisor that finds
the holder dead starts another with the socket that it has. So it stays open as long as one of holder and supervisor
lives, and is looked after every second.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from whimbrel.errors import Unavailable
from whimbrel.stream import hold
from whimbrel.stream.config import StreamConfig

START_S: Final = 20.0
END_S: Final = 10.0


def take(config_path: Path, config: StreamConfig, mine: socket.socket | None = None) -> socket.socket | None:
    """The held socket, None without HTTP; a holder is started if none lives, with ``mine`` if that is given.

    ``mine`` is closed. Raises Unavailable.
    """
    if config.http is None:
        return None
    door, deadline = door_of(config), time.monotonic() + START_S
    while True:
        if (got := _ask(door)) is not None:
            if mine is not None:
                mine.close()
            return got
        if holder(config_path) is None:
            start(config_path, config, mine)
        elif time.monotonic() > deadline:
            raise Unavailable(f"the process that holds the socket of {config_path} does not hand it out")
        else:
            time.sleep(0.05)


def door_of(config: StreamConfig) -> Path:
    """Where the holder hands the socket out: next to the control socket."""
    return Path(config.control_path).with_suffix(".hold")


def holder(config_path: Path) -> int | None:
    """The pid of the holder if it lives (0: it is just starting)."""
    try:
        fd = os.open(f"{config_path}.holder", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return int(os.pread(fd, 20, 0) or b"0")
    finally:
        os.close(fd)
    return None


def release(config_path: Path) -> None:
    """End the holder, and forget the port; nobody there is fine. Raises Unavailable if it does not end."""
    deadline = time.monotonic() + END_S
    while (pid := holder(config_path)) is not None:
        if time.monotonic() > deadline:
            raise Unavailable(f"the holder of the socket of {config_path} (process {pid}) does not end")
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        time.sleep(0.02)
    for kind in ("port", "holder"):
        Path(f"{config_path}.{kind}").unlink(missing_ok=True)


def _ask(door: Path) -> socket.socket | None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock, contextlib.suppress(OSError):
        sock.settimeout(START_S)
        sock.connect(str(door))
        _, fds, _, _ = socket.recv_fds(sock, 1, 1)
        if fds:
            return socket.socket(fileno=fds[0])
    return None


def start(config_path: Path, config: StreamConfig, mine: socket.socket | None = None) -> None:
    """Start a holder, of the socket ``mine`` if that is given; one that lives is fine. Raises Unavailable."""
    http, door = config.http, door_of(config)
    assert http is not None
    argv = [sys.executable, "-I", hold.__file__, http.address, str(http.port), str(config_path), str(door)]
    if mine is not None:
        argv.append(str(mine.fileno()))
    fds = () if mine is None else (mine.fileno(),)
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, pass_fds=fds, check=False, timeout=START_S
        )
    except (OSError, subprocess.TimeoutExpired) as failed:
        raise Unavailable(f"the holder of {http.address}:{http.port} cannot be started: {failed}") from failed
    if done.returncode not in {hold.READY, hold.ANOTHER_LIVES}:
        raise Unavailable(
            f"{done.stderr.strip()[-300:] or f'the holder ended with {done.returncode}'}",
            action="give the stream an address of this host and a free port",
        )
