"""Consoles of a guest wherever it runs, read on while tests go on: Nova starts a log anew at every power on."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from labs.kvm.records import Record, parse_console

POLL_S = 0.1
UP = re.compile(rb"WB UP boot=(\d+)")
Places = Callable[[], Mapping[str, Path]]
"""Where consoles are now: a label (cloud and VM) and the log."""


@dataclass(frozen=True)
class Boot:
    """One boot of the guest, with the records that it acknowledged."""

    number: int
    where: str
    """Label of the console."""
    began_at: float
    """``time.monotonic`` when its first line was read."""
    records: tuple[Record, ...]


@dataclass
class _Log:
    """A log from its first byte until it is started anew."""

    label: str
    file: BinaryIO
    inode: int
    text: bytearray = field(default_factory=bytearray)
    chunks: list[tuple[int, float]] = field(default_factory=list)
    """Offset at which a chunk begins, and when it was read."""

    def read_on(self) -> None:
        data = self.file.read()
        if data:
            self.chunks.append((len(self.text), time.monotonic()))
            self.text += data

    def read_at(self, offset: int) -> float:
        return [at for begin, at in self.chunks if begin <= offset][-1]

    def boots(self) -> list[Boot]:
        found = list(UP.finditer(self.text))
        ends = [match.start() for match in found[1:]] + [len(self.text)] * bool(found)
        return [
            Boot(
                int(match[1]),
                self.label,
                self.read_at(match.start()),
                tuple(parse_console(self.text[match.end() : end].decode("ascii", "replace"))),
            )
            for match, end in zip(found, ends, strict=True)
        ]


class Consoles:
    """Follows all logs at ``places`` in a thread until ``close``; what was read stays when a log is removed."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._lock = threading.Lock()
        self._open: dict[Path, _Log] = {}
        self._all: list[_Log] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="consoles", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop following."""
        self._end.set()
        self._thread.join(10)
        for log in self._all:
            log.file.close()

    def boots(self) -> list[Boot]:
        """Every boot so far, in order of time."""
        self._look()
        with self._lock:
            found = [boot for log in self._all for boot in log.boots()]
        return sorted(found, key=lambda boot: boot.began_at)

    def text(self, where: str) -> str:
        """All that was printed at a place."""
        self._look()
        with self._lock:
            return b"".join(bytes(log.text) for log in self._all if log.label == where).decode("ascii", "replace")

    def _follow(self) -> None:
        while not self._end.wait(POLL_S):
            try:
                self._look()
            except OSError:
                continue

    def _look(self) -> None:
        places = self._places()
        with self._lock:
            for label, path in places.items():
                try:
                    status = path.stat()
                except FileNotFoundError:
                    continue
                log = self._open.get(path)
                if log is None or log.inode != status.st_ino or status.st_size < len(log.text):
                    file = path.open("rb")
                    log = _Log(label, file, os.fstat(file.fileno()).st_ino)
                    self._open[path] = log
                    self._all.append(log)
            for log in self._all:
                log.read_on()
