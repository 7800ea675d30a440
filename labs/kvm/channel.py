"""The command channel of a lab guest: its second serial port, a unix socket on this side.

One line each way: ``<token> <command> [arguments]`` is answered by ``<token> <reply>``. The token tells the answer
from one that an earlier, impatient caller left in the line.
"""

from __future__ import annotations

import secrets
import socket
import time
from pathlib import Path

from labs.kvm.errors import LabError

PATIENCE_S = 180.0
"""Guests share two cores with daemons, workers and each other."""
PING_INTERVAL_S = 1.0
"""Doubled up to four of these while no answer comes: a guest of a busy machine may need longer for any of them."""


class GuestError(LabError):
    """The guest answered with an error."""


def _ask(path: Path, command: str, timeout_s: float) -> str:
    """Send one command; raises TimeoutError without an answer, OSError while the guest is off."""
    token = "t" + secrets.token_hex(4)
    deadline = time.monotonic() + timeout_s
    buffer = b""
    with socket.socket(socket.AF_UNIX) as channel:
        channel.settimeout(timeout_s)
        channel.connect(str(path))
        channel.sendall(f"\n{token} {command}\n".encode())
        while (left := deadline - time.monotonic()) > 0:
            channel.settimeout(left)
            piece = channel.recv(4096)
            if not piece:
                raise ConnectionResetError("the guest went away before it answered")
            buffer += piece
            *lines, buffer = buffer.split(b"\n")
            for line in lines:
                head, _, reply = line.decode(errors="replace").strip().partition(" ")
                if head == token:
                    return reply.strip()
    raise TimeoutError(f"no answer to {command!r} within {timeout_s} s")


def wait_answering(path: Path, timeout_s: float) -> None:
    """Ping until the guest answers. Raises LabError after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    failure: OSError | None = None
    patience_s = PING_INTERVAL_S
    while (left := deadline - time.monotonic()) > 0:
        try:
            if _ask(path, "ping", min(patience_s, left)) == "pong":
                return
        except OSError as error:  # TimeoutError too: still booting, or the socket is not there yet
            failure = error
            if isinstance(error, TimeoutError):
                patience_s = min(2 * patience_s, 4 * PING_INTERVAL_S)
            time.sleep(min(0.1, max(0.0, left)))
    raise LabError(f"the guest did not answer on {path} within {timeout_s} s: {failure}")


def command(path: Path, text: str, timeout_s: float = PATIENCE_S) -> str:
    """Run one command in the guest and return its reply; the guest is given ``timeout_s`` to come up, and to answer.

    Raises GuestError when the guest refuses, LabError when it does not answer.
    """
    wait_answering(path, timeout_s)
    try:
        reply = _ask(path, text, max(timeout_s, 1.0))
    except OSError as error:
        raise LabError(f"the guest did not answer {text!r}: {error}") from error
    if reply.startswith("ERROR"):
        raise GuestError(f"{text!r}: {reply}")
    return reply
