"""The server as a process: ``python -m whimbrel.stream [--socket FD] CONFIG.json``; FD is a held socket for HTTP.

Ends in order at SIGTERM, SIGINT or the control verb ``stop``. May be killed at any time and started again with the
same file. Exit status: 0 ended in order, 2 bad configuration, 1 could not start.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from whimbrel.dataplane import register_opener
from whimbrel.errors import InvalidPlan, WhimbrelError
from whimbrel.stream.config import read_config
from whimbrel.stream.control import Control
from whimbrel.stream.server import StreamServer
from whimbrel.stream.supervise import detach, supervise

SWITCH_INTERVAL_S: Final = 0.0005
"""Python's default of 5 ms is what a waiting thread may lose to a busy one: longer than a miss."""
STORED: Final = "http"
FIRST_PASSED_FD: Final = 3


def notify(state: str, *descriptors: socket.socket) -> None:
    """Tell systemd, if it started us: sd_notify(3)'s protocol, a datagram to $NOTIFY_SOCKET."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
        sock.connect(address)
        if descriptors:
            socket.send_fds(sock, [state.encode()], [each.fileno() for each in descriptors])
        else:
            sock.send(state.encode())


def http_socket(fd: int | None) -> socket.socket | None:
    """The socket that our parent holds: given by number, or kept in systemd's store (sd_listen_fds(3))."""
    if fd is not None:
        return socket.socket(fileno=fd)
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return None
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    return socket.socket(fileno=FIRST_PASSED_FD + names.index(STORED)) if STORED in names else None


def register_openers(named: Mapping[str, str]) -> None:
    """Let the server open endpoints of these kinds. Raises InvalidPlan for what cannot be imported.

    The drivers' code is named, not known here: a server of files and NBD exports loads none of it.
    """
    for kind, where in named.items():
        module, _, function = where.partition(":")
        try:
            opener = getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError) as failed:
            raise InvalidPlan(f"endpoints of kind {kind} cannot be opened: {failed}", cause=failed) from failed
        register_opener(kind, opener)


def main(arguments: list[str]) -> int:
    """Run until told to stop; the exit status."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    parser = argparse.ArgumentParser(prog="python -m whimbrel.stream")
    parser.add_argument("--supervise", action="store_true", help="be the parent that starts the server again")
    parser.add_argument("--detach", action="store_true", help="in the background, with --supervise")
    parser.add_argument("--socket", type=int, help="descriptor of the socket to listen on for HTTP")
    parser.add_argument("config", type=Path)
    try:
        options = parser.parse_args(arguments)
    except SystemExit as wrong:
        return int(wrong.code or 0)
    if options.supervise:
        if options.detach:
            detach()
        return supervise(options.config)
    ending = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ending.set())
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    try:
        config = read_config(options.config)
        register_openers(config.openers)
        server = StreamServer(config, http_socket(options.socket))
        control = Control(Path(config.control_path), server, ending.set)
    except WhimbrelError as error:
        sys.stderr.write(f"{error.code}: {error}\n{error.action}\n")
        return 2 if isinstance(error, InvalidPlan) else 1
    if server.http is not None:
        server.http.lend(lambda sock: notify(f"FDSTORE=1\nFDNAME={STORED}", sock))
    notify("READY=1")
    while not ending.wait(1.0):
        pass
    notify("STOPPING=1")
    control.close()
    server.stop()
    return 0
