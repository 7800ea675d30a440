"""Records a running server's accesses into a trace.

The serving threads only append to a deque, which takes no lock; a thread of the recorder's own encodes and writes every
``EVERY_S``, so a kill costs that much at the end of the trace. A recording that fails or falls behind is told in the
status and in the trace; it never hinders the guest.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from pathlib import Path
from typing import Final

from whimbrel.errors import Unavailable
from whimbrel.stream.hydration import Access
from whimbrel.stream.prefetch.trace import DEFAULT_MAX_BYTES, Record, TraceHeader, TraceWriter

EVERY_S: Final = 2.0
BACKLOG: Final = 1 << 19
"""Accesses between two writes of the thread: 260 thousand a second are more than the server can serve."""

log = logging.getLogger(__name__)


class Recorder:
    """Records from construction until ``stop``. Continues a trace of the same disk with a new segment."""

    def __init__(
        self, path: Path, header: TraceHeader, *, max_bytes: int = DEFAULT_MAX_BYTES, every_s: float = EVERY_S
    ) -> None:
        """Raises Conflict (a trace of another disk), InvalidPlan (no trace), Unavailable (cannot be written)."""
        self._path = path
        try:
            self._writer = TraceWriter(path, header, max_bytes=max_bytes)
        except OSError as failed:
            raise Unavailable(f"cannot record into {path}: {failed}", cause=failed) from failed
        self._began = time.monotonic()
        self._waiting: deque[Record] = deque(maxlen=BACKLOG)
        """With times by time.monotonic."""
        self._recorded = 0
        self._lost = False
        self._error: str | None = None
        self._every_s = every_s
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    def note(self, offset: int, length: int, access: Access, at: float) -> None:
        """The guest asked for this, ``at`` by time.monotonic. From any thread."""
        self._waiting.append(Record(at, access, offset, length))

    def stop(self) -> None:
        """Write what is left, and end. Once."""
        self._ending.set()
        self._thread.join()
        try:
            self._writer.close()
        except OSError as failed:  # what could not be written before
            self._error = self._error or str(failed)

    def report(self) -> dict[str, object]:
        """For the status."""
        return {
            "path": str(self._path),
            "records": self._recorded,
            "bytes": self._writer.size_bytes,
            "full": self._writer.full,
            "lost": self._lost,
            "error": self._error,
        }

    def _run(self) -> None:
        while not self._ending.wait(self._every_s):
            self._write()
        self._write()

    def _write(self) -> None:
        if self._error is not None:
            self._waiting.clear()
            return
        count = len(self._waiting)
        taken = sorted((self._waiting.popleft() for _ in range(count)), key=lambda each: each.at_s)
        if not taken:
            return
        try:
            if count == BACKLOG and not self._lost:
                self._lost = True
                self._writer.tell_lost()
            self._writer.append(each._replace(at_s=max(each.at_s - self._began, 0.0)) for each in taken)
            os.fdatasync(self._writer.fd)
        except OSError as failed:
            log.warning("trace.failed", extra={"path": str(self._path), "error": str(failed)})
            self._error = str(failed)
            return
        self._recorded += 0 if self._writer.full else count
