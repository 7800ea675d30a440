"""Takes the changes out of the journal, in order, and gives them to the shadow.

What goes to the shadow at once lies between two flushes of the guest, and is flushed there before the next goes. So the
shadow is at any moment what a disk may be whose power fails: everything up to a flush of the guest, and of what came
after it any part. The journal is durable up to what the shadow is given, so it never has a change that a crash of this
host would take from the journal.
"""

from __future__ import annotations

import logging
import threading
from typing import Final

from whimbrel.errors import WhimbrelError
from whimbrel.stream.protect.journal import Journal
from whimbrel.stream.protect.lag import Lag, weight_of
from whimbrel.stream.protect.sequence import BATCH_BYTES
from whimbrel.stream.protect.shadow import Shadow
from whimbrel.stream.source import Stopped

PAUSE_S: Final = 0.5

log = logging.getLogger(__name__)


class Follower:
    """``step`` is for one thread at a time: the settling's, then the one that ``start`` begins."""

    def __init__(self, journal: Journal, shadow: Shadow, lag: Lag, stop: threading.Event) -> None:
        self._journal = journal
        self._shadow = shadow
        self._lag = lag
        self.ending = stop
        self._more = threading.Event()
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self.batches = 0
        self.error: WhimbrelError | None = None
        """Why the journal could not be written lately."""

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, after ``stop`` of the constructor was set and the shadow was stopped."""
        self._more.set()
        if self._thread.ident is not None:
            self._thread.join()

    def wake(self) -> None:
        """There is something in the journal."""
        self._more.set()

    def catch_up(self) -> None:
        """Give the shadow all that the journal holds now. Raises Stopped, Conflict, Unavailable."""
        while self.step():
            pass

    def step(self) -> bool:
        """The next changes; False if the shadow lacks none. Raises Stopped, Conflict, Unavailable."""
        taken = self._journal.take(min(self._lag.turn_bytes, BATCH_BYTES))
        if not taken:
            return False
        # This also makes durable that the shadow has what went before: a later start must not go further back than
        # to these, for the shadow would be neither here nor there meanwhile.
        self._journal.sync()
        connection = self._shadow.reconnects
        self._lag.sending(sum(weight_of(record.payload_bytes) for record, _ in taken))
        self._shadow.apply([change for _, change in taken])
        number = taken[-1][0].number
        self._note(number)
        self._lag.applied(number, measured=self._shadow.reconnects == connection)
        self.batches += 1
        return True

    def _note(self, number: int) -> None:
        """Note it in the journal; again while there is no room."""
        while True:
            try:
                self._journal.note(number)
                self._journal.tidy()
            except WhimbrelError as error:
                if self._journal.broken:
                    raise
                self.error = error
                if self.ending.wait(PAUSE_S):
                    raise Stopped from None
            else:
                self.error = None
                return

    def _run(self) -> None:
        try:
            while not self.ending.is_set():
                self._more.clear()
                if not self.step():
                    self._more.wait()
        except Stopped:
            return
        except WhimbrelError as error:
            log.exception("protect.journal_failed")
            self._lag.fail(error)
        except Exception as bug:
            log.exception("protect.broken")
            self._lag.fail(WhimbrelError(f"the journal cannot be brought to the shadow: {bug!r}", cause=bug))
