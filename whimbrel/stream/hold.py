"""A small process that keeps a listening socket open while streaming servers come and go, and hands it out.

Clients that connect while no server lives wait in the socket's backlog instead of being refused. Run as a script,
isolated, with the standard library alone, so that it is a few megabytes and has nothing in it that could fail::

    python -I hold.py ADDRESS PORT STEM DOOR [FD]

``STEM.holder`` is its lock and holds its pid, ``STEM.port`` the port, kept for a holder to come, and at ``DOOR`` (a
unix socket of mode 0600) whoever connects is given the listening socket (SCM_RIGHTS, unix(7)). With FD it holds that
one, otherwise it makes one. It detaches itself: the command returns 0 when it is ready, 3 if another one lives, 1 if it
cannot listen. SIGTERM ends it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import socket
import sys
from pathlib import Path

BACKLOG = 1024
READY, CANNOT_LISTEN, ANOTHER_LIVES = 0, 1, 3


def main(address: str, port: int, stem: str, door_path: str, fd: int | None) -> int:
    """Become the holder, in a process of its own; the exit status of the command."""
    lock = os.open(f"{stem}.holder", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return ANOTHER_LIVES
    os.ftruncate(lock, 0)  # the pid of one who is dead would be killed in our place
    try:
        held = socket.socket(fileno=fd) if fd is not None else listening(address, port, Path(f"{stem}.port"))
        door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with contextlib.suppress(FileNotFoundError):
            Path(door_path).unlink()  # a dead holder's: ours is the lock
        os.umask(0o177)
        door.bind(door_path)
        door.listen(BACKLOG)
    except OSError as failed:
        sys.stderr.write(f"cannot hold {address}:{port}: {failed}\n")
        return CANNOT_LISTEN
    if os.fork():
        return READY
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(null, stream)
    os.chdir("/")
    os.pwrite(lock, str(os.getpid()).encode(), 0)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    while True:
        hand_out(door, held)


def listening(address: str, port: int, remembered: Path) -> socket.socket:
    """A listening socket; a free port is chosen once and remembered, for it stands in URLs."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    if not port:
        with contextlib.suppress(OSError, ValueError):
            port = int(remembered.read_text(encoding="ascii"))
    made = socket.create_server((address, port), family=family, backlog=BACKLOG)
    fresh = remembered.with_name(remembered.name + ".new")
    fresh.write_text(str(made.getsockname()[1]), encoding="ascii")
    fresh.replace(remembered)
    return made


def hand_out(door: socket.socket, held: socket.socket) -> None:
    """Give the socket to the next who asks."""
    try:
        client, _ = door.accept()
    except OSError as failed:
        if failed.errno in {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ECONNABORTED, errno.EINTR}:
            return
        os._exit(1)
    with client, contextlib.suppress(OSError):
        client.settimeout(1)
        socket.send_fds(client, [b"."], [held.fileno()])


if __name__ == "__main__":
    where, number, files, at, *more = sys.argv[1:]
    sys.exit(main(where, int(number), files, at, int(more[0]) if more else None))
