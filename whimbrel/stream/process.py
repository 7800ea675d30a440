"""The server as a process: ``python -m whimbrel.stream CONFIG.json``.

Ends in order at SIGTERM, SIGINT or the control verb ``stop``. May be killed at any time and started again with the
same file. Exit status: 0 ended in order, 2 bad configuration, 1 could not start.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Final

from whimbrel.errors import InvalidPlan, WhimbrelError
from whimbrel.stream.config import read_config
from whimbrel.stream.control import Control
from whimbrel.stream.server import StreamServer
from whimbrel.stream.supervise import detach, supervise

SWITCH_INTERVAL_S: Final = 0.0005
"""Python's default of 5 ms is what a waiting thread may lose to a busy one: longer than a miss."""


def notify(state: str) -> None:
    """Tell systemd, if it started us: sd_notify(3)'s protocol, a datagram to $NOTIFY_SOCKET."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
        sock.sendto(state.encode(), address)


def main(arguments: list[str]) -> int:
    """Run until told to stop; the exit status."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    supervised = arguments[:1] == ["--supervise"]
    detached = supervised and arguments[1:2] == ["--detach"]
    arguments = arguments[supervised + detached :]
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m whimbrel.stream [--supervise [--detach]] CONFIG.json\n")
        return 2
    if detached:
        detach()
    if supervised:
        return supervise(Path(arguments[0]))
    ending = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ending.set())
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    try:
        config = read_config(Path(arguments[0]))
        server = StreamServer(config)
        control = Control(Path(config.control_path), server, ending.set)
    except WhimbrelError as error:
        sys.stderr.write(f"{error.code}: {error}\n{error.action}\n")
        return 2 if isinstance(error, InvalidPlan) else 1
    notify("READY=1")
    while not ending.wait(1.0):
        pass
    notify("STOPPING=1")
    control.close()
    server.stop()
    return 0
