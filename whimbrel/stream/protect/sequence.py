"""Carries changes out in the order in which they came, in batches: what costs a round trip is paid once a batch.

One thread makes every change at the target and hands it on, so both sides see overlapping changes in one order.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from whimbrel.errors import WhimbrelError
from whimbrel.stream.protect.change import Change
from whimbrel.stream.source import Stopped

BATCH_CHANGES: Final = 1024
BATCH_BYTES: Final = 16 << 20

log = logging.getLogger(__name__)


class Sequence:
    """``settle`` is called once before the first batch, ``carry_out`` for each; both may raise Stopped to end it."""

    def __init__(self, settle: Callable[[], None], carry_out: Callable[[list[Change]], None]) -> None:
        self._settle = settle
        self._carry_out = carry_out
        self._changed = threading.Condition()
        self._waiting: deque[Change] = deque()
        self._busy: list[Change] = []
        self._stopping = False
        self._broken: WhimbrelError | None = None
        self._thread = threading.Thread(target=self._run, name="protect", daemon=True)
        self.changes = 0
        self.batches = 0
        self.settled = False

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End; what was not carried out is dropped, for nobody was told that it was done."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join()

    def submit(self, change: Change) -> None:
        """Take a change."""
        with self._changed:
            broken = self._broken
            if broken is None:
                self._waiting.append(change)
                self._changed.notify_all()
        if broken is not None:
            change.done(broken)

    def idle(self, timeout_s: float) -> bool:
        """Wait until everything that was taken is done; False if that takes longer."""
        with self._changed:
            return self._changed.wait_for(lambda: self.settled and not self._waiting and not self._busy, timeout_s)

    def waiting(self) -> tuple[int, float]:
        """Bytes that are not acknowledged yet, and the age of the oldest, in seconds."""
        with self._changed:
            held = [*self._busy, *self._waiting]
            bytes_held = sum(0 if change.data is None else change.length for change in held)
            return bytes_held, (time.monotonic() - held[0].came_at if held else 0.0)

    def _run(self) -> None:
        try:
            self._settle()
            with self._changed:
                self.settled = True
                self._changed.notify_all()
            while batch := self._take():
                self._carry_out(batch)
                with self._changed:
                    self._busy = []
                    self.changes += len(batch)
                    self.batches += 1
                    self._changed.notify_all()
        except Stopped:
            return
        except Exception as bug:
            # Nothing may be acknowledged any more; a guest that waits for ever would tell nobody.
            log.exception("protect.broken")
            self._fail(WhimbrelError(f"the protection of writes has failed: {bug!r}", cause=bug))

    def _fail(self, error: WhimbrelError) -> None:
        with self._changed:
            self._broken = error
            held = [*self._busy, *self._waiting]
            self._waiting.clear()
        for change in held:
            change.done(error)

    def _take(self) -> list[Change]:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._stopping)
            if self._stopping:
                return []
            size = 0
            while self._waiting and len(self._busy) < BATCH_CHANGES and size < BATCH_BYTES:
                change = self._waiting.popleft()
                size += 0 if change.data is None else change.length
                self._busy.append(change)
            return list(self._busy)
