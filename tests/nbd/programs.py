"""Starts NBD servers of others on sockets of their own, and ends them by their process."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

START_S = 60.0


def run(*argv: str) -> str:
    """Run a program to its end; its standard output."""
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=100).stdout


@contextlib.contextmanager
def running(*argv: str, unix: Path | None = None, port: int | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A server process that accepts connections at ``unix`` or ``port``; killed at the end."""
    process = subprocess.Popen(argv)
    try:
        _await_start(process, unix, port)
        yield process
    finally:
        process.kill()
        process.wait(START_S)


def _await_start(process: subprocess.Popen[bytes], unix: Path | None, port: int | None) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args!r} ended with {process.returncode}")
        # Not by trying: a connection would count as a client.
        if (unix is not None and listens(unix)) or (port is not None and _listens(port)):
            return
        time.sleep(0.02)
    raise TimeoutError(f"{process.args!r} does not listen")


def listens(path: Path) -> bool:
    """Whether somebody listens at a unix socket: its file is there a moment before (flag __SO_ACCEPTCON, 1 << 16)."""
    table = Path("/proc/net/unix").read_text(encoding="utf-8", errors="replace")
    rows = (line.split(maxsplit=7) for line in table.splitlines()[1:])
    return any(len(row) == 8 and row[7] == str(path) and int(row[3], 16) & 1 << 16 for row in rows)


def _listens(port: int) -> bool:
    state = Path("/proc/net/tcp").read_text(encoding="ascii") + Path("/proc/net/tcp6").read_text(encoding="ascii")
    return any(f":{port:04X} " in line and " 0A " in line for line in state.splitlines())


@contextlib.contextmanager
def qemu_nbd(directory: Path, image: Path, *options: str, form: str = "raw", shared: int = 16) -> Iterator[Path]:
    """``qemu-nbd`` on a unix socket; the socket's path."""
    path = directory / "q.sock"
    path.unlink(missing_ok=True)
    argv = ["qemu-nbd", "--persistent", f"--shared={shared}", f"--format={form}", f"--socket={path}", *options]
    with running(*argv, str(image), unix=path):
        yield path


@contextlib.contextmanager
def nbdkit(directory: Path, *options: str) -> Iterator[Path]:
    """``nbdkit`` on a unix socket; the socket's path."""
    path = directory / "k.sock"
    path.unlink(missing_ok=True)
    with running("nbdkit", "--foreground", f"--unix={path}", *options, unix=path):
        yield path
