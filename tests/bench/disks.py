"""Images and servers of the copy benchmark."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.nbd.programs import listens

MIB = 1 << 20
GIB = 1 << 30


def half_empty(path: Path, size_bytes: int, seed: int) -> int:
    """Write data and holes by turns, each 64 KiB to 16 MiB; returns the bytes of data."""
    rng = random.Random(seed)
    data_bytes = at = 0
    with path.open("wb") as file:
        file.truncate(size_bytes)
        while at < size_bytes:
            length = min(int(65536 * 2 ** rng.uniform(0, 8)) // 65536 * 65536, size_bytes - at)
            file.seek(at)
            file.write(rng.randbytes(length))
            data_bytes += length
            at += length + int(65536 * 2 ** rng.uniform(0, 8)) // 65536 * 65536
    return data_bytes


def sparse(path: Path, size_bytes: int, data_bytes: int, seed: int, piece_bytes: int = 4 * MIB) -> None:
    """Write ``data_bytes`` in pieces, evenly spread over a disk that is a hole otherwise."""
    rng = random.Random(seed)
    count = data_bytes // piece_bytes
    with path.open("wb") as file:
        file.truncate(size_bytes)
        for at in range(count):
            os.pwrite(file.fileno(), rng.randbytes(piece_bytes), at * (size_bytes // count))


def empty(path: Path, size_bytes: int) -> None:
    """A fresh target: one hole."""
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.truncate(size_bytes)


def differ(one: Path, other: Path) -> bool:
    """Compare two files byte by byte wherever either has data: cmp would read all of a hole."""
    with one.open("rb") as left, other.open("rb") as right:
        size = one.stat().st_size
        if other.stat().st_size != size:
            return True
        for start, end in (*_data(left.fileno(), size), *_data(right.fileno(), size)):
            for at in range(start, end, 4 * MIB):
                length = min(4 * MIB, end - at)
                if os.pread(left.fileno(), length, at) != os.pread(right.fileno(), length, at):
                    return True
    return False


def _data(fd: int, size: int) -> Iterator[tuple[int, int]]:
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError:  # ENXIO: a hole up to the end
            return
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, end


class Server:
    """A running qemu-nbd."""

    def __init__(self, socket: Path, pid: int) -> None:
        self.socket = socket
        self.uri = f"nbd+unix:///?socket={socket}"
        self._stat = Path(f"/proc/{pid}/stat")

    def cpu_s(self) -> float:
        """User and system time so far, of all threads."""
        fields = self._stat.read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def served(image: Path, socket: Path, *, writable: bool) -> Iterator[Server]:
    """Serve a raw image by qemu-nbd for a while."""
    command = ["qemu-nbd", "-f", "raw", "-k", str(socket), "--shared=16", "--persistent", "--discard=unmap"]
    command += ["--detect-zeroes=off"] + ([] if writable else ["-r"]) + [str(image)]
    process = subprocess.Popen(command)
    try:
        deadline = time.monotonic() + 30
        while not listens(socket):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("qemu-nbd did not start")
            time.sleep(0.01)
        yield Server(socket, process.pid)
    finally:
        process.terminate()
        process.wait()
        socket.unlink(missing_ok=True)
