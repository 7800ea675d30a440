"""``python -m whimbrel.stream --supervise CONFIG.json``: a tiny parent that starts the server again when it dies.

It ends when the server ended in order (status 0) or can never start (status 2). SIGTERM is handed on. The parent may be
killed: the server goes on without it, and a parent that is started later waits for its end, then starts the next. One
parent per configuration: a second one ends at once with status 0. The listening socket of HTTP is held (``held``).
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Final

from whimbrel.errors import InvalidPlan, WhimbrelError
from whimbrel.stream import held
from whimbrel.stream.config import StreamConfig, read_config
from whimbrel.stream.control import ask
from whimbrel.stream.mapfile import HEADER_BYTES, unpack_header

FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 5.0
STEADY_S: Final = 30.0
"""A server that ran that long was not failing from the start: the pauses begin anew."""
LOOK_S: Final = 1.0
ORPHAN_LOOK_S: Final = 0.1

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
    sock: socket.socket | None = None
    pause_s = FIRST_PAUSE_S
    while not ending.is_set():
        began, why = time.monotonic(), ""
        try:
            config = read_config(config_path)
            sock = held.take(config_path, config, sock)
            if _orphan_ended_well(config, ending) or ending.is_set():
                break
            child = _start(config_path, sock)
            if ending.is_set():
                child.terminate()
            status = _watch(child, config_path, config, sock)
            if status in {0, 2}:
                return status
            why = f"status={status}"
        except InvalidPlan as bad:
            sys.stderr.write(f"{bad.code}: {bad}\n")
            return 2
        except WhimbrelError as error:
            why = f"{error.code}: {error}"
        if time.monotonic() - began > STEADY_S:
            pause_s = FIRST_PAUSE_S
        log.warning("server.died %s, started again in %.1f s", why, pause_s)
        ending.wait(pause_s)
        pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
    return 0


def _start(config_path: Path, sock: socket.socket | None) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-m", "whimbrel.stream"]
    if sock is None:
        return subprocess.Popen([*argv, str(config_path)])
    fd = sock.fileno()
    return subprocess.Popen([*argv, "--socket", str(fd), str(config_path)], pass_fds=(fd,))


def _watch(child: subprocess.Popen[bytes], config_path: Path, config: StreamConfig, sock: socket.socket | None) -> int:
    """The status of the child when it has ended; meanwhile there is always somebody else who holds the socket."""
    while True:
        try:
            return child.wait(None if sock is None else LOOK_S)
        except subprocess.TimeoutExpired:
            if sock is not None and held.holder(config_path) is None:
                with contextlib.suppress(WhimbrelError):
                    held.start(config_path, config, sock)


def _orphan_ended_well(config: StreamConfig, ending: threading.Event) -> bool:
    """Wait while a server runs that another parent left: the next may not touch its map before. Whether none is wanted.

    An orderly end marks the map clean, which every start undoes.
    """
    try:
        fd = os.open(f"{config.map_stem}.lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    waited = False
    try:
        while not ending.is_set():
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waited = True
                ending.wait(ORPHAN_LOOK_S)
            else:
                return waited and _clean(Path(f"{config.map_stem}.durable"))
        with contextlib.suppress(WhimbrelError):
            ask(Path(config.control_path), "stop")
        return True
    finally:
        os.close(fd)


def _clean(durable: Path) -> bool:
    try:
        with durable.open("rb") as file:
            header = unpack_header(file.read(HEADER_BYTES))
    except OSError:
        return False
    return header is not None and header.clean


def detach() -> None:
    """Go on in a process that nobody waits for, in a session of its own."""
    if os.fork():
        os._exit(0)
    os.setsid()
