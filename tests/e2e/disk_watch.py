"""Who has an image open for writing, read from /proc all the while: never two QEMUs at once."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Self

import libvirt

from labs.stage import CLOUD_NAMES, Stage

EVERY_S = 0.1
"""Looking costs a part of a core, which the guests need too; two writers would stay so for much longer."""
Seen = dict[tuple[int, int], set[int]]
"""Inode -> processes that have it open for writing."""


class DiskWatch:
    """Looks at every QEMU of the machine inside the ``with``; what it saw of two writers is kept."""

    def __init__(self, images: Iterable[Path]) -> None:
        self._inodes = {(info.st_dev, info.st_ino): path for path in images for info in [path.stat()]}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="disk-watch", daemon=True)
        self.double: list[str] = []
        self.looks = 0
        self._last: Seen = {}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)

    def _watch(self) -> None:
        while not self._stop.wait(EVERY_S):
            both = self._look()
            if any(len(pids) > 1 for pids in both.values()):
                # Two looks must agree: who was seen first may have closed before the other was seen.
                again = self._look()
                both = {inode: pids & again.get(inode, set()) for inode, pids in both.items()}
            self._last = both
            self.looks += 1
            for inode, pids in both.items():
                if len(pids) > 1:
                    self.double.append(f"two processes write {self._inodes[inode].name}: {sorted(pids)}")

    def _look(self) -> Seen:
        seen: Seen = {}
        for process in Path("/proc").iterdir():
            if process.name.isdigit():
                for inode in _written_by(process):
                    if inode in self._inodes:
                        seen.setdefault(inode, set()).add(int(process.name))
        return seen

    def wait_for(self, fits: Callable[[Seen], bool], timeout_s: float = 90.0) -> None:
        """Until the watch has seen something."""
        deadline = time.monotonic() + timeout_s
        while not fits(self._last):
            assert time.monotonic() < deadline, self._last
            time.sleep(EVERY_S)

    def assert_one_writer(self) -> None:
        """Never two, and the watch has really looked. Raises AssertionError."""
        assert self.looks > 0
        assert self.double == [], self.double[0]

    @contextlib.contextmanager
    def starting_by_hand(self, stage: Stage, guest: str, *, pause_s: float = 0.05) -> Iterator[None]:
        """Somebody tries to start the guest on the source's cloud, again and again."""
        stop = threading.Event()

        def work() -> None:
            connection = stage.lab.connect(next(iter(CLOUD_NAMES)))
            while not stop.wait(pause_s):
                with contextlib.suppress(libvirt.libvirtError):
                    connection.lookupByName(guest).create()
            connection.close()

        thread = threading.Thread(target=work, name="by-hand", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(10)


def _written_by(process: Path) -> Iterator[tuple[int, int]]:
    """Inodes that a process named like QEMU has open for writing; a process that ends meanwhile has none."""
    with contextlib.suppress(OSError):
        if not (process / "comm").read_text().startswith("qemu"):
            return
        for descriptor in (process / "fd").iterdir():
            with contextlib.suppress(OSError, IndexError, ValueError):
                flags = (process / "fdinfo" / descriptor.name).read_text().split("flags:")[1].split()[0]
                if int(flags, 8) & os.O_ACCMODE != os.O_RDONLY:
                    info = descriptor.stat()
                    yield info.st_dev, info.st_ino
